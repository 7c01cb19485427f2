"""Skeletons as pictures: coloured limbs, joints and hands, pixel by pixel as Wan-Animate was trained with them.

Drawn as in OpenPose's demo (Cao et al. 2019), rasterised by OpenCV; the code is our own.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wan_core.animate.keypoints import LIMBS, Skeleton
from wan_core.animate.opencv import opencv

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

HUES = tuple(tuple(round(255 * level) for level in colorsys.hsv_to_rgb(step / 18, 1.0, 1.0)) for step in range(18))
"""The colours of joints and limbs in their order, 20 degrees of hue apart: red, green, blue."""
_COLOURS = (*HUES, (200, 200, 0), (100, 100, 0))
_DIMMED = 0.6
_SEEN = 0.5
_FARTHEST = 1e6  # pixels; OpenCV takes no integers of any size
_FINGERS = tuple(
    (0 if joint == first else joint - 1, joint) for first in (1, 5, 9, 13, 17) for joint in range(first, first + 4)
)
"""Four pieces of each finger, from the wrist."""
_TIP = (0, 0, 255)


def line_width(height: int, width: int) -> int:
    """Half the width of limbs and the radius of joints on a canvas of this size, in pixels."""
    return max(int(min(height, width) / 200) - 1, 1)


def draw_pose(canvas: Pixels, skeleton: Skeleton, threshold: float = _SEEN) -> Pixels:
    """The skeleton on the ``canvas`` [H, W, 3] (RGB), which is changed and returned.

    Limbs, then joints, then the left and the right hand; what has a score below ``threshold`` is left out, and so are
    points of hands at or outside the left and upper edge. Raises BackendError without OpenCV.
    """
    cv2, half = opencv(), line_width(*canvas.shape[:2])
    finger = max(half // 2, 1)
    seen = _is_drawn(skeleton.body, threshold)
    for (start, end), colour in zip(LIMBS, _COLOURS, strict=False):
        if seen[start] and seen[end]:
            dimmed = [int(level * _DIMMED) for level in colour]
            draw_limb(canvas, skeleton.body[start], skeleton.body[end], half, dimmed)
    for (x, y, _), colour, is_seen in zip(skeleton.body, _COLOURS, seen, strict=True):
        if is_seen:
            cv2.circle(canvas, (int(x), int(y)), half, colour, thickness=-1)
    for hand in (skeleton.left_hand, skeleton.right_hand):
        visible = np.where(_is_drawn(hand, threshold)[:, None], hand[:, :2], -1.0)
        draw_hand(canvas, visible, radius=finger, thickness=finger)
    return canvas


def _is_drawn(points: Floats, threshold: float) -> NDArray[np.bool_]:
    """[N]: points (x, y, score) that are seen, and are not where no pixel of any canvas is (NaN is not, either)."""
    return np.asarray((points[:, 2] >= threshold) & (np.abs(points[:, :2]) < _FARTHEST).all(axis=1))


def draw_limb(canvas: Pixels, start: Floats, end: Floats, half_width: int, colour: Sequence[int]) -> None:
    """A limb between two points (x, y, ...) in pixels, on the canvas: a filled ellipse of whole degrees."""
    cv2 = opencv()
    (x0, y0), (x1, y1) = start[:2], end[:2]
    middle = int((x0 + x1) / 2), int((y0 + y1) / 2)
    half = int(((y0 - y1) ** 2 + (x0 - x1) ** 2) ** 0.5 / 2)
    angle = int(math.degrees(math.atan2(y0 - y1, x0 - x1)))
    cv2.fillConvexPoly(canvas, cv2.ellipse2Poly(middle, (half, half_width), angle, 0, 360, 1), colour)


def draw_hand(canvas: Pixels, points: Floats, *, radius: int, thickness: int) -> None:
    """A hand's points [21, 2] in pixels on the canvas: fingers in the colours of the rainbow, then blue discs.

    Points that are not right of and below the edges are left out, with the pieces of fingers they end.
    """
    cv2 = opencv()
    pixels = [(int(x), int(y)) for x, y in points]
    for index, (start, end) in enumerate(_FINGERS):
        if min(*pixels[start], *pixels[end]) > 0:
            colour = [255 * level for level in colorsys.hsv_to_rgb(index / len(_FINGERS), 1.0, 1.0)]
            cv2.line(canvas, pixels[start], pixels[end], colour, thickness=thickness)
    for x, y in pixels:
        if min(x, y) > 0:
            cv2.circle(canvas, (x, y), radius, _TIP, thickness=-1)
