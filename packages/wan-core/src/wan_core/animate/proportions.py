"""What two persons' bodies have in common: sizes, the part that is seen, lengths of limbs.

Rules and thresholds of Wan-Animate's release; the code is our own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wan_core.animate import keypoints as at
from wan_core.animate.keypoints import LIMBS, PosePoints

Floats = NDArray[np.float64]

SEEN = 0.4
"""Points with a lower score do not tell which part of a body is seen, and are dropped from hands."""
SHOULDERS = 0, 1
"""The limbs from the neck to both shoulders."""
UNKNOWN = -1.0
"""The ratio of a limb that one of two bodies lacks."""

_MEASURED = 0.5
_FIRST, _LAST = (np.array(ends) for ends in zip(*LIMBS, strict=True))
_HEAD = (at.NOSE, at.RIGHT_EYE, at.LEFT_EYE, at.RIGHT_EAR, at.LEFT_EAR)
_HIPS, _ANKLES = (at.RIGHT_HIP, at.LEFT_HIP), (at.RIGHT_ANKLE, at.LEFT_ANKLE)
_CHAINS = (
    (at.RIGHT_SHOULDER, at.RIGHT_ELBOW, at.RIGHT_WRIST),
    (at.LEFT_SHOULDER, at.LEFT_ELBOW, at.LEFT_WRIST),
    (at.LEFT_HIP, at.LEFT_KNEE, at.LEFT_ANKLE, at.LEFT_TOE),
    (at.RIGHT_HIP, at.RIGHT_KNEE, at.RIGHT_ANKLE, at.RIGHT_TOE),
)
# Limbs that are repaired, each beside that of the other side.
_MIRRORED = (
    ((2, 3), (3, 4), (11, 12), (12, 13), (13, 18)),
    ((5, 6), (6, 7), (8, 9), (9, 10), (10, 19)),
)
_ARMS, _FOOT = 2, 4  # of those: the first two, and the last
# Limbs by their place in LIMBS: the longer ratio counts for both, or the mean.
_LARGER = ((0, 1), (2, 4), (3, 5), (6, 9), (7, 10), (8, 11), (17, 18))
_AVERAGED = ((13, 15), (14, 16))


class Shown(IntEnum):
    """The part of a body that is in the frame; of two the lower one is in both."""

    HALF = 0
    THREE_QUARTERS = 1
    FULL = 2


@dataclass(frozen=True)
class Figure:
    """A body's ``points`` [20, 3] (x, y as shares of a frame, score; NaN where missing) and the frame's sides."""

    points: Floats
    width: int
    height: int

    @classmethod
    def of(cls, person: PosePoints) -> Self:
        """The body of a person."""
        return cls(np.array(person.body, dtype=np.float64), person.width, person.height)

    @property
    def missing(self) -> NDArray[np.bool_]:
        """[20]: which points are not there."""
        return np.asarray(np.isnan(self.points).any(axis=1))

    @property
    def pixels(self) -> Floats:
        """[20, 2], x and y."""
        return self.points[:, :2] * (self.width, self.height)

    def scaled(self, ratio: float) -> Self:
        """In a frame with sides ``ratio`` times as long, cut to whole pixels."""
        return replace(self, width=int(self.width * ratio), height=int(self.height * ratio))

    def without(self, missing: NDArray[np.bool_]) -> Self:
        """Without these points, too."""
        return replace(self, points=np.where(missing[:, None], np.nan, self.points))

    def distance(self, first: int, second: int) -> float:
        """Between two points in pixels; NaN where one is missing."""
        return float(np.hypot(*(self.pixels[first] - self.pixels[second])))


def size_ratio(figure: Figure, other: Figure) -> tuple[float, bool]:
    """How many times as long ``figure`` is as ``other``, in pixels of their frames, and whether it was measured.

    From the nose down to the middle of the ankles or, where one is not seen in both with a score above 0.5, of the
    hips; otherwise the ratio of the frames' sides, and False.
    """
    for feet in (_ANKLES, _HIPS):
        wanted = [at.NOSE, *feet]
        if all((each.points[wanted, 2] > _MEASURED).all() for each in (figure, other)):
            heights = [_span(each, feet) for each in (figure, other)]
            if heights[1] > 0 and heights[0] > 0:
                return heights[0] / heights[1], True
    return float(np.sqrt(figure.height * figure.width) / np.sqrt(other.height * other.width)), False


def _span(figure: Figure, feet: tuple[int, int]) -> float:
    return float(figure.height * abs(figure.points[list(feet), 1].mean() - figure.points[at.NOSE, 1]))


def edit_ratio(figure: Figure, edited: Figure) -> float:
    """How many times as wide a person is as after an edit: the larger of the heads' and the shoulders' ratio.

    Heads are measured as shares of the frame, shoulders in pixels. What one of them lacks does not count; 1 where
    nothing does.
    """
    heads = [np.ptp(each.points[list(_HEAD), 0]) for each in (figure, edited)]
    shoulders = [each.distance(at.RIGHT_SHOULDER, at.LEFT_SHOULDER) for each in (figure, edited)]
    known = [own / other for own, other in (heads, shoulders) if own > 0 and other > 0]
    return float(max(known, default=1.0))


def shown_part(figure: Figure, threshold: float = SEEN) -> Shown:
    """The part that is seen: hips and ankles, the hips alone, or less.

    Seen is what has a score of at least ``threshold`` and does not lie below the frame.
    """
    seen = (figure.points[:, 1] <= 1) & (figure.points[:, 2] >= threshold)
    if not seen[list(_HIPS)].all():
        return Shown.HALF
    return Shown.FULL if seen[list(_ANKLES)].all() else Shown.THREE_QUARTERS


def repaired(figure: Figure) -> Figure:
    """Arms and legs with what is missing of them, hanging straight down from what is there.

    What follows a missing point goes first. Then a limb gets the length of the same one of the other side, or that
    of the torso (half for arms; a fifth for feet, but only as measured to the left hip, as in the release). A limb
    whose start is missing, or for which nothing tells a length, stays away. New points have the score of their start.
    """
    points = figure.points.copy()
    for chain in _CHAINS:
        gone = np.maximum.accumulate(np.isnan(points[list(chain)]).any(axis=1))
        points[np.array(chain)[gone]] = np.nan
    whole = replace(figure, points=points)  # of the same array
    for side, limbs in enumerate(_MIRRORED):
        for index, (start, end) in enumerate(limbs):
            if np.isnan(points[start]).any() or not np.isnan(points[end]).any():
                continue
            length = whole.distance(*_MIRRORED[1 - side][index])
            if np.isnan(length):
                length = _torso_length(whole, index)
            if length > 0:
                points[end] = points[start] + (0.0, length / figure.height, 0.0)
    return whole


def _torso_length(figure: Figure, index: int) -> float:
    right, left = (figure.distance(at.NECK, hip) for hip in _HIPS)
    if index < _ARMS:
        right, left = right / 2, left / 2
    elif index == _FOOT:
        left /= 5
    return float(np.fmax(np.fmax(right, left), 0.0))


def bone_ratios(driving: Figure, reference: Figure, factor: float = 1.0) -> Floats:
    """How many times as long each limb [19] of ``reference`` is as that of ``driving``, in pixels, times ``factor``.

    A limb that one of them lacks has the mean of both shoulders' ratios where they are known, else -1. Of the same
    limb left and right the larger counts for both, about eyes and ears the mean.
    """
    own, wanted = (np.hypot(*(each.pixels[_LAST] - each.pixels[_FIRST]).T) for each in (driving, reference))
    is_known = (own > 0) & ~np.isnan(wanted)
    ratios = np.full(len(LIMBS), UNKNOWN)
    ratios[is_known] = wanted[is_known] / own[is_known] * factor
    if is_known[list(SHOULDERS)].all():
        ratios[~is_known] = ratios[list(SHOULDERS)].mean()
    for pair in _LARGER:
        ratios[list(pair)] = ratios[list(pair)].max()
    for pair in _AVERAGED:
        ratios[list(pair)] = ratios[list(pair)].mean()
    return ratios
