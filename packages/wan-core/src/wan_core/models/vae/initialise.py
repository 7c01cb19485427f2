"""Random weights to train a video autoencoder from."""

import torch
from torch import Tensor, nn

from wan_core.models.vae.causal import CausalConv3d
from wan_core.models.vae.layers import AttentionBlock, Downsample, ResidualBlock, Upsample


def initialise_for_training(model: nn.Module, seed: int) -> None:
    """Overwrite all weights of ``model`` in place.

    Convolutions keep the variance of their input (normal, standard deviation 1 / sqrt(fan in)) and have no bias. The
    last layer of every residual branch is zero, so each block starts as its shortcut; temporal convolutions of the
    resamplers pass frames through. Equal seeds give equal weights on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                fan_in = module.weight[0].numel()
                _fill(module.weight, torch.randn(module.weight.shape, generator=generator) / fan_in**0.5)
                if module.bias is not None:
                    module.bias.zero_()
        for module in model.modules():
            _silence_branch(module)


def _silence_branch(module: nn.Module) -> None:
    if isinstance(module, ResidualBlock):
        last = module.residual[-1]
        if isinstance(last, CausalConv3d):
            last.weight.zero_()
    elif isinstance(module, AttentionBlock):
        module.proj.weight.zero_()
    elif isinstance(module, Downsample | Upsample) and module.time_conv is not None:
        weight = module.time_conv.weight
        identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        weight.zero_()
        # The newest tap: an upsampled frame is shown twice, a downsampled pair keeps its second frame.
        weight[:, :, -1, 0, 0] = identity.repeat(weight.shape[0] // weight.shape[1], 1)


def _fill(weight: Tensor, values: Tensor) -> None:
    weight.copy_(values.to(weight))
