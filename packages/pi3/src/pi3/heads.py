"""Token decoders and the pixel-shuffle head of Pi3 (arXiv:2507.13347). The code is our own."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pi3.blocks import Block, CrossBlock
from pi3.rope2d import RopeTable


class TokenDecoder(nn.Module):
    """Projection, blocks that attend within each view, projection; registers stay in the sequence."""

    def __init__(
        self, in_dim: int, dim: int, out_dim: int, *, num_layers: int, num_heads: int, mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        self.projects = nn.Linear(in_dim, dim)
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio) for _ in range(num_layers))
        self.linear_out = nn.Linear(dim, out_dim)

    def forward(self, hidden: Tensor, rope: RopeTable) -> Tensor:
        """[B, L, out_dim] from [B, L, in_dim]; ``rope`` of one view."""
        tokens = self.projects(hidden)
        for block in self.blocks:
            tokens = block(tokens, rope)
        out: Tensor = self.linear_out(tokens)
        return out


class CrossDecoder(nn.Module):
    """A few query tokens that read from all tokens of all views (the metric scale of Pi3X)."""

    def __init__(self, in_dim: int, dim: int, *, num_layers: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.projects_x = nn.Linear(in_dim, dim)
        self.projects_y = nn.Linear(in_dim, dim)
        self.blocks = nn.ModuleList(CrossBlock(dim, num_heads, mlp_ratio) for _ in range(num_layers))
        self.linear_out = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, hidden: Tensor, rope: RopeTable, hidden_rope: RopeTable) -> Tensor:
        """[B, L, dim] from queries [B, L, in_dim] and hidden tokens [B, K, in_dim]."""
        tokens, others = self.projects_x(queries), self.projects_y(hidden)
        for block in self.blocks:
            tokens = block(tokens, others, rope, hidden_rope)
        out: Tensor = self.linear_out(tokens)
        return out


class LinearHead(nn.Module):
    """One projection per patch, laid out as pixels."""

    def __init__(self, dim: int, out_channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(dim, out_channels * patch_size * patch_size)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """A map [B, H, W, channels] from patch tokens [B, h * w, C]; ``height``, ``width`` count patches.

        Channel ``c * p * p + dy * p + dx`` of a patch is channel c of its pixel (dy, dx).
        """
        grid = torch.unflatten(self.proj(tokens).transpose(1, 2), 2, (height, width))
        return functional.pixel_shuffle(grid, self.patch_size).permute(0, 2, 3, 1)


def points_of_slopes(slopes: Tensor, log_depth: Tensor) -> Tensor:
    """Points (x z, y z, z) in the camera frame from ray slopes (x, y) [..., 2] and log z [..., 1]."""
    depth = log_depth.exp()
    return torch.cat([slopes * depth, depth], dim=-1)
