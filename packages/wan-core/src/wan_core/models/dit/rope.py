"""Rotary position embedding over frames, rows and columns (Su et al., arXiv 2104.09864, on three axes)."""

from functools import lru_cache

import torch
from torch import Tensor

_THETA = 10000.0

Grid = tuple[int, int, int]


def axis_dims(head_dim: int) -> Grid:
    """How many channels of a head turn with frames, rows and columns; 44, 42, 42 of 128."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


@lru_cache(maxsize=16)
def rotary_table(head_dim: int, grid: Grid, start: Grid = (0, 0, 0), device: str = "cpu") -> Tensor:
    """Unit complex numbers [f*h*w, head_dim // 2] of the tokens of a grid whose first position is ``start``.

    Angles are built in float64: in float32 they would be off by up to 4e-5 at a thousand positions.
    """
    f, h, w = grid
    frames, rows, columns = (
        _axis_angles(dim, first, count) for dim, first, count in zip(axis_dims(head_dim), start, grid, strict=True)
    )
    angles = torch.cat(
        [
            frames[:, None, None].expand(f, h, w, -1),
            rows[None, :, None].expand(f, h, w, -1),
            columns[None, None, :].expand(f, h, w, -1),
        ],
        dim=-1,
    ).flatten(0, 2)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64).to(device)


def _axis_angles(dim: int, start: int, count: int) -> Tensor:
    frequencies = _THETA ** (-torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
    positions = torch.arange(start, start + count, dtype=torch.float64, device="cpu")
    return torch.outer(positions, frequencies)


def rotate(heads: Tensor, table: Tensor) -> Tensor:
    """Turn adjacent channel pairs of [B, L, n, d] by the table's [L, d // 2] angles, in float32; dtype kept.

    Tokens beyond the table's length stay as they are.
    """
    length = table.shape[0]
    real = heads[:, :length].float()
    pairs = torch.view_as_complex(real.reshape(*real.shape[:-1], -1, 2))
    turned = torch.view_as_real(pairs * table[:, None]).flatten(-2).to(heads.dtype)
    return turned if length == heads.shape[1] else torch.cat([turned, heads[:, length:]], dim=1)
