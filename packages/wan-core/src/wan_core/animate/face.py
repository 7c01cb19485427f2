"""Where the face of a frame is cut out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wan_core.animate.opencv import opencv
from wan_core.errors import MediaError

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

FACE_SIDE = 512
"""Pixels of a crop's sides, whatever the box's aspect."""
_SCALE = 1.3


class FaceBox(NamedTuple):
    """A part of a frame, in whole pixels; right and bottom are outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def is_empty(self) -> bool:
        """Whether no pixel is inside."""
        return self.right <= self.left or self.bottom <= self.top


def face_box(points: Floats, height: int, width: int, scale: float = _SCALE) -> FaceBox | None:
    """The box about the face of `PosePoints.face` (points [69, 2 or 3] as shares), in a frame of this size.

    Its area is ``scale`` times that of the points but the first, its aspect the same; three quarters of what it grows
    in height go above. None where nothing of it is inside the frame, or the points span no area.
    """
    places = points[1:, :2] * (width, height)
    if not np.isfinite(places).all():
        return None
    (left, top), (right, bottom) = places.min(axis=0), places.max(axis=0)
    wide, high = right - left, bottom - top
    if min(wide, high) <= 0:
        return None
    area = wide * high * scale
    grow_x = (np.sqrt(area * (wide / high)) - wide) / 2
    grow_y = (np.sqrt(area * (high / wide)) - high) / 4
    sides = max(left - grow_x, 0), max(top - 3 * grow_y, 0), min(right + grow_x, width), min(bottom + grow_y, height)
    box = FaceBox(*map(int, sides))
    return None if box.is_empty else box


def fill_boxes(boxes: Sequence[FaceBox | None]) -> list[FaceBox]:
    """The boxes of a video's frames; where there is none, the one before, and at the start the first there is.

    Raises MediaError where no frame has one.
    """
    known = next((box for box in boxes if box), None)
    if known is None:
        raise MediaError("no frame shows a face; take a video in which the person's face is seen")
    filled = []
    for box in boxes:
        known = box or known
        filled.append(known)
    return filled


def crop_face(frame: Pixels, box: FaceBox, side: int = FACE_SIDE) -> Pixels:
    """The box of a frame [H, W, 3] as a square [side, side, 3], bilinear. Raises BackendError without OpenCV."""
    part = np.ascontiguousarray(frame[box.top : box.bottom, box.left : box.right])
    return np.asarray(opencv().resize(part, (side, side)), dtype=np.uint8)
