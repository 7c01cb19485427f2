"""Rotary positions on a grid: one half of every head turns with the row, the other with the column.

After RoPE (Su et al. 2021, arXiv:2104.09864) in the two-axis form of CroCo v2 (arXiv:2211.10408); the code is our own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RopeTable:
    """Cosines and sines of the angles of each token, float32 [..., L, 2, d / 4]: axis (row, column), frequency."""

    cos: Tensor
    sin: Tensor

    def repeat(self, count: int) -> "RopeTable":
        """The table of ``count`` views one after the other."""
        return RopeTable(self.cos.repeat(count, 1, 1), self.sin.repeat(count, 1, 1))

    def cast(self, dtype: torch.dtype) -> "RopeTable":
        """The same in another dtype: the angles are always taken in float32."""
        return RopeTable(self.cos.to(dtype), self.sin.to(dtype))


def grid_positions(height: int, width: int, num_registers: int, device: torch.device | None = None) -> Tensor:
    """Positions (row, column) of a view's tokens, int64 [num_registers + height * width, 2].

    Registers come first and stand at (0, 0); patches count from (1, 1) in row-major order.
    """
    rows = torch.arange(1, height + 1, device=device)
    columns = torch.arange(1, width + 1, device=device)
    patches = torch.cartesian_prod(rows, columns)
    return torch.cat([patches.new_zeros(num_registers, 2), patches])


def rope_table(positions: Tensor, head_dim: int, base: float = 100.0) -> RopeTable:
    """The table of integer ``positions`` [..., L, 2] for heads of ``head_dim`` (a multiple of 4).

    Frequency j of an axis is ``base ** (-2 j / (head_dim / 2))``.
    """
    quarter = head_dim // 4
    exponents = torch.arange(quarter, dtype=torch.float32, device=positions.device) / quarter
    angles = positions[..., None].float() * base**-exponents
    return RopeTable(angles.cos(), angles.sin())


def rotate(heads: Tensor, table: RopeTable) -> Tensor:
    """Turn queries or keys [B, n, L, d]; ``table`` is [L, 2, d / 4] or [B, L, 2, d / 4].

    Within each axis channel j is paired with channel j + d / 4.
    """
    cos, sin = table.cos, table.sin
    if cos.ndim == 4:
        cos, sin = cos[:, None], sin[:, None]
    first, second = torch.unflatten(heads, -1, (2, 2, -1)).unbind(-2)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-2).flatten(-3)
