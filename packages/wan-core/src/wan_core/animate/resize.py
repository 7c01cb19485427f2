"""Pictures at other sizes, their aspect kept by a border: as Wan-Animate's preprocessing has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wan_core.animate.opencv import opencv
from wan_core.errors import RequestError
from wan_core.media import FrameSize, centred_within

Pixels = NDArray[np.uint8]
"""A picture [H, W, C]; of three channels: red, green, blue."""
Interpolation = Literal["nearest", "linear", "area", "cubic", "lanczos4"]


def padded_resize(
    image: Pixels,
    height: int,
    width: int,
    colour: int | Sequence[int] = 0,
    interpolation: Interpolation = "linear",
) -> Pixels:
    """A picture [H, W, C] scaled into the middle of ``height`` x ``width`` by `centred_within`, ``colour`` around it.

    The bytes of the release, which OpenCV scales; `wan_core.media.fit_padded` does without it. ``colour`` is one level,
    or one for each channel. Raises RequestError for an empty picture or size, and for a picture so long and narrow that
    a side vanishes; BackendError without OpenCV.
    """
    rows, columns = image.shape[:2]
    if min(rows, columns, height, width) < 1:
        raise RequestError(f"a picture and its size must not be empty, got {columns}x{rows} for {width}x{height}")
    inner, left, top = centred_within(columns, rows, FrameSize(width, height))
    cv2 = opencv()
    scaled = cv2.resize(image, inner, interpolation=getattr(cv2, f"INTER_{interpolation.upper()}"))
    channels = image.shape[2]
    padded = np.empty((height, width, channels), dtype=np.uint8)
    padded[:] = np.resize(np.asarray(colour, dtype=np.uint8), channels)
    padded[top : top + inner.height, left : left + inner.width] = scaled.reshape(inner.height, inner.width, channels)
    return padded


def size_of_area(width: int, height: int, area: int, divisor: int = 16) -> FrameSize:
    """The size of at most ``area`` pixels with the aspect of a picture, both sides cut to multiples of ``divisor``.

    The release has a search for the size that bends the aspect least, which never runs there; weights were trained
    with this one. Raises RequestError when a side would vanish.
    """
    if min(width, height, area, divisor) < 1:
        raise RequestError(f"a picture and its area must not be empty, got {width}x{height} and {area} pixels")
    new_height = math.sqrt(area / (width / height))
    size = FrameSize(*(int(side // divisor * divisor) for side in (area / new_height, new_height)))
    if min(size) < 1:
        raise RequestError(
            f"a {width}x{height} picture has no size of {area} pixels in multiples of {divisor}; crop it to a less "
            "extreme shape or ask for a larger area"
        )
    return size


def resize_to_area(image: Pixels, area: int, divisor: int = 16) -> Pixels:
    """A picture [H, W, C] at about ``area`` pixels, sides in multiples of ``divisor``, by `padded_resize` on black.

    Averaged over areas when it gets smaller, bilinear otherwise. Raises RequestError, BackendError as that does.
    """
    height, width = image.shape[:2]
    size = size_of_area(width, height, area, divisor)
    is_smaller = math.prod(size) < width * height
    return padded_resize(image, size.height, size.width, interpolation="area" if is_smaller else "linear")
