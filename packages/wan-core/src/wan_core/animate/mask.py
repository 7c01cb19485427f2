"""The masks of replacement: widened, and made coarse, so that a new person of another shape has room."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from wan_core.animate.opencv import opencv
from wan_core.errors import RequestError

Pixels = NDArray[np.uint8]
Mask = NDArray[np.uint8]
"""[H, W], 1 where the person is."""


def augment_mask(mask: Mask, iterations: int = 3, kernel: int = 7, width_parts: int = 1, height_parts: int = 1) -> Mask:
    """A mask [H, W] widened by `dilate_mask` and filled by `fill_cells`; without ``iterations`` as it is.

    Raises RequestError as they do.
    """
    if iterations == 0:
        return mask
    return fill_cells(dilate_mask(mask, iterations, kernel), width_parts, height_parts)


def dilate_mask(mask: Mask, iterations: int, kernel: int) -> Mask:
    """A mask [H, W] grown ``iterations`` times by a square of ``kernel`` pixels.

    Raises RequestError for negative iterations and a kernel below 1; BackendError without OpenCV.
    """
    if iterations < 0 or kernel < 1:
        raise RequestError(
            f"a mask grows 0 or more times by a square of 1 or more pixels, got iterations {iterations}, k {kernel}"
        )
    square = np.ones((kernel, kernel), dtype=np.uint8)
    return np.asarray(opencv().dilate(mask, square, iterations=iterations), dtype=np.uint8)


def fill_cells(mask: Mask, width_parts: int, height_parts: int) -> Mask:
    """A mask [H, W] by cells of its bounding box, cut into this many along both sides: one hit fills a cell.

    The last row and column of the box stay as they are, as in the release; so does a mask of nothing. Raises
    RequestError for parts below 1.
    """
    if min(width_parts, height_parts) < 1:
        raise RequestError(f"w_len and h_len must be at least 1, got {width_parts} and {height_parts}")
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    if not rows.size:
        return mask
    top, bottom, left, right = int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])
    width, height = max(1, int((right - left) / width_parts)), max(1, int((bottom - top) / height_parts))
    filled = mask.copy()
    for y in range(top, bottom, height):
        for x in range(left, right, width):
            cell = np.s_[y : min(y + height, bottom), x : min(x + width, right)]
            filled[cell] = mask[cell].any()
    return filled


def pack_mask(mask: Mask) -> bytes:
    """A mask [H, W] as `unpack_mask` takes it: a few hundred bytes, as masks are of large areas."""
    return zlib.compress(np.packbits(mask, axis=1).tobytes(), level=1)


def unpack_mask(packed: bytes, height: int, width: int) -> Mask:
    """The mask [H, W] that was packed."""
    rows = np.frombuffer(zlib.decompress(packed), dtype=np.uint8).reshape(height, -1)
    return np.unpackbits(rows, axis=1, count=width)


def background(frame: Pixels, mask: Mask) -> Pixels:
    """A frame [H, W, 3], black where the ``mask`` [H, W] is 1."""
    return np.asarray(frame * (1 - mask[..., None]), dtype=np.uint8)
