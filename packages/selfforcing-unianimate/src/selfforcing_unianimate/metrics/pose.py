"""How far the person of a video is from the pose that it should have: closed formulas on keypoints.

``target`` is the wanted pose, ``found`` the one that a detector sees, both of the same T frames. Only joints that are
seen in the target count. A value is None where nothing can be measured: no such joint, too few frames, no motion.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from selfforcing_unianimate.keypoints import Floats
from selfforcing_unianimate.metrics.keypoints import Bools, Keypoints
from wan_core import RequestError

SIGMAS = np.array(
    [
        0.026, np.nan, 0.079, 0.072, 0.062, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089, 0.107, 0.087, 0.089, 0.025, 0.025,
        0.035, 0.035,
    ]
)  # fmt: skip
"""Of COCO's 17 joints in OpenPose's order (pycocotools, ``Params.kpt_oks_sigmas``); the neck is none of them."""
THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Of OKS, at which COCO averages precision."""
LIMBS = (
    (1, 0), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
)  # fmt: skip
"""From the neck outwards, without the face."""
MAX_LAG = 8
_NOSE, _NECK = 0, 1
_FEWEST_STEPS = 3
_SAME_CORRELATION = 0.01


def person_boxes(target: Keypoints) -> tuple[Floats, Floats]:
    """Width and height [T] of the box around the joints that are seen, in pixels; 0 for one joint or none."""
    seen = target.seen[..., None]
    low = np.where(seen, target.points, np.inf).min(axis=1)
    high = np.where(seen, target.points, -np.inf).max(axis=1)
    sides: Floats = np.maximum(high - low, 0.0)
    return sides[:, 0], sides[:, 1]


def pck(target: Keypoints, found: Keypoints, share: float = 0.1) -> float | None:
    """PCK@share, 0 to 1, higher is better: the part of the joints that lie within ``share * L`` of their target.

    ``L`` is the longer side of the box around the target's joints in that frame (Yang and Ramanan 2013: the threshold
    is alpha * max(h, w) of the person's box). A joint that is not found is wrong. Frames with a box without size are
    left out.
    """
    return _correct(target, found, share * _lengths(target))


def pckh(target: Keypoints, found: Keypoints, share: float = 0.5) -> float | None:
    """PCKh@share, 0 to 1, higher is better: PCK with the length of the head instead of the box (Andriluka et al. 2014).

    MPII's head segment is no joint of OpenPose; from nose to neck stands for it, in frames where the target has both.
    """
    head = np.linalg.norm(target.points[:, _NOSE] - target.points[:, _NECK], axis=1)
    return _correct(target, found, share * np.where(target.seen[:, [_NOSE, _NECK]].all(axis=1), head, 0.0))


def _correct(target: Keypoints, found: Keypoints, limits: Floats) -> float | None:
    valid = target.seen & (limits > 0)[:, None]
    right = found.seen & (_distances(target, found) <= limits[:, None])
    return _mean(right[valid])


def oks_by_frame(target: Keypoints, found: Keypoints) -> Floats:
    """Object keypoint similarity [T], 0 to 1, NaN for frames without a joint of COCO in the target.

    ``mean over V of exp(-d^2 / (2 s^2 k^2))`` with ``k = 2 sigma`` and ``s^2`` the area of the person (COCO keypoint
    evaluation). There it is that of the person's outline; here that of the box around the target's joints, so values
    are higher than with outlines. A joint that is not found adds 0.
    """
    valid = target.seen & np.isfinite(SIGMAS)
    width, height = person_boxes(target)
    area = (width * height)[:, None] + np.spacing(1.0)
    exponent = _distances(target, found) ** 2 / (2 * area * (2 * SIGMAS) ** 2)
    similarity = np.where(valid & found.seen, np.exp(-np.where(valid, exponent, 0.0)), 0.0)
    count = valid.sum(axis=1)
    return np.where(count > 0, similarity.sum(axis=1) / np.maximum(count, 1), np.nan)


def oks(target: Keypoints, found: Keypoints) -> float | None:
    """The mean over frames of :func:`oks_by_frame`."""
    values = oks_by_frame(target, found)
    return _mean(values[np.isfinite(values)])


def oks_ap(target: Keypoints, found: Keypoints) -> float | None:
    """Average precision of the frames of a clip, 0 to 1, higher is better: COCO's, over OKS .50, .55 to .95.

    A frame's person is a detection with the mean score of its seen joints, and right at a threshold when its OKS
    reaches it. Precision, made falling, is averaged at 101 recalls from 0 to 1 (pycocotools ``COCOeval.accumulate``).
    """
    values = oks_by_frame(target, found)
    counted = np.isfinite(values)
    if not counted.any():
        return None
    detected = found.seen.any(axis=1) & counted
    sums = np.where(found.seen, found.scores, 0.0).sum(axis=1)
    ranks = np.argsort(-(sums / np.maximum(found.seen.sum(axis=1), 1))[detected], kind="stable")
    ranked = values[detected][ranks]
    return float(np.mean([_precision(ranked >= limit - 1e-12, int(counted.sum())) for limit in THRESHOLDS]))


def _precision(right: Bools, total: int) -> float:
    hits = right.cumsum()
    recall = hits / total
    falling = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    places = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.append(falling, 0.0)[places].mean())


