"""Pictures of skeletons as few bytes: almost all of their pixels are black."""

from __future__ import annotations

import struct
import zlib
from math import prod

import torch
from torch import Tensor

from wan_core import CheckpointError

_SIDES = struct.Struct("<4I")
_LEVEL = 6
_MOST_BYTES = 1 << 31
_REMEDY = "make what holds them anew"


def pack_pixels(pixels: Tensor) -> Tensor:
    """Pixels of up to four dimensions, uint8, as bytes [N] uint8 without loss. Raises ValueError for other tensors."""
    if pixels.dtype != torch.uint8 or pixels.ndim > _SIDES.size // 4 or min(pixels.shape, default=0) < 1:
        raise ValueError(f"pixels are uint8 with up to four sides, got {pixels.dtype} {list(pixels.shape)}")
    sides = (*pixels.shape, *[0] * (_SIDES.size // 4 - pixels.ndim))
    content = zlib.compress(pixels.cpu().contiguous().numpy().tobytes(), _LEVEL)
    return torch.frombuffer(bytearray(_SIDES.pack(*sides) + content), dtype=torch.uint8)


def unpack_pixels(packed: Tensor) -> Tensor:
    """What `pack_pixels` packed. Raises CheckpointError for bytes that are none of it, before memory is taken."""
    if packed.dtype != torch.uint8 or packed.ndim != 1 or len(packed) <= _SIDES.size:
        raise CheckpointError(f"packed pixels are bytes, got {packed.dtype} {list(packed.shape)}; {_REMEDY}")
    content = packed.contiguous().numpy().tobytes()
    sides = [side for side in _SIDES.unpack_from(content) if side]
    size = prod(sides)
    if not 0 < size <= _MOST_BYTES:
        raise CheckpointError(f"packed pixels of {sides} cannot be; {_REMEDY}")
    opened = zlib.decompressobj()
    try:
        pixels = opened.decompress(content[_SIDES.size :], size)
        rest = opened.decompress(opened.unconsumed_tail, 1)
    except zlib.error as error:
        raise CheckpointError(f"packed pixels are damaged: {error}; {_REMEDY}") from error
    if len(pixels) != size or rest or not opened.eof:
        raise CheckpointError(f"packed pixels do not have the size that they say, {sides}; {_REMEDY}")
    return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(sides)
