"""Encoders of packed layers for tests, written from the formulas of comfy-kitchen's eager backend."""

import torch
from torch import Tensor

Parts = dict[str, Tensor]


def matrix(rows: int = 48, columns: int = 512) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def hadamard(size: int) -> Tensor:
    """The regular Hadamard matrix of ConvRot: Kronecker powers of one of order four, normalised."""
    four = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float64)
    power = four
    while len(power) < size:
        power = torch.kron(power, four)
    return power / size**0.5


def turned(weight: Tensor, size: int) -> Tensor:
    groups = weight.double().reshape(weight.shape[0], -1, size)
    return (groups @ hadamard(size).T).reshape(weight.shape).float()


def int8_rows(weight: Tensor) -> Parts:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {"weight": (weight / scale).round().clamp(-128, 127).to(torch.int8), "weight_scale": scale}


def tiles(scales: Tensor) -> Tensor:
    """Block scales in the order of cuBLAS: element by element, from its documentation."""
    rows, columns = scales.shape
    across = -(-columns // 4)
    out = torch.zeros(-(-rows // 128) * across * 512, dtype=scales.dtype)
    for row in range(rows):
        for column in range(columns):
            tile = row // 128 * across + column // 4
            out[tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4] = scales[row, column]
    return out.view(-(-rows // 128) * 128, across * 4)


def halves(codes: Tensor, *, high_first: bool) -> Tensor:
    first, second = codes[:, 0::2], codes[:, 1::2]
    return ((first << 4) | second if high_first else first | (second << 4)).to(torch.uint8)


VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def nvfp4(weight: Tensor) -> tuple[Parts, Tensor]:
    rows, columns = weight.shape
    overall = weight.abs().max() / (448 * 6)
    groups = weight.view(rows, -1, 16)
    blocks = (groups.abs().amax(-1) / 6 / overall).to(torch.float8_e4m3fn)
    factors = blocks.float()[..., None] * overall
    codes = ((groups / factors)[..., None] - VALUES).abs().argmin(-1)
    parts = {
        "weight": halves(codes.view(rows, columns), high_first=True),
        "weight_scale": tiles(blocks.view(torch.uint8)).view(torch.float8_e4m3fn),
        "weight_scale_2": overall,
    }
    return parts, (VALUES[codes] * factors).view(rows, columns)


def mxfp8(weight: Tensor) -> tuple[Parts, Tensor]:
    rows, columns = weight.shape
    groups = weight.view(rows, -1, 32)
    exponents = torch.ceil(torch.log2(groups.abs().amax(-1) / 448)) + 127
    factors = torch.exp2(exponents - 127)[..., None]
    small = (groups / factors).to(torch.float8_e4m3fn)
    parts = {"weight": small.view(rows, columns), "weight_scale": tiles(exponents.to(torch.uint8))}
    return parts, (small.float() * factors).view(rows, columns)


def w4a4(weight: Tensor, size: int) -> tuple[Parts, Tensor]:
    around = turned(weight, size)
    scale = around.abs().amax(1, keepdim=True) / 7
    codes = (around / scale).round().clamp(-7, 7).int()
    parts = {"weight": halves(codes & 15, high_first=False).view(torch.int8), "weight_scale": scale[:, 0]}
    return parts, turned(codes * scale, size)


def awq(weight: Tensor, size: int) -> tuple[Parts, Tensor]:
    rows, columns = weight.shape
    groups = weight.view(rows, -1, size)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = (high - low) / 15
    zeros = low + 8 * scale
    codes = ((groups - zeros[..., None]) / scale[..., None] + 8).round().clamp(0, 15).int()
    parts = {
        "weight": halves(codes.view(rows, columns), high_first=False).view(torch.int8),
        "weight_scale": scale.t().contiguous(),
        "weight_zeros": zeros.t().contiguous(),
    }
    return parts, ((codes - 8) * scale[..., None] + zeros[..., None]).view(rows, columns)


def w4a8(weight: Tensor, size: int, book: Tensor | None) -> tuple[Parts, Tensor]:
    rows, columns = weight.shape
    groups = turned(weight, 64).view(rows, -1, size)
    channel = groups.abs().amax((1, 2)) / 127
    relative = (groups.abs().amax(-1) / 7 / channel[:, None]).to(torch.float8_e4m3fn)
    levels = torch.arange(16) - 8.0 if book is None else book
    grid = (levels * relative.float()[..., None]).round().clamp(-127, 127)  # [rows, groups, 16]
    codes = (groups[..., None] / channel[:, None, None, None] - grid[:, :, None]).abs().argmin(-1)
    parts = {
        "weight": halves(codes.view(rows, columns), high_first=False).view(torch.int8),
        "weight_s_rel": relative,
        "weight_s_channel": channel,
        **({} if book is None else {"weight_codebook": book}),
    }
    chosen = torch.gather(grid, 2, codes)
    return parts, turned((chosen * channel[:, None, None]).view(rows, columns), 64)
