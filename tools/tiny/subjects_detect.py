"""The judge of the world of subjects: which looks a clip shows and how each of them moves (numpy only).

It knows the palette and the figures, nothing of pictures, prompts or models. Every subject must be one connected blob
in every frame, as many blobs as there are subjects; its outline must match a figure (`tools.tiny.detect.match_shape`),
and the texture is the one whose two parts are the most even in colour. A blob whose look is not certain has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, permutations

import numpy as np
from numpy.typing import NDArray

from tools.tiny.detect import (
    LEAST_IOU,
    Track,
    border_color,
    connected_part,
    match_shape,
    name_motion,
    nearest_name,
)
from tools.tiny.drawing import UNIT_AREA, Floats, figure_distance, pixel_grid
from tools.tiny.subjects import COLORS, FIGURES, TEXTURES, Look, Scene, second_part
from tools.tiny.world import BACKGROUNDS, Video

_LEAST_DISTANCE = 65.0  # RGB distance from the background at which a pixel is a subject's
_LEAST_PIXELS, _SPECK = 25, 10
_EDGE = 1.5  # pixels beside an edge that say nothing of a colour


@dataclass(frozen=True)
class Seen:
    """One subject of a clip; None where nothing was certain."""

    look: Look | None
    motion: str | None


def find_subjects(video: Floats, count: int) -> list[Track] | None:
    """The ``count`` subjects of a clip [F, H, W, 3], each followed from frame to frame; None where there are not so
    many in every frame, or others beside them."""
    distance = np.linalg.norm(video - border_color(video), axis=-1)
    blobs = [_parts(mask, count) for mask in distance > _LEAST_DISTANCE]
    if any(len(found) != count for found in blobs):
        return None
    x, y = pixel_grid(*video.shape[1:3])
    masks = np.stack([np.stack(found) for found in blobs]).astype(np.float32)
    areas = masks.sum((2, 3))
    centers = np.stack([(masks * x).sum((2, 3)) / areas, (masks * y).sum((2, 3)) / areas], -1)
    orders = [tuple(range(count))]
    for before, now in pairwise(centers):
        last = before[list(orders[-1])]
        orders.append(min(permutations(range(count)), key=lambda order: np.linalg.norm(now[list(order)] - last)))
    frames = np.arange(len(video))
    picked = np.array(orders)
    return [Track(*(values[frames, picked[:, index]] for values in (masks, centers, areas))) for index in range(count)]


def _parts(mask: NDArray[np.bool_], count: int) -> list[NDArray[np.bool_]]:
    """The connected parts of a frame that are no specks; one more than ``count`` at most."""
    found: list[NDArray[np.bool_]] = []
    while mask.any() and len(found) <= count:
        part = connected_part(mask)
        mask = mask & ~part
        if part.sum() > _SPECK:
            found.append(part)
    return found if all(part.sum() >= _LEAST_PIXELS for part in found) else []


def name_look(video: Floats, track: Track, shape: str) -> Look | None:
    """The look of a followed subject of a shape, or None."""
    if shape not in FIGURES:
        return None
    x, y = pixel_grid(*video.shape[1:3])
    dx, dy = x - track.centers[:, 0, None, None], y - track.centers[:, 1, None, None]
    radius = np.sqrt(track.areas / UNIT_AREA[shape]).astype(np.float32)[:, None, None]
    inside = figure_distance(shape, dx, dy, radius, np.zeros_like(radius)) < -_EDGE
    found: list[tuple[float, Look]] = []
    for texture in TEXTURES:
        edge = second_part(texture, dx, dy, radius)
        parts = [
            video[inside & side] for side in ((edge > _EDGE,) if texture == "plain" else (edge > _EDGE, edge < -_EDGE))
        ]
        if min(map(len, parts)) < len(video):
            continue
        colors = [np.median(part, axis=0) for part in parts]
        names = [nearest_name(color, COLORS) for color in colors]
        first, second = names[0], names[-1]
        if first is None or second is None or (first == second) != (texture == "plain"):
            continue
        spread = [np.linalg.norm(part - color, axis=-1) for part, color in zip(parts, colors, strict=True)]
        found.append((float(np.concatenate(spread).mean()), Look(shape, texture, first, second)))
    return min(found, key=lambda each: each[0])[1] if found else None


def see(video: Video, count: int) -> list[Seen]:
    """What ``count`` subjects of a clip look like and how they move; none of them where they cannot be told apart."""
    pixels = video.astype(np.float32)
    tracks = find_subjects(pixels, count)
    if tracks is None:
        return []
    found = []
    for track in tracks:
        shape, overlap = match_shape(track)
        if overlap < LEAST_IOU:
            found.append(Seen(None, None))
        else:  # its motion is that of a circle, which does not spin
            found.append(Seen(name_look(pixels, track, shape), name_motion(track, "circle")))
    return found


def judge(video: Video, scene: Scene) -> dict[str, float]:
    """What of a scene a clip shows, 1 or 0: ``look`` and ``motion`` of all its subjects, both (``all``), the
    background if the prompt names it; and ``looks``, ``motions``: the shares of its subjects. Blobs are given to
    subjects so that most is right."""
    seen = see(video, len(scene.subjects))
    best = [(0.0, 0.0)] * len(scene.subjects)
    for order in permutations(seen) if seen else ():
        agreed = [
            (float(each.look == subject.look), float(each.motion == subject.motion))
            for each, subject in zip(order, scene.subjects, strict=True)
        ]
        best = max(best, agreed, key=lambda rows: (np.sum(rows), np.sum([look for look, _ in rows])))
    ground = nearest_name(border_color(video.astype(np.float32)), BACKGROUNDS)
    share = np.mean(best, axis=0)
    result = {
        "look": float(share[0] == 1),
        "motion": float(share[1] == 1),
        "all": float(share.min() == 1),
        "looks": float(share[0]),
        "motions": float(share[1]),
    }
    return result | ({"background": float(ground == scene.background)} if scene.is_named else {})
