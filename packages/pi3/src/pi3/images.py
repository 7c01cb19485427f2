"""Images to network input: Pi3's size rule, and stretching with Pillow's Lanczos filter."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wan_core import RequestError

FrameSize = tuple[int, int]
"""Width and height in pixels."""

PIXEL_LIMIT = 255_000
"""Pixels of an input image at most, as in the reference; about 504 x 504."""

PATCH_SIZE = 14


def input_size(width: int, height: int, *, pixel_limit: int = PIXEL_LIMIT, patch_size: int = PATCH_SIZE) -> FrameSize:
    """The (width, height) that an image of ``width`` x ``height`` pixels is stretched to.

    Both become multiples of the patch size with about ``pixel_limit`` pixels in all; small images are enlarged. While
    there are too many pixels, the side that is relatively too long loses a patch; no side has less than one, so a very
    narrow image can exceed the limit. Raises RequestError for sizes below 1.
    """
    if min(width, height, pixel_limit) < 1:
        raise RequestError(f"a picture has at least one pixel, got {width}x{height} under a limit of {pixel_limit}")
    scale = math.sqrt(pixel_limit / (width * height))
    columns, rows = round(width * scale / patch_size), round(height * scale / patch_size)
    while columns * patch_size * rows * patch_size > pixel_limit:
        if rows == 0 or columns / rows > width / height:
            columns -= 1
        else:
            rows -= 1
    return max(1, columns) * patch_size, max(1, rows) * patch_size


def view_of_image(image: Image.Image, size: FrameSize) -> Tensor:
    """An image stretched to ``size`` (width, height): float32 [3, H, W] in [0, 1]."""
    resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(resized, dtype=np.uint8))
    return pixels.permute(2, 0, 1).contiguous().float() / 255


def pictures_to_tensor(
    images: Iterable[Image.Image], *, pixel_limit: int = PIXEL_LIMIT, patch_size: int = PATCH_SIZE
) -> Tensor:
    """Views [N, 3, H, W] in [0, 1] of upright images, one at a time; the first sets the size of all.

    Images of another aspect ratio are stretched. Raises RequestError when there is none.
    """
    views: list[Tensor] = []
    size: FrameSize | None = None
    for image in images:
        if size is None:
            size = input_size(*image.size, pixel_limit=pixel_limit, patch_size=patch_size)
        views.append(view_of_image(image, size))
    if not views:
        raise RequestError("there is no picture to reconstruct; give at least one")
    return torch.stack(views)
