"""133 points of a person: what goes into DWPose's RTMPose and what its outputs mean.

DWPose (Yang et al. 2023, arXiv 2307.15880), RTMPose (Jiang et al. 2023) and SimCC (Li et al. 2022) with the published
weights; the code is our own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from selfforcing_unianimate.backends import opencv

INPUT_SIZE = (288, 384)
"""Width and height."""
SPLIT = 2.0
"""Positions that the outputs tell apart for each pixel."""

_PADDING = 1.25
# Of RGB, and put on BGR: the published weights are run so.
_MEAN = np.array([123.675, 116.28, 103.53], dtype=np.float32)
_DEVIATION = np.array([58.395, 57.12, 57.375], dtype=np.float32)

Pixels = NDArray[np.uint8]
Array = NDArray[np.float32]


class Crop(NamedTuple):
    """The part of a picture that is looked at: its centre (x, y) and its sides (width, height), in pixels."""

    centre: Array
    sides: Array


def padded_crop(box: NDArray[Any], padding: float = _PADDING) -> Crop:
    """A box (left, top, right, bottom) with room around it."""
    low, high = np.asarray(box[:2], dtype=np.float32), np.asarray(box[2:], dtype=np.float32)
    return Crop((low + high) / np.float32(2), (high - low) * np.float32(padding))


def with_aspect(crop: Crop, size: tuple[int, int] = INPUT_SIZE) -> Crop:
    """The crop with one side enlarged until it has the aspect of the input."""
    aspect = size[0] / size[1]
    width, height = (float(side) for side in crop.sides)
    sides = (width, width / aspect) if width > height * aspect else (height * aspect, height)
    return Crop(crop.centre, np.array(sides, dtype=np.float32))


def warp_matrix(crop: Crop, size: tuple[int, int] = INPUT_SIZE) -> NDArray[np.float64]:
    """The affine map [2, 3] from pixels of the picture to those of the input; its scale is that of the widths."""
    scale = size[0] / float(crop.sides[0])
    shift = np.array(size) / 2 - scale * crop.centre.astype(np.float64)
    return np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])


def network_input(picture: Pixels, crop: Crop, size: tuple[int, int] = INPUT_SIZE) -> Array:
    """The crop of a BGR picture [H, W, 3] as [1, 3, height, width]."""
    cv2 = opencv()
    warped = cv2.warpAffine(picture, warp_matrix(crop, size), size, flags=cv2.INTER_LINEAR)
    normal = (warped.astype(np.float32) - _MEAN) / _DEVIATION
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None], dtype=np.float32)


def decode_positions(along_x: Array, along_y: Array, split: float = SPLIT) -> tuple[Array, Array]:
    """Points [N, K, 2] in pixels of the input, and their scores [N, K], from [N, K, positions] along both axes.

    The score is the lower of the two maxima; without a positive one the position is -1 before the split.
    """
    places = np.stack([along_x.argmax(axis=2), along_y.argmax(axis=2)], axis=2).astype(np.float32)
    scores = np.minimum(along_x.max(axis=2), along_y.max(axis=2)).astype(np.float32)
    places[scores <= 0] = -1
    return places / np.float32(split), scores


def in_picture(points: Array, crop: Crop, size: tuple[int, int] = INPUT_SIZE) -> Array:
    """Points in pixels of the input as those in pixels of the picture."""
    share = points / np.array(size, dtype=np.float32)
    return np.asarray(share * crop.sides + crop.centre - crop.sides / 2, dtype=np.float32)
