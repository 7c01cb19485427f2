"""Keypoints in pixels, as metrics take them, and where they may come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from selfforcing_unianimate.keypoints import VISIBLE, Floats, Poses
from wan_core import RequestError

NUM_JOINTS = 18
"""OpenPose's body: nose, neck, right and left arms, right and left legs, eyes, ears."""

Bools = NDArray[np.bool_]
Frames = NDArray[np.uint8]
"""A clip [T, H, W, 3], red, green, blue."""


@dataclass(frozen=True)
class Keypoints:
    """One person in T frames: ``points`` [T, 18, 2] (x, y) in pixels, ``scores`` [T, 18] from 0 to 1.

    A joint is seen when its score is above 0.3; another one is put at (0, 0), and its place means nothing. Raises
    RequestError for other shapes, and for seen joints that are no numbers.
    """

    points: Floats
    scores: Floats

    def __post_init__(self) -> None:
        shapes = (self.points.shape, self.scores.shape)
        if shapes != ((len(self.points), NUM_JOINTS, 2), (len(self.points), NUM_JOINTS)):
            raise RequestError(f"keypoints are [T, 18, 2] with scores [T, 18], got {[list(each) for each in shapes]}")
        if not np.isfinite(self.points[self.seen]).all():
            raise RequestError("keypoints that count as seen hold NaN or infinity; give those a score of 0")
        object.__setattr__(self, "points", np.where(self.seen[..., None], self.points, 0.0))

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: Any) -> Self:
        """The keypoints of some frames: a slice or a list of numbers."""
        return type(self)(self.points[index], self.scores[index])

    @property
    def seen(self) -> Bools:
        """[T, 18]: which joints count."""
        return np.asarray(self.scores > VISIBLE)

    def inside(self, width: int, height: int) -> Self:
        """The same without the joints that lie outside of a picture: what no frame can show."""
        low, high = (self.points >= 0).all(axis=2), (self.points < (width, height)).all(axis=2)
        return type(self)(self.points, np.where(low & high, self.scores, 0.0))


class KeypointDetector(Protocol):
    """What finds one person in the frames of a clip; a frame without one has scores of 0."""

    def keypoints(self, frames: Frames) -> Keypoints:
        """The joints in every frame of [T, H, W, 3]."""


def body_keypoints(poses: Poses, width: int, height: int) -> Keypoints:
    """The body of poses, in pixels of a picture of this size."""
    body = slice(0, NUM_JOINTS)
    scores = np.where(poses.subset[:, body] >= 0, poses.scores[:, body], 0.0)
    return Keypoints(poses.body[:, body] * (width, height), scores)
