"""The levels of the Wan 2.1 video autoencoder: one flat list of residual blocks and resamplers.

Flat indices (``downsamples.5``) are those of the released checkpoint. Architecture: Wan 2.1 (Wan Team, 2025); the code
is our own.
"""

from itertools import pairwise

from torch import nn

from wan_core.models.vae.config import VAEConfig
from wan_core.models.vae.layers import Downsample, ResidualBlock, Upsample


def down_layers(config: VAEConfig) -> nn.ModuleList:
    """The encoder's layers between its first convolution and its middle, in order."""
    layers = nn.ModuleList()
    dims = config.encoder_dims
    for level, (width, out) in enumerate(pairwise(dims)):
        for index in range(config.num_res_blocks):
            layers.append(ResidualBlock(out if index else width, out, config.dropout))
        if level < len(config.temporal_downsample):
            layers.append(Downsample(out, temporal=config.temporal_downsample[level]))
    return layers


def up_layers(config: VAEConfig) -> nn.ModuleList:
    """The decoder's layers between its middle and its head, in order; each upsampling halves the channels."""
    layers = nn.ModuleList()
    dims = config.decoder_dims
    upsamples_time = config.temporal_downsample[::-1]
    for level, (width, out) in enumerate(pairwise(dims)):
        incoming = width // 2 if level else width
        for index in range(config.num_res_blocks + 1):
            layers.append(ResidualBlock(out if index else incoming, out, config.dropout))
        if level < len(upsamples_time):
            layers.append(Upsample(out, out // 2, temporal=upsamples_time[level]))
    return layers
