"""A detector by colour for the stick-person world: joints of a frame from the places of the colours.

It knows the palette and the build of the person, nothing of poses that were asked for. Forearms and shins are blobs of
a colour of their own; the end nearer to the shoulder or hip, which hang below the head, is the elbow or knee. A joint
whose blob is too small, or no limb's shape, is not seen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from selfforcing_unianimate.backends import opencv
from tools.tiny.detect import border_color
from tools.tiny.people import PARTS
from tools.tiny.world import BACKGROUNDS, COLORS, Video

JOINTS = (0, 3, 4, 6, 7, 9, 10, 12, 13)
"""What is detected and judged, in OpenPose's numbers: nose, elbows, wrists, knees, ankles."""

_LIMBS = {"right_arm": (3, 4), "left_arm": (6, 7), "right_leg": (9, 10), "left_leg": (12, 13)}
# Where a shoulder or hip is from the middle of the head, in pixels.
_ROOTS = {"right_arm": (-6, 7.5), "left_arm": (6, 7.5), "right_leg": (-4, 21.5), "left_leg": (4, 21.5)}
_RADIUS = 3.3
_LEAST_PIXELS = 14
_LEAST_LENGTH = 4.0
_FARTHEST = 110.0  # RGB distance at which a colour has no name any more


def name_pixels(frames: NDArray[np.float32]) -> tuple[list[str], NDArray[np.intp]]:
    """Names, and for every pixel [F, H, W] which of them its colour is nearest to; -1 where all are far."""
    background = border_color(frames)
    palette = {**PARTS, **{f"cloth {name}": COLORS[name] for name in ("green", "purple", "yellow", "white")}}
    palette |= {f"ground {name}": BACKGROUNDS[name] for name in ("black",)} | {"ground": tuple(background)}
    colors = np.float32(list(palette.values()))
    distance = np.linalg.norm(frames[..., None, :] - colors, axis=-1)
    nearest = distance.argmin(axis=-1)
    return [*palette], np.where(distance.min(axis=-1) <= _FARTHEST, nearest, -1)


def detect_joints(video: Video) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Joints [F, 18, 2] in pixels of a clip [F, H, W, 3], and whether each was seen [F, 18]; only JOINTS can be."""
    names, named = name_pixels(video.astype(np.float32))
    points, seen = np.zeros((len(video), 18, 2)), np.zeros((len(video), 18), dtype=bool)
    masks = {part: largest_parts(named == names.index(part)) for part in PARTS}
    for frame in range(len(video)):
        head = np.argwhere(masks["head"][frame])[:, ::-1].astype(np.float64)
        if len(head) < _LEAST_PIXELS:
            continue
        nose = points[frame, 0] = head.mean(axis=0)
        seen[frame, 0] = True
        for part, (inner, outer) in _LIMBS.items():
            ends = limb_ends(np.argwhere(masks[part][frame])[:, ::-1].astype(np.float64))
            if ends is None:
                continue
            near, far = sorted(ends, key=lambda end: float(np.linalg.norm(end - nose - _ROOTS[part])))
            points[frame, inner], points[frame, outer] = near, far
            seen[frame, [inner, outer]] = True
    return points, seen


def largest_parts(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of each frame [F, H, W]."""
    kept = np.zeros_like(mask)
    for frame in np.flatnonzero(mask.any(axis=(1, 2))):
        _, labels, facts, _ = opencv().connectedComponentsWithStats(mask[frame].astype(np.uint8), connectivity=4)
        kept[frame] = labels == 1 + facts[1:, -1].argmax()
    return kept


def limb_ends(pixels: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The two ends (x, y) of the axis of a limb whose pixels [N, 2] are given; None for what is no limb."""
    if len(pixels) < _LEAST_PIXELS:
        return None
    center = pixels.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((pixels - center).T))
    along = (pixels - center) @ vectors[:, 1]
    low, high = along.min() + _RADIUS - 0.5, along.max() - _RADIUS + 0.5
    if high - low < _LEAST_LENGTH or values[1] < 1.5 * values[0]:
        return None
    return center + low * vectors[:, 1], center + high * vectors[:, 1]
