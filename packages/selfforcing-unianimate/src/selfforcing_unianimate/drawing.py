"""Skeletons as pictures: OpenPose's coloured limbs, joints and hands, pixel by pixel as the networks know them.

Drawn as in OpenPose's and DWPose's demos (Cao et al. 2019, Yang et al. 2023); rasterised by OpenCV; the code is ours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from selfforcing_unianimate.backends import opencv
from selfforcing_unianimate.keypoints import Poses
from wan_core.animate import HUES, LIMBS, draw_hand, draw_limb

Pixels = NDArray[np.uint8]

CANVAS = (512, 768)
"""Width and height of the pictures that the reference draws after aligning, whatever the size of a video."""

_COLOURS = (*HUES, (170, 255, 255), (255, 255, 0))
_HALF_WIDTH = 4
_RADIUS = 4
_FINGER_WIDTH = 2
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
        draw_hand(canvas, hand * size, radius=_RADIUS, thickness=_FINGER_WIDTH)
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
    for colour, pair in zip(_COLOURS, LIMBS, strict=False):
        ends = [int(subset[joint]) for joint in pair]
        if -1 not in ends:
            draw_limb(canvas, body[ends[0]], body[ends[1]], _HALF_WIDTH, colour)
    cv2.LUT(canvas, _DIMMED, dst=canvas)
    for colour, joint in zip(_COLOURS, subset, strict=True):
        if int(joint) != -1:
            x, y = body[int(joint)]
            cv2.circle(canvas, (int(x), int(y)), _RADIUS, colour, thickness=-1)


def _pixels(points: NDArray[np.float64]) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in points]
