"""The convolutional head of Pi3X: patch tokens to pixels in three doublings.

After the head of MoGe (Wang et al. 2024, arXiv:2410.19115) as the Pi3 reference uses it; the code is our own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUP_WIDTH = 32
OUTPUT_WIDTH = 32


def image_plane(height: int, width: int, aspect: float, device: torch.device | None = None) -> Tensor:
    """Coordinates (u, v) of cell centres on an image plane of diagonal 2, float32 [2, height, width].

    ``aspect`` is width / height of the image that the cells cover.
    """
    diagonal = (1 + aspect * aspect) ** 0.5
    spans = aspect / diagonal, 1 / diagonal
    u, v = (
        torch.linspace(-span * (count - 1) / count, span * (count - 1) / count, count, device=device)
        for span, count in zip(spans, (width, height), strict=True)
    )
    return torch.stack(torch.meshgrid(u, v, indexing="xy"))


def _with_plane(features: Tensor, aspect: float) -> Tensor:
    height, width = features.shape[-2:]
    plane = image_plane(height, width, aspect, features.device).to(features.dtype)
    return torch.cat([features, plane.expand(len(features), -1, -1, -1)], dim=1)


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode="replicate")


class ResidualConv(nn.Module):
    """Two normed convolutions beside an identity skip."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = 2 * dim
        self.layers = nn.Sequential(
            nn.GroupNorm(1, dim),
            nn.ReLU(),
            _conv(dim, hidden),
            nn.GroupNorm(max(1, hidden // GROUP_WIDTH), hidden),
            nn.ReLU(),
            _conv(hidden, dim),
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, h, w] in and out."""
        out: Tensor = features + self.layers(features)
        return out


class ConvHead(nn.Module):
    """Three stages of doubling, a resize to full size, and one small output block per group of channels."""

    def __init__(self, in_dim: int, dims: Sequence[int], out_channels: Sequence[int], patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        stages = []
        for before, after in zip((in_dim, *dims), dims, strict=False):
            upsample = nn.Sequential(nn.ConvTranspose2d(before + 2, after, 2, stride=2), _conv(after, after))
            stages.append(nn.Sequential(upsample, ResidualConv(after), ResidualConv(after)))
        self.upsample_blocks = nn.ModuleList(stages)
        self.output_block = nn.ModuleList(
            nn.Sequential(_conv(dims[-1] + 2, OUTPUT_WIDTH), nn.ReLU(), nn.Conv2d(OUTPUT_WIDTH, channels, 1))
            for channels in out_channels
        )

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """A map [B, H, W, channels] from patch tokens [B, h * w, C]; ``height``, ``width`` count patches."""
        aspect = width / height
        features = torch.unflatten(tokens.transpose(1, 2), 2, (height, width))
        for stage in self.upsample_blocks:
            features = stage(_with_plane(features, aspect))
        size = (height * self.patch_size, width * self.patch_size)
        features = functional.interpolate(features, size=size, mode="bilinear", align_corners=False)
        features = _with_plane(features, aspect)
        return torch.cat([block(features) for block in self.output_block], dim=1).permute(0, 2, 3, 1)
