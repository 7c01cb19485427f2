"""DINOv2 vision transformer (arXiv:2304.07193), with register tokens (arXiv:2309.16588). The code is our own."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pi3.blocks import LAYER_NORM_EPS, Block
from pi3.config import DinoConfig
from pi3.dinov2.layers import PatchEmbed, resize_positions


@dataclass(frozen=True)
class DinoFeatures:
    """Output tokens: ``class_token`` [B, C], ``registers`` [B, r, C], ``patches`` [B, h * w, C], all after the last
    norm, and ``prenorm`` [B, 1 + r + h * w, C], the whole sequence before it."""

    class_token: Tensor
    registers: Tensor
    patches: Tensor
    prenorm: Tensor


class VisionTransformer(nn.Module):
    """Pre-norm transformer over patches, a class token and registers."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 1e-6)
        side = config.image_size // config.patch_size
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + side * side, dim) * 0.02)
        if config.num_registers:
            self.register_tokens = nn.Parameter(torch.randn(1, config.num_registers, dim) * 1e-6)
        self.patch_embed = PatchEmbed(config.in_channels, dim, config.patch_size)
        scale = 1.0 if config.layer_scale else None
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, layer_scale=scale) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def position_embedding(self, height: int, width: int) -> Tensor:
        """[1, 1 + height * width, C] for a grid of ``height`` x ``width`` patches."""
        config = self.config
        return resize_positions(
            self.pos_embed, height, width, antialias=config.interpolate_antialias, offset=config.interpolate_offset
        )

    def embed(self, images: Tensor) -> Tensor:
        """The sequence before the first block, [B, 1 + r + h * w, C]: class token, registers, patches.

        Registers get no position.
        """
        patch = self.config.patch_size
        patches = self.patch_embed(images)
        count = len(images)
        positions = self.position_embedding(images.shape[-2] // patch, images.shape[-1] // patch)
        tokens = torch.cat([self.cls_token.expand(count, -1, -1).to(patches.dtype), patches], dim=1)
        tokens = tokens + positions.to(patches.dtype)
        if not self.config.num_registers:
            return tokens
        registers = self.register_tokens.expand(count, -1, -1).to(patches.dtype)
        return torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)

    def forward(self, images: Tensor) -> DinoFeatures:
        """Features of normalised images [B, channels, H, W], H and W multiples of the patch size."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        normed = self.norm(tokens)
        first = 1 + self.config.num_registers
        return DinoFeatures(normed[:, 0], normed[:, 1:first], normed[:, first:], tokens)