def missing_rate(target: Keypoints, found: Keypoints) -> float | None:
    """MKR, 0 to 1, lower is better: the part of the target's joints that are not found (Siarohin et al. 2019)."""
    _check_lengths(target, found)
    return _mean(~found.seen[target.seen])


def akd(target: Keypoints, found: Keypoints) -> float | None:
    """AKD in pixels, lower is better: mean distance of joints that both have (Siarohin et al. 2019)."""
    return _mean(_distances(target, found)[target.seen & found.seen])


def akd_relative(target: Keypoints, found: Keypoints) -> float | None:
    """AKD divided by L of :func:`pck` in each frame: the same for persons of every size."""
    length = _lengths(target)[:, None]
    both = target.seen & found.seen & (length > 0)
    return _mean((_distances(target, found) / np.where(length > 0, length, 1.0))[both])


def limb_angle(target: Keypoints, found: Keypoints) -> float | None:
    """Mean angle in degrees, 0 to 180, lower is better, between the target's 13 limbs and the found ones.

    It does not change when the person stands elsewhere or is larger. Limbs without length do not count.
    """
    both = target.seen & found.seen
    start, end = (list(ends) for ends in zip(*LIMBS, strict=True))
    wanted, own = (each.points[:, end] - each.points[:, start] for each in (target, found))
    cross = wanted[..., 0] * own[..., 1] - wanted[..., 1] * own[..., 0]
    dot = (wanted * own).sum(axis=2)
    has_length = (np.abs(wanted).max(axis=2) > 0) & (np.abs(own).max(axis=2) > 0)
    angles = np.degrees(np.abs(np.arctan2(cross, dot)))
    return _mean(angles[both[:, start] & both[:, end] & has_length])


def jitter(target: Keypoints, found: Keypoints) -> float | None:
    """Mean length of ``(p[t+1] - 2 p[t] + p[t-1]) - (g[t+1] - 2 g[t] + g[t-1])`` over L, lower is better.

    The acceleration error of Kanazawa et al. 2019, there of joints in space in millimetres, here in the picture, in
    parts of L of :func:`pck` at frame t. A joint counts where both have it in all three frames.
    """
    if len(target) < _FEWEST_STEPS:
        return None
    _check_lengths(target, found)
    both = target.seen & found.seen
    length = _lengths(target)[1:-1, None]
    difference = np.diff(found.points - target.points, n=2, axis=0)
    counted = both[2:] & both[1:-1] & both[:-2] & (length > 0)
    return _mean((np.linalg.norm(difference, axis=2) / np.where(length > 0, length, 1.0))[counted])


def velocity_correlation(target: Keypoints, found: Keypoints, lag: int = 0) -> float | None:
    """Pearson's correlation, -1 to 1, higher is better, of all joints' steps from frame to frame in x and y.

    Steps of the found pose are compared with those of the target ``lag`` frames before. None without motion, or with
    fewer than three steps in common.
    """
    _check_lengths(target, found)
    wanted, own = _steps(target), _steps(found)
    count = len(wanted) - abs(lag)
    if count < _FEWEST_STEPS:
        return None
    first, second = wanted[max(0, -lag) :][:count].ravel(), own[max(0, lag) :][:count].ravel()
    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < _FEWEST_STEPS:
        return None
    a, b = (each[both] - each[both].mean() for each in (first, second))
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / size) if size > 1e-9 else None


def best_lag(target: Keypoints, found: Keypoints, limit: int = MAX_LAG) -> int | None:
    """By how many frames, at most ``limit`` either way, the found motion comes late; best is 0.

    The smallest lag whose :func:`velocity_correlation` is within 0.01 of the largest: a steady motion is as like to
    itself at any other. At least three quarters of the steps overlap. It tells delays as they arise where blocks meet.
    None without motion.
    """
    limit = min(limit, max(0, (len(target) - 1) // 4))
    lags = sorted(range(-limit, limit + 1), key=abs)
    found_at = {lag: value for lag in lags if (value := velocity_correlation(target, found, lag)) is not None}
    if not found_at:
        return None
    largest = max(found_at.values())
    return next(lag for lag, value in found_at.items() if value >= largest - _SAME_CORRELATION)


def _steps(poses: Keypoints) -> Floats:
    """Motion [T-1, 18, 2] from frame to frame, NaN where a joint is not seen in both."""
    both = (poses.seen[1:] & poses.seen[:-1])[..., None]
    return np.where(both, np.diff(poses.points, axis=0), np.nan)


def _lengths(target: Keypoints) -> Floats:
    return np.maximum(*person_boxes(target))


def _distances(target: Keypoints, found: Keypoints) -> Floats:
    """[T, 18] in pixels, infinite where a joint is not seen in both."""
    _check_lengths(target, found)
    distances = np.linalg.norm(found.points - target.points, axis=2)
    return np.where(target.seen & found.seen, distances, np.inf)


def _check_lengths(target: Keypoints, found: Keypoints) -> None:
    if len(target) != len(found):
        raise RequestError(
            f"poses of {len(target)} and {len(found)} frames cannot be compared; give one for each frame"
        )


def _mean(values: NDArray[np.float64] | Bools) -> float | None:
    return float(values.mean()) if values.size else None
