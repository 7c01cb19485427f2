"""Convolutions of the video autoencoder with fewer multiplications, for float32 inference on the CPU.

All are algebraic rewrites of the plain convolution, equal within float32 rounding. Their kernels are derived from the
module's weights at every call: that costs little beside the convolution of an image-sized map, needs no second copy of
the weights, and cannot go stale. Small maps and other dtypes take the plain path.

- Along time a kernel of 3 is evaluated with minimal filtering (Winograd, 1980; Cook-Toom construction): 4 frames with
  6 two-dimensional convolutions instead of 12, or 2 frames with 4 instead of 6.
- Nearest upsampling by 2 and a 3x3 convolution are one transposed convolution of stride 2: 16 taps per input pixel
  instead of 36.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from wan_core.models.vae.causal import CausalConv3d
from wan_core.models.vae.layers import NearestConv2d

MIN_MAP_PIXELS = 200
"""Below this many pixels (over the batch) deriving the kernels costs more than it saves; measured on two CPU cores."""

# Kernel transform for two outputs (evaluation at 0, 1, -1 and infinity), one row per derived kernel.
_KERNELS_OF_TWO = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
# The same for four outputs: 0, 1, -1, 2, -2 and infinity.
_KERNELS_OF_FOUR = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
# Taps of a 3-kernel after nearest upsampling by 2, as taps of a transposed convolution of kernel 4 and stride 2.
_UPSAMPLED_TAPS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))


class FilteredConv3d(CausalConv3d):
    """Minimal filtering along time."""

    def over_time(self, past: Tensor, x: Tensor) -> Tensor:
        if not pays_off(x):
            return super().over_time(past, x)
        return temporal_conv([*past.unbind(2), *x.unbind(2)], self.weight, self.bias)


class TransposedConv2d(NearestConv2d):
    """Upsampling and convolution as one transposed convolution."""

    def forward(self, frames: Tensor) -> Tensor:
        if not pays_off(frames):
            out: Tensor = self[1](self[0](frames))
            return out
        return upsampled_conv(frames, self.get_parameter("1.weight"), self.get_parameter("1.bias"))


def pays_off(x: Tensor) -> bool:
    """Whether the rewrites of this module are worth it for an input [B, C, ..., H, W]: float32, a large map."""
    return x.dtype == torch.float32 and x.shape[0] * x.shape[-2] * x.shape[-1] >= MIN_MAP_PIXELS


def temporal_conv(frames: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve T + 2 frames [B, C, H, W] with ``weight`` [O, C, 3, kh, kw], padding space only: [B, O, T, H, W]."""
    batch, _, height, width = frames[0].shape
    count = len(frames) - 2
    out = torch.empty((batch, count, height, width, weight.shape[0]), dtype=frames[0].dtype).permute(0, 4, 1, 2, 3)
    start = 0
    fours = _kernels(weight, _KERNELS_OF_FOUR) if count >= 4 else ()
    while count - start >= 4:
        _four_frames(frames[start : start + 6], fours, bias, out[:, :, start : start + 4])
        start += 4
    if count - start >= 2:
        _two_frames(frames[start : start + 4], _kernels(weight, _KERNELS_OF_TWO), bias, out[:, :, start : start + 2])
        start += 2
    if count > start:
        stacked = torch.cat(list(frames[start : start + 3]), dim=1)
        kernel = weight.transpose(1, 2).flatten(1, 2)  # [O, 3 * C, kh, kw]
        out[:, :, start] = _conv(stacked, kernel, bias)
    return out


def upsampled_conv(frames: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Nearest upsampling by 2 of [N, C, H, W], then a 3x3 convolution with ``weight`` [O, C, 3, 3]: [N, O, 2H, 2W]."""
    taps = weight.new_tensor(_UPSAMPLED_TAPS)
    kernel = torch.einsum("yj,xk,ocjk->coyx", taps, taps, weight)
    return functional.conv_transpose2d(frames, kernel, bias, stride=2, padding=1)


def _kernels(weight: Tensor, transform: Sequence[Sequence[float]]) -> tuple[Tensor, ...]:
    """The derived two-dimensional kernels [O, C, kh, kw], one per row of ``transform``, channels last."""
    derived = torch.einsum("kt,octyx->koyxc", weight.new_tensor(transform), weight)
    return derived.permute(0, 1, 4, 2, 3).unbind()


def _conv(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.conv2d(x, kernel, bias, padding=(kernel.shape[-2] // 2, kernel.shape[-1] // 2))


def _two_frames(frames: Sequence[Tensor], kernels: Sequence[Tensor], bias: Tensor | None, out: Tensor) -> None:
    first, second, third, fourth = frames
    # The kernel of point 1 reaches every output with factor 1, so it carries the bias for all of them.
    plus = _conv(second + third, kernels[1], bias)
    minus = _conv(third - second, kernels[2])
    torch.add(plus, minus, out=out[:, :, 0]).add_(_conv(first - third, kernels[0]))
    torch.sub(plus, minus, out=out[:, :, 1]).add_(_conv(fourth - second, kernels[3]))


def _four_frames(frames: Sequence[Tensor], kernels: Sequence[Tensor], bias: Tensor | None, out: Tensor) -> None:
    zeroth, first, second, third, fourth, fifth = frames
    # Points +-1 share an even and an odd part, and so do +-2.
    even, odd = torch.sub(fourth, second, alpha=4), torch.sub(third, first, alpha=4)
    plus = _conv(even + odd, kernels[1], bias)
    minus = _conv(even.sub_(odd), kernels[2])
    total, difference = plus + minus, plus.sub_(minus)
    even, odd = fourth - second, third - first
    plus = _conv(torch.add(even, odd, alpha=2), kernels[3])
    minus = _conv(even.sub_(odd, alpha=2), kernels[4])
    far_total, far_difference = plus + minus, plus.sub_(minus)
    torch.add(total, far_total, alpha=4, out=out[:, :, 2])
    torch.add(difference, far_difference, alpha=2, out=out[:, :, 1])
    at_zero = torch.sub(fourth, second, alpha=5).add_(zeroth, alpha=4)
    torch.add(total, far_total, out=out[:, :, 0]).add_(_conv(at_zero, kernels[0]))
    at_infinity = torch.sub(fifth, third, alpha=5).add_(first, alpha=4)
    torch.add(difference, far_difference, alpha=8, out=out[:, :, 3]).add_(_conv(at_infinity, kernels[5]))
