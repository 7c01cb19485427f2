"""From a face to its motion: coefficients of learned directions, all at right angles to each other.

Paper: Wang et al., "Latent Image Animator" (arXiv 2203.09043). Source of names, constants and the order of steps: the
released Wan2.2-Animate-14B (``motion_encoder``); the code is our own.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_core.models.dit.config import AnimateDiTConfig

_TAPS = (1, 3, 3, 1)
_SLOPE = 0.2
_GAIN = 2**0.5
"""What follows a leaky ReLU in the original; here the layer before it has it, as a positive factor passes through."""

_NUM_LINEAR = 5
_NUDGE = 1e-8
"""Added to the directions in the original, before they are turned to right angles."""


class EqualConv2d(nn.Module):
    """Convolution whose weights are scaled by their fan-in when it runs (equalised learning rate)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.scale = (in_channels * kernel**2) ** -0.5
        self.stride, self.padding = stride, padding

    def forward(self, images: Tensor, gain: float = 1.0, bias: Tensor | None = None) -> Tensor:
        """[N, C, H, W] to [N, C', H', W']: ``gain`` times the convolution, plus ``bias`` [1, C', 1, 1] times it."""
        added = None if bias is None else bias.flatten() * gain
        return functional.conv2d(images, self.weight * (self.scale * gain), added, self.stride, self.padding)


class EqualLinear(nn.Module):
    """Linear layer whose weights are scaled by their fan-in when it runs."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))

    def forward(self, states: Tensor) -> Tensor:
        """[..., C] to [..., C']."""
        return functional.linear(states, self.weight * self.weight.shape[1] ** -0.5, self.bias)


class Blur(nn.Module):
    """Binomial low-pass filter of each channel, from whose result a later stride takes every second value."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", blur_kernel())

    def forward(self, images: Tensor, padding: int, stride: int = 1) -> Tensor:
        """[N, C, H, W] to [N, C, (H + 2 * padding - 4) // stride + 1, ...], with zeros around the images."""
        channels = images.shape[1]
        # The original convolves, which turns the kernel round; conv2d does not.
        kernel = self.kernel.to(images).flip(0, 1).expand(channels, 1, -1, -1)
        return functional.conv2d(images, kernel, stride=stride, padding=padding, groups=channels)


class ChannelBias(nn.Module):
    """The bias of an activated convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))


def blur_kernel() -> Tensor:
    """The weights [4, 4] of the filter, which add up to one; 16-bit floats hold them exactly."""
    taps = torch.tensor(_TAPS, dtype=torch.float32)
    return taps[:, None] * taps / taps.sum() ** 2


class ActivatedConv(nn.ModuleList):
    """Convolution, bias and leaky ReLU of images of one size: ``[convolution, bias]``."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(
            [EqualConv2d(in_channels, out_channels, kernel, padding=kernel // 2), ChannelBias(out_channels)]
        )

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H, W]."""
        return _activated(self[0], self[1], images, _GAIN)


class HalvingConv(nn.ModuleList):
    """Blur, convolution, bias and leaky ReLU, to half the size: ``[blur, convolution, bias]``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__([Blur(), EqualConv2d(in_channels, out_channels, 3, stride=2), ChannelBias(out_channels)])

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H / 2, W / 2], over the square root of two."""
        return _activated(self[1], self[2], self[0](images, padding=2), _GAIN / 2**0.5)


class HalvingSkip(nn.ModuleList):
    """Blur and a convolution of single pixels, to half the size: ``[blur, convolution]``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__([Blur(), EqualConv2d(in_channels, out_channels, 1)])

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H / 2, W / 2], over the square root of two."""
        # A convolution of single pixels sees every second one: the others need not be blurred.
        out: Tensor = self[1](self[0](images, padding=1, stride=2), gain=2**-0.5)
        return out


class HalvingBlock(nn.Module):
    """Residual block to half the size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ActivatedConv(in_channels, in_channels, 3)
        self.conv2 = HalvingConv(in_channels, out_channels)
        self.skip = HalvingSkip(in_channels, out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H / 2, W / 2]."""
        out: Tensor = self.conv2(self.conv1(images)) + self.skip(images)
        return out


class AppearanceNet(nn.Module):
    """Convolutions from an image to one vector."""

    def __init__(self, channels: Sequence[int], style_dim: int) -> None:
        super().__init__()
        halvings = [HalvingBlock(*pair) for pair in pairwise(channels)]
        last = EqualConv2d(channels[-1], style_dim, 4)
        self.convs = nn.ModuleList([ActivatedConv(3, channels[0], 1), *halvings, last])

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, S, S] to [N, style_dim]."""
        for layer in self.convs:
            images = layer(images)
        return images.flatten(1)


class MotionCoefficients(nn.Module):
    """An image to the coefficients of its motion."""

    def __init__(self, config: AnimateDiTConfig) -> None:
        super().__init__()
        style = config.motion_style_dim
        self.net_app = AppearanceNet(config.motion_encoder_channels, style)
        widths = (*(style,) * (_NUM_LINEAR - 1), config.motion_dim)
        self.fc = nn.Sequential(*(EqualLinear(style, width) for width in widths))

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, S, S] to [N, motion_dim]."""
        coefficients: Tensor = self.fc(self.net_app(images))
        return coefficients


class Directions(nn.Module):
    """Learned directions of motion."""

    def __init__(self, config: AnimateDiTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(config.motion_encoder_dim, config.motion_dim))

    def forward(self, coefficients: Tensor) -> Tensor:
        """[N, motion_dim] to [N, motion_encoder_dim]: the sum of the directions turned to right angles, in float32."""
        basis: Tensor = torch.linalg.qr(self.weight.float() + _NUDGE)[0]
        return coefficients.float() @ basis.mT


class MotionSynthesis(nn.Module):
    """Coefficients to a motion."""

    def __init__(self, config: AnimateDiTConfig) -> None:
        super().__init__()
        self.direction = Directions(config)

    def forward(self, coefficients: Tensor) -> Tensor:
        """[N, motion_dim] to [N, motion_encoder_dim]."""
        motion: Tensor = self.direction(coefficients)
        return motion


class MotionEncoder(nn.Module):
    """Face images to their motion."""

    def __init__(self, config: AnimateDiTConfig) -> None:
        super().__init__()
        self.enc = MotionCoefficients(config)
        self.dec = MotionSynthesis(config)

    def forward(self, images: Tensor, at_once: int = 8) -> Tensor:
        """Images [N, 3, S, S] in [-1, 1] to [N, motion_encoder_dim] float32, ``at_once`` of them at a time.

        The directions are turned to right angles once for all images.
        """
        dtype = self.dec.direction.weight.dtype
        parts = [self.enc(part.to(dtype)) for part in torch.split(images, at_once)]
        motion: Tensor = self.dec(torch.cat(parts))
        return motion


def _activated(convolution: nn.Module, bias: nn.Module, images: Tensor, gain: float) -> Tensor:
    """Convolution, bias and leaky ReLU, ``gain`` times: the gain is in what only the activation sees."""
    out = convolution(images, gain, cast(ChannelBias, bias).bias)
    return functional.leaky_relu(out, _SLOPE, inplace=True)
