"""Poses as arrays: 133 detected points become OpenPose's body with toes, a face and two hands.

Points of COCO-WholeBody (Jin et al. 2020) in the order of OpenPose (Cao et al. 2019), as DWPose's users have them; the
code is our own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NUM_DETECTED = 133
NUM_POINTS = 134
"""Detected points, and those with the neck between the shoulders."""
VISIBLE = 0.3
"""Points with a lower score count as not seen."""
INVISIBLE = -1.0
"""Both coordinates of a point that was not seen."""

_NECK = 17
_SHOULDERS = (5, 6)
_OPENPOSE = [1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17]
_DETECTED = [17, 6, 8, 10, 7, 9, 12, 14, 16, 13, 15, 2, 1, 4, 3]
_BODY = slice(0, 18)
_TOES = ([18, 19], [21, 22])  # big and small toe, left then right
_FACE = slice(24, 92)
_HANDS = slice(92, 134)


@dataclass(frozen=True)
class Poses:
    """One person in T frames: all coordinates are (x, y), 0 to 1 of the picture's width and height, float64.

    ``body`` [T, 20, 2] are OpenPose's 18 joints, left and right toes; ``subset`` [T, 20] is the joint's own index, or
    -1 where it was not seen; ``faces`` [T, 68, 2]; ``hands`` [T, 2, 21, 2], left then right. A point that was not seen
    is (-1, -1). ``scores`` [T, 134] are those of the detector, in the order of :func:`openpose_order`.
    """

    body: Floats
    subset: Floats
    faces: Floats
    hands: Floats
    scores: Floats

    def __len__(self) -> int:
        return len(self.body)

    def __getitem__(self, index: slice) -> Self:
        return type(self)(*(getattr(self, item.name)[index] for item in fields(self)))

    @property
    def has_person(self) -> NDArray[np.bool_]:
        """[T]: whether at least one joint of the body was seen."""
        return np.asarray((self.subset >= 0).any(axis=1))


def openpose_order(keypoints: NDArray[Any], scores: NDArray[Any]) -> tuple[Floats, Floats]:
    """Points [T, 133, 2] and scores [T, 133] with a neck, in OpenPose's order: [T, 134, 2] and [T, 134].

    The neck is the middle of the shoulders; its score is 1 where both were seen, else 0.
    """
    points, score = keypoints.astype(np.float64), scores.astype(np.float64)
    neck = points[:, _SHOULDERS].mean(axis=1)
    seen = (scores[:, _SHOULDERS] > VISIBLE).all(axis=1)
    points = np.insert(points, _NECK, neck, axis=1)
    score = np.insert(score, _NECK, seen, axis=1)
    ordered, ordered_score = points.copy(), score.copy()
    ordered[:, _OPENPOSE], ordered_score[:, _OPENPOSE] = points[:, _DETECTED], score[:, _DETECTED]
    return ordered, ordered_score


def poses_of(keypoints: NDArray[Any], scores: NDArray[Any], width: int, height: int) -> Poses:
    """The poses of one person's detected points [T, 133, 2], in pixels of a picture, and their scores [T, 133]."""
    points, score = openpose_order(keypoints, scores)
    points = points / (width, height)
    points[score < VISIBLE] = INVISIBLE
    body, subset = points[:, _BODY], np.where(score[:, _BODY] > VISIBLE, np.arange(18.0), -1.0)
    for index, toes in enumerate(_TOES, start=18):
        hidden = (score[:, toes] < VISIBLE).any(axis=1, keepdims=True)
        toe = np.where(hidden, INVISIBLE, points[:, toes].mean(axis=1))
        seen = np.where((score[:, toes] > VISIBLE).all(axis=1), float(index), -1.0)
        body, subset = np.concatenate([body, toe[:, None]], axis=1), np.concatenate([subset, seen[:, None]], axis=1)
    hands = points[:, _HANDS].reshape(-1, 2, 21, 2)
    return Poses(body=body, subset=subset, faces=points[:, _FACE], hands=hands, scores=score)
