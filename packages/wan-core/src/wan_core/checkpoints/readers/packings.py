"""Weights as ComfyUI packs them, and back: one entry for each format that its descriptions can name.

Storage, scales and formulas are those of comfy-kitchen (``comfy_kitchen/tensor`` and ``backends/eager``) and of
ComfyUI's ``comfy/ops.py``; blockwise formats are those of convert_to_quant. Rotations: ConvRot, a regular Hadamard
matrix over blocks of the input axis. Everything is computed in float32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from wan_core.checkpoints.readers.sources import TensorInfo

Settings = Mapping[str, Any]
Shape = tuple[int, ...]
Infos = Mapping[str, TensorInfo]
Tensors = Mapping[str, Tensor]

_FP8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
_NIBBLE_FLOATS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # E2M1; the upper half of the codes is negative
_MIN_ROTATION, _MAX_ROTATION = 4, 4**6


class UnfitError(ValueError):
    """What is stored is not what the format says; the message ends a sentence."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """A format: ``scales`` are the tensors beside ``weight``, ``optional`` those that may be missing.

    ``stored`` are the dtypes of the weight, ``settings`` the keys of a description that matter. ``shape`` gives the
    weight's shape from what is stored and raises UnfitError; ``decode`` makes it, in float32.
    """

    scales: tuple[str, ...] = ("weight_scale",)
    optional: tuple[str, ...] = ()
    stored: tuple[torch.dtype, ...]
    settings: tuple[str, ...] = ()
    shape: Callable[[Infos, Settings], Shape]
    decode: Callable[[Tensors, Settings], Tensor]


def multiplied(weight: Tensor, scale: Tensor) -> Tensor:
    """A weight times its scales: one for all, one for each row, or ``[rows, blocks, 1]`` for equal parts of a row."""
    weight, scale = weight.float(), scale.float()
    if scale.numel() == 1:
        return weight * scale.reshape(())
    if scale.ndim == 3 and weight.ndim == 2 and scale.shape[1] > 1:
        return (weight.reshape(*scale.shape[:2], -1) * scale).reshape(weight.shape)
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))


def has_scale_shape(weight: Shape, scale: Shape) -> bool:
    """Whether :func:`multiplied` knows such scales."""
    if all(side == 1 for side in scale):
        return True
    if weight and scale[0] == weight[0] and all(side == 1 for side in scale[1:]):
        return True
    is_blocks = len(weight) == 2 and len(scale) == 3 and scale[0] == weight[0] and scale[2] == 1
    return is_blocks and scale[1] > 0 and weight[1] % scale[1] == 0


def rotated(weight: Tensor, size: int) -> Tensor:
    """``weight [rows, columns]`` times a Hadamard matrix over blocks of ``size`` columns; twice gives it back.

    The matrix is the Kronecker power of [[1,1,1,-1],[1,1,-1,1],[1,-1,1,1],[-1,1,1,1]] / 2, symmetric and orthogonal.
    """
    return (weight.reshape(weight.shape[0], -1, size) @ _hadamard(size)).flatten(1)


@lru_cache(maxsize=8)
def _hadamard(size: int) -> Tensor:
    four = (1 - 2 * torch.eye(4).flip(0)) / 2
    power = torch.ones(1, 1)
    while len(power) < size:
        power = torch.kron(power, four)
    return power


def unblocked(scales: Tensor, rows: int, columns: int) -> Tensor:
    """Block scales ``[rows, columns]`` from the tiles in which a tensor core takes them.

    Tiles of 128 x 4, rows before columns; in a tile row r and column c lie at 16 (r mod 32) + 4 (r div 32) + c (cuBLAS,
    "1D block scaling factors layout").
    """
    tiles = rearrange(
        scales.flatten(), "(i j low high c) -> (i high low) (j c)", i=-(-rows // 128), low=32, high=4, c=4
    )
    return tiles[:rows, :columns]


def _nibbles(packed: Tensor, *, high_first: bool) -> Tensor:
    """Two codes 0 to 15 of each byte ``[rows, columns / 2]``."""
    low, high = (packed.view(torch.uint8) & 15).int(), (packed.view(torch.uint8) >> 4).int()
    return torch.stack([high, low] if high_first else [low, high], dim=-1).flatten(-2)


def _group(settings: Settings, name: str, default: int | None, length: int) -> int:
    size = settings.get(name, default)
    if type(size) is not int or size < 1 or length % size:
        raise UnfitError(f"{name} {size!r} does not divide its {length} columns")
    return size


def _rotation(settings: Settings, columns: int, default: int = 256) -> int:
    size = _group(settings, "convrot_groupsize", default, columns)
    if not _MIN_ROTATION <= size <= _MAX_ROTATION or size & (size - 1) or (size.bit_length() - 1) % 2:
        raise UnfitError(f"convrot_groupsize {size} is no power of four up to {_MAX_ROTATION}")
    return size


def is_scale(info: TensorInfo) -> bool:
    """Whether a tensor holds plain floating-point numbers, not bytes that stand for some."""
    return info.dtype.is_floating_point and info.dtype.itemsize > 1


def _expect(info: TensorInfo, *wanted: Shape, in_bytes: bool = False) -> None:
    if info.shape not in wanted or not (is_scale(info) or (in_bytes and info.dtype.itemsize == 1)):
        raise UnfitError(f"a scale is {info} instead of {list(wanted[0])}")


def _expect_tiles(info: TensorInfo, rows: int, columns: int) -> None:
    if info.dtype.itemsize != 1 or info.numel != -(-rows // 128) * 128 * -(-columns // 4) * 4:
        raise UnfitError(f"its block scales are {info}, no tiles of 128 x 4 bytes")


def _matrix(shape: Shape) -> tuple[int, int]:
    if len(shape) != 2 or min(shape) < 1:
        raise UnfitError("the weight is no matrix")
    return shape[0], shape[1]


# -- one scale, or one for each row ------------------------------------------------------------------------------------


def _scaled_shape(infos: Infos, settings: Settings) -> Shape:
    weight, scale = infos["weight"].shape, infos["weight_scale"]
    if not has_scale_shape(weight, scale.shape) or not is_scale(scale):
        raise UnfitError(f"its scale is {scale}")
    if settings.get("convrot"):
        _rotation(settings, _matrix(weight)[1])
    return weight


def _scaled(dtype: torch.dtype) -> Callable[[Tensors, Settings], Tensor]:
    def decode(tensors: Tensors, settings: Settings) -> Tensor:
        weight = multiplied(tensors["weight"].view(dtype), tensors["weight_scale"])
        return rotated(weight, _rotation(settings, weight.shape[1])) if settings.get("convrot") else weight

    return decode


# -- one scale for each square block -----------------------------------------------------------------------------------


def _square_shape(infos: Infos, settings: Settings) -> Shape:
    rows, columns = _matrix(infos["weight"].shape)
    size = _group(settings, "group_size", None, columns)
    if rows % size:
        raise UnfitError(f"group_size {size} does not divide its {rows} rows")
    _expect(infos["weight_scale"], (rows // size, columns // size))
    return rows, columns


def _squares(dtype: torch.dtype) -> Callable[[Tensors, Settings], Tensor]:
    def decode(tensors: Tensors, settings: Settings) -> Tensor:
        size, scale = settings["group_size"], tensors["weight_scale"].float()
        return tensors["weight"].view(dtype).float() * scale.repeat_interleave(size, 0).repeat_interleave(size, 1)

    return decode


# -- blocks of a tensor core -------------------------------------------------------------------------------------------


def _nvfp4_shape(infos: Infos, settings: Settings) -> Shape:
    rows, packed = _matrix(infos["weight"].shape)
    columns = 2 * packed
    if columns % 16:
        raise UnfitError(f"its {columns} columns are no blocks of 16")
    _expect_tiles(infos["weight_scale"], rows, columns // 16)
    _expect(infos["weight_scale_2"], (), (1,))
    if "pre_quant_scale" in infos:
        _expect(infos["pre_quant_scale"], (columns,))
    return rows, columns


def _nvfp4(tensors: Tensors, settings: Settings) -> Tensor:
    codes = _nibbles(tensors["weight"], high_first=True)
    values = torch.tensor([*_NIBBLE_FLOATS, *(-value for value in _NIBBLE_FLOATS)])[codes]
    rows, columns = values.shape
    blocks = unblocked(tensors["weight_scale"].view(torch.float8_e4m3fn).float(), rows, columns // 16)
    factors = blocks * tensors["weight_scale_2"].float().reshape(())
    weight = (values.view(rows, -1, 16) * factors[..., None]).view(rows, columns)
    smoothing = tensors.get("pre_quant_scale")  # which multiplies the inputs of the layer
    return weight if smoothing is None else weight * smoothing.float()


def _mxfp8_shape(infos: Infos, settings: Settings) -> Shape:
    rows, columns = _matrix(infos["weight"].shape)
    if columns % 32:
        raise UnfitError(f"its {columns} columns are no blocks of 32")
    _expect_tiles(infos["weight_scale"], rows, columns // 32)
    return rows, columns


def _mxfp8(tensors: Tensors, settings: Settings) -> Tensor:
    weight = tensors["weight"].view(torch.float8_e4m3fn).float()
    rows, columns = weight.shape
    exponents = unblocked(tensors["weight_scale"].view(torch.uint8), rows, columns // 32).int()
    factors = (exponents << 23).view(torch.float32)  # an exponent alone is that power of two; zero stays zero
    return (weight.view(rows, -1, 32) * factors[..., None]).view(rows, columns)


# -- four bits, rotated ------------------------------------------------------------------------------------------------


def _w4a4_shape(infos: Infos, settings: Settings) -> Shape:
    rows, packed = _matrix(infos["weight"].shape)
    _rotation(settings, 2 * packed)
    _expect(infos["weight_scale"], (rows,), (rows, 1))
    return rows, 2 * packed


def _w4a4(tensors: Tensors, settings: Settings) -> Tensor:
    codes = _nibbles(tensors["weight"], high_first=False)
    weight = multiplied(torch.where(codes > 7, codes - 16, codes), tensors["weight_scale"])
    return rotated(weight, _rotation(settings, weight.shape[1]))


def _awq_shape(infos: Infos, settings: Settings) -> Shape:
    rows, packed = _matrix(infos["weight"].shape)
    groups = 2 * packed // _group(settings, "group_size", 64, 2 * packed)
    for name in ("weight_scale", "weight_zeros"):
        _expect(infos[name], (groups, rows))
    return rows, 2 * packed


def _awq(tensors: Tensors, settings: Settings) -> Tensor:
    scale, zeros = (tensors[name].float().t()[..., None] for name in ("weight_scale", "weight_zeros"))
    codes = _nibbles(tensors["weight"], high_first=False).float().view(*scale.shape[:2], -1)
    return ((codes - 8) * scale + zeros).flatten(1)


def _w4a8_shape(infos: Infos, settings: Settings) -> Shape:
    rows, packed = _matrix(infos["weight"].shape)
    columns = 2 * packed
    _rotation(settings, columns)
    _expect(infos["weight_s_rel"], (rows, columns // _group(settings, "group_size", 16, columns)), in_bytes=True)
    _expect(infos["weight_s_channel"], (rows,))
    if "weight_codebook" in infos:
        _expect(infos["weight_codebook"], (16,))
    return rows, columns


def _w4a8(tensors: Tensors, settings: Settings) -> Tensor:
    codes, relative = _nibbles(tensors["weight"], high_first=False), tensors["weight_s_rel"]
    book = tensors.get("weight_codebook")
    values = codes.float() - 8 if book is None else book.float()[codes]
    factors = relative.view(torch.float8_e4m3fn) if relative.dtype is torch.uint8 else relative
    grid = values.view(*relative.shape, -1) * factors.float()[..., None]
    grid = grid.round().clamp(-127, 127).flatten(1)  # the 8-bit grid on which the matrix product is done
    return rotated(grid * tensors["weight_s_channel"].float()[:, None], _rotation(settings, grid.shape[1]))


_INT8 = Packing(
    stored=(torch.int8,),
    settings=("convrot", "convrot_groupsize", "per_row"),
    shape=_scaled_shape,
    decode=_scaled(torch.int8),
)

PACKINGS: Mapping[str, Packing] = {
    **{
        f"{name}{ending}": Packing(stored=(dtype, torch.uint8), shape=_scaled_shape, decode=_scaled(dtype))
        for name, dtype in _FP8.items()
        for ending in ("", "_rowwise")
    },
    "int8_tensorwise": _INT8,
    "int8_axiswise": _INT8,
    "float8_e4m3fn_blockwise": Packing(
        stored=(torch.float8_e4m3fn, torch.uint8),
        settings=("group_size",),
        shape=_square_shape,
        decode=_squares(torch.float8_e4m3fn),
    ),
    "int8_blockwise": Packing(
        stored=(torch.int8,), settings=("group_size",), shape=_square_shape, decode=_squares(torch.int8)
    ),
    "nvfp4": Packing(
        scales=("weight_scale", "weight_scale_2", "pre_quant_scale"),
        optional=("pre_quant_scale",),
        stored=(torch.uint8,),
        shape=_nvfp4_shape,
        decode=_nvfp4,
    ),
    "mxfp8": Packing(stored=(torch.float8_e4m3fn, torch.uint8), shape=_mxfp8_shape, decode=_mxfp8),
    "convrot_w4a4": Packing(
        stored=(torch.int8,), settings=("convrot_groupsize", "linear_dtype"), shape=_w4a4_shape, decode=_w4a4
    ),
    "awq_w4a16": Packing(
        scales=("weight_scale", "weight_zeros"),
        stored=(torch.int8,),
        settings=("group_size",),
        shape=_awq_shape,
        decode=_awq,
    ),
    "asym_w4a8_int8": Packing(
        scales=("weight_s_rel", "weight_s_channel", "weight_codebook"),
        optional=("weight_codebook",),
        stored=(torch.int8,),
        settings=("group_size", "convrot_groupsize"),
        shape=_w4a8_shape,
        decode=_w4a8,
    ),
}
"""Every format that is read, by the name that a description gives it."""
