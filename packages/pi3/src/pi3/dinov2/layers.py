"""Patches and positions of DINOv2 (arXiv:2304.07193, registers: arXiv:2309.16588). The code is our own."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class PatchEmbed(nn.Module):
    """Non-overlapping square patches, each projected to one token."""

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """[B, h * w, C] tokens in row-major order from [B, channels, H, W]; H and W are multiples of the patch size."""
        out: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return out


def resize_positions(
    embedding: Tensor, height: int, width: int, *, antialias: bool = True, offset: float = 0.0
) -> Tensor:
    """A position embedding [1, 1 + s * s, C] of class token and s x s patches for ``height`` x ``width`` patches.

    Bicubic in float32, returned in the embedding's dtype. With an ``offset`` the scale factors are
    ``(height + offset) / s`` and ``(width + offset) / s`` instead of the exact ratios, as the DINOv2 variants without
    registers were trained.
    """
    side = math.isqrt(embedding.shape[1] - 1)
    if (height, width) == (side, side):
        return embedding
    whole = embedding.float()
    grid = torch.unflatten(whole[:, 1:], 1, (side, side)).permute(0, 3, 1, 2)
    scale = ((height + offset) / side, (width + offset) / side) if offset else None
    resized = functional.interpolate(
        grid, size=None if scale else (height, width), scale_factor=scale, mode="bicubic", antialias=antialias
    )
    return torch.cat([whole[:, :1], resized.flatten(2).transpose(1, 2)], dim=1).to(embedding.dtype)
