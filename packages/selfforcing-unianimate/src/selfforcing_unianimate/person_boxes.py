"""Persons in pictures: what goes into YOLOX and what its outputs mean.

YOLOX (Ge et al. 2021, arXiv 2107.08430) with its published weights; the code is our own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from selfforcing_unianimate.backends import opencv
from wan_core.animate import without_overlaps

INPUT_SIZE = 640
STRIDES = (8, 16, 32)
NUM_VALUES = 85
"""Of each cell: a box, how likely there is something, and 80 classes of COCO; the first is a person."""

_PADDING = 114
_OVERLAP = 0.45
_POSSIBLE = 0.1
_CERTAIN = 0.3

Pixels = NDArray[np.uint8]
Array = NDArray[np.float32]


def num_cells(size: int = INPUT_SIZE) -> int:
    """How many places of a square the network looks at."""
    return sum((size // stride) ** 2 for stride in STRIDES)


def letterbox(picture: Pixels, size: int = INPUT_SIZE) -> tuple[Array, float]:
    """A picture [H, W, 3] scaled into the upper left of a grey square: [3, size, size] in 0..255, and the scale."""
    height, width = picture.shape[:2]
    ratio = min(size / height, size / width)
    inner = max(1, int(width * ratio)), max(1, int(height * ratio))
    cv2 = opencv()
    square = np.full((size, size, 3), _PADDING, dtype=np.uint8)
    square[: inner[1], : inner[0]] = cv2.resize(picture, inner, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(square.transpose(2, 0, 1), dtype=np.float32), ratio


def person_boxes(
    output: Array,
    ratio: float,
    size: int = INPUT_SIZE,
    *,
    overlap: float = _OVERLAP,
    possible: float = _POSSIBLE,
    certain: float = _CERTAIN,
) -> Array:
    """The persons in the output [1, cells, 85] for a picture of this scale: boxes [N, 4], the surest first.

    Boxes are left, top, right, bottom in pixels of the picture. Of those with scores above ``possible``, none of which
    has more than ``overlap`` in common with a surer one, those above ``certain`` are given.
    """
    cells = output[0].astype(np.float32)
    grids, strides = _grid(size)
    with np.errstate(over="ignore", invalid="ignore"):
        centre, sides = (cells[:, :2] + grids) * strides, np.exp(cells[:, 2:4]) * strides
        boxes = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1) / np.float32(ratio)
        scores = cells[:, 4] * cells[:, 5]
    known = (scores > possible) & np.isfinite(boxes).all(axis=1)
    boxes, scores = boxes[known], scores[known]
    kept = without_overlaps(boxes, scores.argsort()[::-1], overlap, margin=1.0)
    return np.asarray(boxes[[index for index in kept if scores[index] > certain]])


def _grid(size: int) -> tuple[Array, Array]:
    """Column and row [cells, 2] of every cell, and its stride [cells, 1]."""
    grids, strides = [], []
    for stride in STRIDES:
        side = size // stride
        rows, columns = np.divmod(np.arange(side * side), side)
        grids.append(np.stack([columns, rows], axis=1))
        strides.append(np.full((side * side, 1), stride))
    return np.concatenate(grids).astype(np.float32), np.concatenate(strides).astype(np.float32)
