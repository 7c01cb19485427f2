"""A person in a frame: body, hands and face as points with scores.

Points of COCO-PosePoints (Jin et al. 2020), the body in the order of OpenPose (Cao et al. 2019) with two toes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wan_core.errors import MediaError

Floats = NDArray[np.float64]

NOSE, NECK = 0, 1
RIGHT_SHOULDER, RIGHT_ELBOW, RIGHT_WRIST = 2, 3, 4
LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST = 5, 6, 7
RIGHT_HIP, RIGHT_KNEE, RIGHT_ANKLE = 8, 9, 10
LEFT_HIP, LEFT_KNEE, LEFT_ANKLE = 11, 12, 13
RIGHT_EYE, LEFT_EYE, RIGHT_EAR, LEFT_EAR = 14, 15, 16, 17
LEFT_TOE, RIGHT_TOE = 18, 19
NUM_BODY, NUM_HAND, NUM_FACE = 20, 21, 69
NUM_DETECTED = 133
"""Points of the detector: 17 of the body, 6 of the feet, 68 of the face, 21 of each hand."""

LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17), (13, 18), (10, 19),
)  # fmt: skip
"""Pairs of points of the body, from the neck outwards, in the order in which they are drawn and measured."""

# Each point of the body is the middle of two detected ones: the neck of the shoulders, a toe of the big and the small.
_FIRST = [0, 6, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3, 17, 20]
_SECOND = [0, 5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3, 18, 21]
_LEFT_HAND, _RIGHT_HAND = slice(91, 112), slice(112, 133)
_FACE = slice(22, 91)


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """What is drawn: points (x, y, score) of ``body`` [20, 3] and hands [21, 3], x and y in pixels of a canvas.

    A point that is not there is NaN, or has the score 0.
    """

    body: Floats
    left_hand: Floats
    right_hand: Floats


@dataclass(frozen=True, kw_only=True)
class PosePoints:
    """A person in one frame: points (x, y, score), x and y as shares of the frame's ``width`` and ``height`` (pixels).

    ``body`` [20, 3], ``left_hand`` and ``right_hand`` [21, 3], ``face`` [69, 3], float64. The first point of the face
    is one of the feet, and never used: the release takes one too many. A point of the body that is missing is NaN.
    """

    body: Floats
    left_hand: Floats
    right_hand: Floats
    face: Floats
    width: int
    height: int

    def in_pixels(self) -> Skeleton:
        """Body and hands in pixels of the frame."""
        size = np.array([self.width, self.height, 1.0])
        return Skeleton(body=self.body * size, left_hand=self.left_hand * size, right_hand=self.right_hand * size)


def split_points(points: Floats, width: int, height: int, previous: PosePoints | None = None) -> PosePoints:
    """The person of detected ``points`` [133, 3] (x, y in pixels of a frame of this size, score).

    Where every point of the body lies left of or above the frame nobody was seen: the body is then the ``previous``
    one. Raises MediaError where there is none.
    """
    shares = np.asarray(points, dtype=np.float64) / np.array([width, height, 1.0])
    body = (shares[_FIRST] + shares[_SECOND]) / 2
    if (body[:, :2].min(axis=1) < 0).all():
        if previous is None:
            raise MediaError("no person was found in the first frame; begin where a whole person is seen")
        body = previous.body
    return PosePoints(
        body=body,
        left_hand=shares[_LEFT_HAND],
        right_hand=shares[_RIGHT_HAND],
        face=shares[_FACE],
        width=width,
        height=height,
    )
