"""Skeletons as pictures: OpenPose's coloured limbs, joints and hands, pixel by pixel as the networks know them.

Drawn as in OpenPose's and DWPose's demos (Cao et al. 2019, Yang et al. 2023); rasterised by OpenCV; the code is ours.
"""

from __future__ import annotations

import colorsys
import math

import numpy as np
from numpy.typing import NDArray

from selfforcing_unianimate.backends import opencv
from selfforcing_unianimate.keypoints import Poses

Pixels = NDArray[np.uint8]

CANVAS = (512, 768)
"""Width and height of the pictures that the reference draws after aligning, whatever the size of a video."""

# Pairs of joints, counted from 1.
_LIMBS = (
    (2, 3), (2, 6), (3, 4), (4, 5), (6, 7), (7, 8), (2, 9), (9, 10), (10, 11), (2, 12), (12, 13), (13, 14), (2, 1),
    (1, 15), (15, 17), (1, 16), (16, 18), (14, 19), (11, 20),
)  # fmt: skip
_COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255),
    (255, 0, 255), (255, 0, 170), (255, 0, 85), (170, 255, 255), (255, 255, 0),
)  # fmt: skip
_FINGERS = tuple(
    (0 if joint == first else joint - 1, joint) for first in (1, 5, 9, 13, 17) for joint in range(first, first + 4)
)
_HALF_WIDTH = 4
_RADIUS = 4
_FACE_RADIUS = 3
_DIMMED = (np.arange(256) * 0.6).astype(np.uint8)
"""What becomes of every level of the limbs before the joints are drawn."""
_EDGE = 0.01


def draw(poses: Poses, width: int, height: int, *, with_face: bool = False) -> Pixels:
    """The first pose on black: [height, width, 3], colours in the order of the tables here.

    What a network sees has the first and third channel exchanged: :func:`model_picture`. Raises BackendError without
    OpenCV.
    """
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    size = np.array([width, height], dtype=np.float64)
    _draw_body(canvas, poses.body[0] * size, poses.subset[0])
    for hand in poses.hands[0]:
        _draw_hand(canvas, hand * size)
    if with_face:
        for x, y in _pixels(poses.faces[0] * size):
            if min(x, y) > _EDGE:
                opencv().circle(canvas, (x, y), _FACE_RADIUS, (255, 255, 255), thickness=-1)
    return canvas


def model_picture(poses: Poses, width: int, height: int) -> Pixels:
    """The first pose as UniAnimate's networks see it: drawn without face at the reference's size, scaled bilinearly.

    The reference writes its pictures as if they were blue, green, red and reads them as red, green, blue, so channels
    0 and 2 change places. It also keeps them as JPEG in between, which is left out here.
    """
    from PIL import Image

    cv2 = opencv()
    picture = Image.fromarray(cv2.cvtColor(draw(poses, *CANVAS), cv2.COLOR_BGR2RGB))
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR))


def _draw_body(canvas: Pixels, body: NDArray[np.float64], subset: NDArray[np.float64]) -> None:
    cv2 = opencv()
    for colour, pair in zip(_COLOURS, _LIMBS, strict=False):
        ends = [int(subset[joint - 1]) for joint in pair]
        if -1 in ends:
            continue
        (x0, y0), (x1, y1) = body[ends[0]], body[ends[1]]
        middle = int((x0 + x1) / 2), int((y0 + y1) / 2)
        half = int(((y0 - y1) ** 2 + (x0 - x1) ** 2) ** 0.5 / 2)
        angle = int(math.degrees(math.atan2(y0 - y1, x0 - x1)))
        cv2.fillConvexPoly(canvas, cv2.ellipse2Poly(middle, (half, _HALF_WIDTH), angle, 0, 360, 1), colour)
    cv2.LUT(canvas, _DIMMED, dst=canvas)
    for colour, joint in zip(_COLOURS, subset, strict=True):
        if int(joint) != -1:
            x, y = body[int(joint)]
            cv2.circle(canvas, (int(x), int(y)), _RADIUS, colour, thickness=-1)


def _draw_hand(canvas: Pixels, points: NDArray[np.float64]) -> None:
    cv2, pixels = opencv(), _pixels(points)
    for index, (start, end) in enumerate(_FINGERS):
        if min(*pixels[start], *pixels[end]) > _EDGE:
            colour = [255 * value for value in colorsys.hsv_to_rgb(index / len(_FINGERS), 1.0, 1.0)]
            cv2.line(canvas, pixels[start], pixels[end], colour, thickness=2)
    for x, y in pixels:
        if min(x, y) > _EDGE:
            cv2.circle(canvas, (x, y), _RADIUS, (0, 0, 255), thickness=-1)


def _pixels(points: NDArray[np.float64]) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in points]
