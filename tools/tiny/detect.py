"""Image-analysis detectors of the tiny world: what figure, colour, background and motion a clip shows (numpy only).

They know the palette and the figures, nothing of captions or models, and answer None rather than guess: the figure must
be one connected blob in every frame, and its outline must match a figure with an intersection over union of 0.7.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.tiny.drawing import SHAPES, SYMMETRY, UNIT_AREA, Floats, coverage, figure_distance, pixel_grid
from tools.tiny.world import BACKGROUNDS, COLORS, Combination

LEAST_IOU = 0.7
_LEAST_BLOB = 0.9  # share of the figure's pixels in its largest connected part
_SHAPE_FRAMES = 5  # frames on which the outline is matched
_ANGLE_STEP = np.deg2rad(10)
_FARTHEST_COLOR = 75.0  # RGB distance at which a colour has no name any more


@dataclass(frozen=True)
class Detection:
    """What was seen; None where nothing was certain. ``iou`` is the best outline match in 0..1."""

    color: str | None
    shape: str | None
    motion: str | None
    background: str | None
    iou: float = 0.0

    def agrees(self, combination: Combination) -> dict[str, bool]:
        """Compare with what a clip should show: colour, background, shape, motion and all of them."""
        names = ("color", "background", "shape", "motion")
        result = {name: getattr(self, name) == getattr(combination, name) for name in names}
        return result | {"all": all(result.values())}


@dataclass(frozen=True)
class Track:
    """The figure over time: soft masks ``[F, H, W]``, centroids ``[F, 2]`` (x, y) and areas ``[F]`` in pixels."""

    masks: Floats
    centers: Floats
    areas: Floats


def nearest_name(color: Floats, palette: dict[str, tuple[int, int, int]]) -> str | None:
    """Name the palette colour next to an RGB value 0..255, or None when every one is far."""
    distances = {name: float(np.linalg.norm(color - np.float32(rgb))) for name, rgb in palette.items()}
    name = min(distances, key=lambda key: distances[key])
    return name if distances[name] <= _FARTHEST_COLOR else None


def border_color(video: Floats) -> Floats:
    """Median colour of the outermost two pixels of all frames, RGB 0..255."""
    edges = [video[:, :2], video[:, -2:], video[:, :, :2], video[:, :, -2:]]
    return np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0)


def figure_color(video: Floats, background: Floats) -> Floats | None:
    """Median colour of the pixels farthest from the background, or None when all are near it."""
    pixels = video.reshape(-1, 3)
    distance = np.linalg.norm(pixels - background, axis=-1)
    # Half of the largest distance is inside the figure's edge; its median is not moved by the edge pixels.
    limit = np.quantile(distance, 0.99) * 0.75
    return np.median(pixels[distance >= limit], axis=0) if limit > 30 else None


def _reach(mask: NDArray[np.bool_], seed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Grow ``seed`` to the whole 4-connected parts of ``mask`` that it touches, frame by frame."""
    reached = seed & mask
    while True:
        grown = reached.copy()
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown[:, :, 1:] |= reached[:, :, :-1]
        grown[:, :, :-1] |= reached[:, :, 1:]
        grown &= mask
        if np.array_equal(grown, reached):
            return reached
        reached = grown


def connected_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The 4-connected part of ``mask`` [H, W] that its first pixel belongs to."""
    seed = np.zeros_like(mask)
    seed.flat[mask.argmax()] = True
    return _reach(mask[None], seed[None])[0]


def largest_blob(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the largest of the first three connected parts found in each frame of ``[F, H, W]``."""
    frames, best, rest = np.arange(len(mask)), np.zeros_like(mask), mask
    for _ in range(3):
        seed = np.zeros_like(mask)
        first = rest.reshape(len(mask), -1).argmax(1)
        seed.reshape(len(mask), -1)[frames, first] = True
        part = _reach(rest, seed)
        larger = part.sum((1, 2)) > best.sum((1, 2))
        best = np.where(larger[:, None, None], part, best)
        rest = rest & ~part
        if not rest.any():
            break
    return best


def follow_figure(video: Floats, background: Floats, color: Floats) -> Track | None:
    """Separate the figure from the background by colour; None unless it is one blob in every frame."""
    direction = color - background
    alpha = np.clip((video - background) @ direction / (direction @ direction), 0, 1).astype(np.float32)
    mask = alpha > 0.5
    blob = largest_blob(mask)
    counts = blob.sum((1, 2))
    if counts.min() < 25 or (counts < _LEAST_BLOB * mask.sum((1, 2))).any():
        return None
    alpha = np.where(blob | ~mask, alpha, 0)
    alpha[alpha < 0.25] = 0  # faint noise far from the figure would move its centroid
    x, y = pixel_grid(*video.shape[1:3])
    areas = alpha.sum((1, 2))
    centers = np.stack([(alpha * x).sum((1, 2)) / areas, (alpha * y).sum((1, 2)) / areas], -1)
    return Track(alpha, centers, areas)


