"""Depth as images: 16-bit PNG for programs, colours for people."""

import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pi3.scene import Scene
from wan_core.drafts import merged_folder

LEVELS = 65_535
DEPTH_NAMES = ("_depth", "_colour")
"""What follows the name of a view in those of its two images."""

# Anchor colours from near to far, evenly spaced: warm for near, dark blue for far; lightness falls throughout.
_RAMP = np.array(
    [(252, 240, 178), (253, 196, 105), (240, 140, 80), (206, 88, 96), (146, 60, 116), (84, 44, 112), (30, 26, 72)],
    dtype=np.float64,
)


def depth_to_colours(depth: NDArray[np.floating], near: float, far: float) -> NDArray[np.uint8]:
    """Depth [..., H, W] as RGB uint8 [..., H, W, 3]: even steps of 1 / depth between ``near`` and ``far``."""
    inverse = 1 / np.clip(depth, near, far)
    low, high = 1 / far, 1 / near
    place = (high - inverse) / max(high - low, 1e-12) * (len(_RAMP) - 1)
    channels = [np.interp(place, range(len(_RAMP)), channel) for channel in _RAMP.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def depth_range(depth: NDArray[np.floating]) -> tuple[float, float]:
    """Depths that hold all but the nearest and the farthest hundredth; (1, 1) for none."""
    valid = depth[np.isfinite(depth) & (depth > 0)]
    if not len(valid):
        return 1.0, 1.0
    near, far = np.quantile(valid, (0.01, 0.99))
    return float(near), float(far)


def depth_levels(depth: NDArray[np.floating], scale: float) -> NDArray[np.uint16]:
    """Depth divided by ``scale`` and rounded to 1..65535; 0 where depth is not positive."""
    levels = np.clip(np.round(np.where(np.isfinite(depth), depth, 0) / scale), 0, LEVELS).astype(np.uint16)
    lifted: NDArray[np.uint16] = np.where((levels == 0) & (depth > 0), np.uint16(1), levels)
    return lifted


def _older_maps(folder: Path) -> list[str]:
    """The names of the images of an earlier run."""
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        views = json.loads((folder / "depth.json").read_bytes())["views"]
        return [f"{view}{end}.png" for view in views for end in DEPTH_NAMES if Path(view).name == view]
    return []


def write_depth(scene: Scene, path: str | os.PathLike[str]) -> float:
    """Write ``NAME_depth.png`` (16 bit) and ``NAME_colour.png`` per view, and ``depth.json`` with the scale.

    The maps that an older ``depth.json`` there names go: they have another scale.

    Depth is the level times the scale, which is returned; pixels that are not kept are 0 in the first and dimmed in the
    second. Raises MediaError when the folder cannot be written.
    """
    near, far = depth_range(scene.depth[scene.keep])
    largest = float(scene.depth[scene.keep].max()) if scene.keep.any() else 1.0
    scale = max(largest, 1e-12) / LEVELS
    with merged_folder(path, owned=_older_maps(Path(path))) as folder:
        for index, name in enumerate(scene.names):
            kept, depth = scene.keep[index], scene.depth[index]
            levels = depth_levels(np.where(kept, depth, 0), scale)
            Image.fromarray(levels).save(folder / f"{name}{DEPTH_NAMES[0]}.png")
            colours = depth_to_colours(depth, near, far)
            colours = np.where(kept[..., None], colours, colours // 3)
            Image.fromarray(colours).save(folder / f"{name}{DEPTH_NAMES[1]}.png")
        record = {"scale": scale, "near": near, "far": far, "views": list(scene.names)}
        (folder / "depth.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return scale
