"""The levels of the Wan 2.2 video autoencoder: groups of blocks with a parameter-free shortcut around each.

Names (``downsamples.0.downsamples.2``) are those of the released checkpoint. Architecture: Wan 2.2 (Wan Team, 2025);
the code is our own.
"""

from torch import Tensor, nn

from wan_core.models.vae.causal import FeatureCache
from wan_core.models.vae.config import VAEConfig
from wan_core.models.vae.layers import Downsample, ResidualBlock, Sum, Upsample
from wan_core.models.vae.shortcuts import average_downsample, duplicate_upsample


class DownGroup(nn.Module):
    """One encoder level: residual blocks and a resampler, plus the averaged input.

    [B, in, T, H, W] -> [B, out, T', H', W']. The last level neither resamples nor averages, but still adds its input.
    """

    def __init__(self, config: VAEConfig, level: int) -> None:
        super().__init__()
        width, out = config.encoder_dims[level : level + 2]
        layers = [ResidualBlock(out if index else width, out, config.dropout) for index in range(config.num_res_blocks)]
        self.downsamples = nn.ModuleList(layers)
        self.sum = Sum()
        self.out_channels, self.factor_t, self.factor_s = out, 1, 1
        if level < len(config.temporal_downsample):
            temporal = config.temporal_downsample[level]
            self.downsamples.append(Downsample(out, temporal=temporal))
            self.factor_t, self.factor_s = 2 if temporal else 1, 2

    def forward(self, x: Tensor, cache: FeatureCache | None = None) -> Tensor:
        """Run one chunk."""
        hidden = x
        for layer in self.downsamples:
            hidden = layer(hidden, cache)
        out: Tensor = self.sum(hidden, average_downsample(x, self.out_channels, self.factor_t, self.factor_s))
        return out


class UpGroup(nn.Module):
    """One decoder level: residual blocks and a resampler, plus the duplicated input; the last level has neither.

    [B, in, T, H, W] -> [B, out, T', H', W'].
    """

    def __init__(self, config: VAEConfig, level: int) -> None:
        super().__init__()
        width, out = config.decoder_dims[level : level + 2]
        layers = [
            ResidualBlock(out if index else width, out, config.dropout) for index in range(config.num_res_blocks + 1)
        ]
        self.upsamples = nn.ModuleList(layers)
        self.sum = Sum()
        self.out_channels, self.factor_t = out, 1
        self.has_shortcut = level < len(config.temporal_downsample)
        if self.has_shortcut:
            temporal = config.temporal_downsample[::-1][level]
            self.upsamples.append(Upsample(out, out, temporal=temporal))
            self.factor_t = 2 if temporal else 1

    def forward(self, x: Tensor, cache: FeatureCache | None = None) -> Tensor:
        """Run one chunk."""
        hidden = x
        for layer in self.upsamples:
            hidden = layer(hidden, cache)
        if not self.has_shortcut:
            return hidden
        is_first_chunk = cache is None or cache.is_first_chunk
        shortcut = duplicate_upsample(x, self.out_channels, self.factor_t, 2, is_first_chunk=is_first_chunk)
        out: Tensor = self.sum(hidden, shortcut)
        return out


def down_layers(config: VAEConfig) -> nn.ModuleList:
    """The encoder's groups, one per level."""
    return nn.ModuleList(DownGroup(config, level) for level in range(len(config.dim_mult)))


def up_layers(config: VAEConfig) -> nn.ModuleList:
    """The decoder's groups, one per level."""
    return nn.ModuleList(UpGroup(config, level) for level in range(len(config.dim_mult)))
