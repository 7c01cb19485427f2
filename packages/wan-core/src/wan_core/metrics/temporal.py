"""How steady a video is: closed formulas on frames and optical flow.

``frames`` are a clip [T, H, W, 3] of bytes. A value is None where nothing can be measured: too few frames, no pixel
that counts. Flow is what a detector says, and an error of it is an error of these numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wan_core.metrics.flow import Flow, OpticalFlow, Pixels

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Frames = NDArray[np.uint8]
"""A clip [T, H, W, 3], red, green, blue."""

STATIC = 0.5
"""Pixels that move less than this count as standing still, in pixels a frame."""
LONG_STEP = 4
"""Every such frame is compared with the first one."""
_NOTHING = 1e-13
"""A warping error that is rounding: one level in one pixel of a large frame is more."""
LUMINANCE = np.array([0.299, 0.587, 0.114])
"""Of red, green, blue (ITU-R BT.601)."""


@dataclass(frozen=True)
class Steadiness:
    """The metrics of :func:`steadiness`, each None where nothing can be measured.

    ``warp_errors`` [T-1] are those of the pairs of neighbours, None where no pixel counts.
    """

    warp_error: float | None
    warp_error_long: float | None
    flicker: float | None
    luminance_flicker: float | None
    warp_errors: tuple[float | None, ...]


def warped(image: NDArray[np.generic], flow: Flow) -> tuple[Floats, Bools]:
    """``image`` [H, W, C] at the places that ``flow`` [H, W, 2] leads to, between pixels bilinearly, and whether
    [H, W] they are inside of it: the second frame as the first one sees it."""
    height, width = flow.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    x, y = columns + flow[..., 0].astype(np.float64), rows + flow[..., 1].astype(np.float64)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x, y = x.clip(0, width - 1), y.clip(0, height - 1)
    left, top = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    across, down = (x - left)[..., None], (y - top)[..., None]
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return np.asarray(upper * (1 - down) + lower * down), inside


def visible_pixels(forward: Flow, backward: Flow) -> Bools:
    """[H, W]: pixels of the first frame that the second one shows, too (Ruder et al. 2016).

    ``forward`` F leads from the first to the second, ``backward`` from the second to the first; B is the latter at the
    place that F leads to. A pixel is hidden where ``|F + B|^2 > 0.01 (|F|^2 + |B|^2) + 0.5``, at a border of motion
    where ``|grad u|^2 + |grad v|^2 > 0.01 |F|^2 + 0.002`` with F = (u, v), or where F leads out of the picture.
    """
    back, inside = warped(backward, forward)
    ahead = forward.astype(np.float64)
    size = (ahead**2).sum(axis=2)
    is_hidden = ((ahead + back) ** 2).sum(axis=2) > 0.01 * (size + (back**2).sum(axis=2)) + 0.5
    slope = sum((np.diff(ahead, axis=axis, append=_last(ahead, axis)) ** 2).sum(axis=2) for axis in (0, 1))
    return np.asarray(inside & ~is_hidden & (slope <= 0.01 * size + 0.002))


def _last(values: Floats, axis: int) -> Floats:
    """The last row or column, so that a difference behind it is 0."""
    return values[-1:] if axis == 0 else values[:, -1:]


def pair_error(first: Pixels, second: Pixels, forward: Flow, visible: Bools) -> float | None:
    """Warping error of two frames, 0 to 1, lower is better: ``sum M (I_t - W_t)^2 / sum M``, colours 0 to 1, averaged.

    ``W_t`` is the second frame warped back by the flow, ``M`` the pixels that both show (Lai et al. 2018). None when
    there are none.
    """
    if not visible.any():
        return None
    back, _ = warped(second, forward)
    return float((((first - back) / 255) ** 2).mean(axis=2)[visible].mean())


def steadiness(frames: Frames, flow: OpticalFlow) -> Steadiness:
    """Warping error, flicker and luminance flicker of a clip; the flow of neighbours is computed once, in both ways.

    - ``warp_error``: the mean of :func:`pair_error` over neighbours; ``warp_error_long``: over pairs of the first frame
      and every fourth one after it.
    - ``flicker``, 0 to 1, higher is better: the mean over neighbours of ``(255 - MAE) / 255``, VBench's form (Huang et
      al. 2024), of pixels that move less than 0.5. VBench takes all pixels, of videos that stand still.
    - ``luminance_flicker``, 0 to 255, lower is better: the standard deviation over time of ``m[t+1] - 2 m[t] +
      m[t-1]``, m the mean luminance of the pixels that stand still throughout; our own, for four frames or more.
    """
    errors: list[float | None] = []
    likeness: list[float] = []
    still = np.ones(frames.shape[1:3], dtype=bool)
    for first, second in pairwise(frames):
        forward, backward = flow(first, second), flow(second, first)
        errors.append(pair_error(first, second, forward, visible_pixels(forward, backward)))
        static = np.linalg.norm(forward, axis=2) < STATIC
        still &= static
        if static.any():
            difference = np.abs(first.astype(np.float64) - second)[static].mean()
            likeness.append(float((255 - difference) / 255))
    return Steadiness(
        warp_error=mean_of(errors),
        warp_error_long=mean_of(_long_errors(frames, flow)),
        flicker=mean_of(likeness),
        luminance_flicker=luminance_flicker(frames, still),
        warp_errors=tuple(errors),
    )


def _long_errors(frames: Frames, flow: OpticalFlow) -> Iterator[float | None]:
    for later in frames[LONG_STEP::LONG_STEP]:
        forward, backward = flow(frames[0], later), flow(later, frames[0])
        yield pair_error(frames[0], later, forward, visible_pixels(forward, backward))


def luminance_flicker(frames: Frames, still: Bools) -> float | None:
    """The standard deviation of the second difference of the mean luminance of pixels ``still`` [H, W]."""
    if len(frames) < 4 or not still.any():
        return None
    means = np.array([frame[still].mean(axis=0) @ LUMINANCE for frame in frames])
    return float(np.diff(means, n=2).std())


def seam_ratio(warp_errors: Sequence[float | None], starts: Collection[int]) -> float | None:
    """Mean warping error into the frames ``starts``, where blocks begin, over that inside of blocks; best is 1.

    ``warp_errors`` are those of neighbours, as of :func:`steadiness`. Above 1, blocks can be seen. None without pairs
    of both kinds, or where nothing changes inside of blocks.
    """
    at = [error for index, error in enumerate(warp_errors, start=1) if index in starts]
    inside = [error for index, error in enumerate(warp_errors, start=1) if index not in starts]
    seam, usual = mean_of(at), mean_of(inside)
    return None if seam is None or usual is None or usual < _NOTHING else seam / usual


@dataclass(frozen=True)
class Drift:
    """How colours change from the first frames to the last, in levels of 0 to 255, lower is better: the difference of
    the channels' means (``mean``) and of their standard deviations (``contrast``), averaged over channels."""

    mean: float
    contrast: float


def drift(frames: Frames, span: int) -> Drift | None:
    """The first ``span`` frames against the last ones; None when they overlap."""
    if span < 1 or 2 * span > len(frames):
        return None
    parts = [part.reshape(-1, 3).astype(np.float64) for part in (frames[:span], frames[-span:])]
    means, deviations = ([getattr(part, name)(axis=0) for part in parts] for name in ("mean", "std"))
    return Drift(float(np.abs(means[1] - means[0]).mean()), float(np.abs(deviations[1] - deviations[0]).mean()))


def flow_difference(frames: Frames, truth: Frames, flow: OpticalFlow) -> float | None:
    """tOF in pixels, lower is better: the mean of ``|F(I_t, I_t+1) - F(G_t, G_t+1)|_1`` (Chu et al. 2020).

    ``truth`` G is the wanted video, of the same shape. None for a single frame.
    """
    steps = zip(frames[:-1], frames[1:], truth[:-1], truth[1:], strict=True)
    return mean_of([float(np.abs(flow(a, b) - flow(c, d)).sum(axis=2).mean()) for a, b, c, d in steps])


def mean_of(values: Sequence[float | None] | Iterator[float | None]) -> float | None:
    """The mean of what is not None; None when nothing is left."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