def match_shape(track: Track) -> tuple[str, float]:
    """Find the figure whose outline, turned and scaled to the same area, overlaps best; mean IoU over a few frames."""
    chosen = np.unique(np.linspace(0, len(track.areas) - 1, _SHAPE_FRAMES).round().astype(int))
    x, y = pixel_grid(*track.masks.shape[1:])
    scores = dict.fromkeys(SHAPES, 0.0)
    for index in chosen:
        mask, (center_x, center_y) = track.masks[index], track.centers[index]
        reach = int(np.sqrt(track.areas[index])) + 8
        top, left = max(0, int(center_y) - reach), max(0, int(center_x) - reach)
        window = np.s_[top : int(center_y) + reach, left : int(center_x) + reach]
        for shape in SHAPES:
            period = SYMMETRY[shape]
            angles = np.arange(0, period or 1e-3, _ANGLE_STEP, dtype=np.float32)[:, None, None]
            radius = np.float32(np.sqrt(track.areas[index] / UNIT_AREA[shape]))
            outline = coverage(
                figure_distance(shape, x[window][None] - center_x, y[window][None] - center_y, radius, angles)
            )
            outline, seen = np.broadcast_arrays(outline, mask[window])
            overlap = np.minimum(outline, seen).sum((1, 2)) / np.maximum(outline, seen).sum((1, 2))
            scores[shape] += float(overlap.max()) / len(chosen)
    best = max(scores, key=lambda name: scores[name])
    return best, scores[best]


def _turned(track: Track) -> bool:
    """Tell whether the figure's outline turns: some frame differs from the first one although nothing else changed."""
    height, width = track.masks.shape[1:]
    y, x = np.mgrid[-20:21, -20:21]
    views = []
    for mask, (center_x, center_y) in zip(track.masks, track.centers, strict=True):
        rows = np.clip((y + round(float(center_y))), 0, height - 1)
        views.append(mask[rows, np.clip(x + round(float(center_x)), 0, width - 1)])
    overlap = [np.minimum(views[0], view).sum() / np.maximum(views[0], view).sum() for view in views]
    return min(overlap) < 0.8


def name_motion(track: Track, shape: str) -> str | None:
    """Name the motion of a track (a key of the world's MOTIONS) or None; ``shape`` says whether a spin would show."""
    unit = min(track.masks.shape[1:]) / 64
    shift = (track.centers - track.centers[0]) / unit
    end, reach = shift[-1], np.abs(shift).max(0)
    ratio = track.areas[-1] / track.areas[0]
    steady = reach.max() < 6
    if steady and (ratio > 1.5 or ratio < 1 / 1.5):
        return "grow" if ratio > 1 else "shrink"
    if not 1 / 1.6 < ratio < 1.6:
        return None
    if steady:
        return "spin" if SYMMETRY[shape] and _turned(track) else "still"
    if shift[:, 1].max() > 9 and abs(end[1]) < 0.45 * shift[:, 1].max() and reach[0] < 6:
        return "bounce"
    axis = int(np.abs(end).argmax())
    straight = abs(end[axis]) >= 12 and reach[1 - axis] < 0.45 * abs(end[axis]) and reach[axis] < 1.25 * abs(end[axis])
    if not straight:
        return None
    return (("left", "right"), ("up", "down"))[axis][int(end[axis] > 0)]


def detect(video: NDArray[np.uint8]) -> Detection:
    """Say what a clip ``[F, H, W, 3]`` uint8 of the tiny world shows."""
    pixels = video.astype(np.float32)
    background = border_color(pixels)
    background_name = nearest_name(background, BACKGROUNDS)
    color = figure_color(pixels, background)
    track = None if color is None else follow_figure(pixels, background, color)
    if color is None or track is None:
        return Detection(None, None, None, background_name)
    shape, iou = match_shape(track)
    motion = name_motion(track, shape) if iou >= LEAST_IOU and len(video) > 1 else None
    if iou < LEAST_IOU:
        # Coloured fragments are no figure: without an outline, the colour does not count either.
        return Detection(None, None, None, background_name, iou)
    return Detection(nearest_name(color, COLORS), shape, motion, background_name, iou)
