"""Encoder and decoder of the Wan video autoencoders: first convolution, levels, middle, head.

The two releases differ in their levels only (:mod:`wan21`, :mod:`wan22`). Architecture: Wan 2.1 and 2.2 (Wan Team,
2025); the code is our own.
"""

import torch
from torch import Tensor, nn

from wan_core.models.vae import wan21, wan22
from wan_core.models.vae.causal import CausalConv3d, FeatureCache
from wan_core.models.vae.config import VAEConfig
from wan_core.models.vae.layers import AttentionBlock, ChannelNorm, ResidualBlock


class Encoder(nn.Module):
    """Frames to features: [B, image_channels, T, H, W] -> [B, 2 * z_dim, T', h, w], patches already folded."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        top = config.encoder_dims[-1]
        self.conv1 = CausalConv3d(config.image_channels, config.dim)
        self.downsamples = (wan22 if config.residual else wan21).down_layers(config)
        self.middle = _middle(top, config.dropout)
        self.head = _head(top, 2 * config.z_dim)

    def forward(self, x: Tensor, cache: FeatureCache | None = None) -> Tensor:
        """Run one chunk: 1 + n * stride frames at the start of a clip, n * stride later."""
        x = self.conv1(x.contiguous(memory_format=torch.channels_last_3d), cache)
        for layer in self.downsamples:
            x = layer(x, cache)
        return _finish(_run_middle(self.middle, x, cache), self.head, cache)


class Decoder(nn.Module):
    """Features to frames: [B, z_dim, T, h, w] -> [B, image_channels, T', H, W], patches still folded."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        top = config.decoder_dims[0]
        self.conv1 = CausalConv3d(config.z_dim, top)
        self.middle = _middle(top, config.dropout)
        self.upsamples = (wan22 if config.residual else wan21).up_layers(config)
        self.head = _head(config.decoder_dim * config.dim_mult[0], config.image_channels)

    def forward(self, x: Tensor, cache: FeatureCache | None = None) -> Tensor:
        """Run one chunk of any number of latent frames."""
        x = self.conv1(x.contiguous(memory_format=torch.channels_last_3d), cache)
        x = _run_middle(self.middle, x, cache)
        for layer in self.upsamples:
            x = layer(x, cache)
        return _finish(x, self.head, cache)


def _middle(channels: int, dropout: float) -> nn.ModuleList:
    return nn.ModuleList(
        [
            ResidualBlock(channels, channels, dropout),
            AttentionBlock(channels),
            ResidualBlock(channels, channels, dropout),
        ]
    )


def _head(channels: int, out_channels: int) -> nn.ModuleList:
    return nn.ModuleList([ChannelNorm(channels), nn.SiLU(), CausalConv3d(channels, out_channels)])


def _run_middle(middle: nn.ModuleList, x: Tensor, cache: FeatureCache | None) -> Tensor:
    first, attention, second = middle
    x = first(x, cache)
    return second(attention(x), cache)  # type: ignore[no-any-return]


def _finish(x: Tensor, head: nn.ModuleList, cache: FeatureCache | None) -> Tensor:
    norm, activation, conv = head
    out = conv(activation(norm(x)), cache)
    if cache is not None:
        cache.finish_chunk()
    return out  # type: ignore[no-any-return]
