"""Boxes about persons and faces."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def without_overlaps(
    boxes: NDArray[Any], order: NDArray[np.intp], threshold: float, *, margin: float = 0.0
) -> list[int]:
    """Indices of the boxes [N, 4] to keep, in the ``order`` [N] given, the best first.

    A box goes where it and a better one share more than ``threshold`` (0 to 1) of what both cover; two without any
    area share all. Boxes are left, top, right, bottom; ``margin`` is added to the sides, 1 where right and bottom are
    the last pixels inside.
    """
    areas = np.maximum(boxes[:, 2:] - boxes[:, :2] + margin, 0).prod(axis=1)
    kept: list[int] = []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        sides = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(boxes[best, :2], boxes[rest, :2]) + margin
        common = np.maximum(sides, 0).prod(axis=1)
        covered = areas[best] + areas[rest] - common
        shared = np.divide(common, covered, out=np.ones_like(covered), where=covered > 0)
        order = rest[shared <= threshold]
    return kept
