"""The layers both Wan video autoencoders are made of: norm, residual block, attention, resampling.

Tensors are [B, C, T, H, W], kept with channels last in memory: convolutions want that and frames fold into the batch
without a copy. Architecture: Wan 2.1 and 2.2 (Wan Team, 2025); module names follow the released checkpoints, the code
is our own.
"""

from math import sqrt

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from wan_core.models.vae.causal import CausalConv3d, FeatureCache, PointwiseConv3d, fold_time, unfold_time

NORM_FLOOR = 1e-12
"""Smallest channel norm that is divided by; an all-zero pixel stays zero."""


class ChannelNorm(nn.Module):
    """Scale every pixel's channel vector to length sqrt(C), then by ``gamma``; computed in float32.

    ``gamma`` is [C, 1, 1, 1] for clips [B, C, T, H, W], or [C, 1, 1] (``per_frame``) for frames [N, C, H, W].
    """

    def __init__(self, channels: int, *, per_frame: bool = False) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * (2 if per_frame else 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over dimension 1."""
        scaled = x * self.factor(x)
        return (scaled * self.gamma.to(scaled.dtype)).to(x.dtype)

    @staticmethod
    def factor(x: Tensor) -> Tensor:
        """What gives every pixel's channel vector its length, in float32 at least."""
        precision = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=precision).clamp_min(NORM_FLOOR)
        factor: Tensor = sqrt(x.shape[1]) / norm
        return factor


class Sum(nn.Module):
    """A branch plus its shortcut; the branch is always a result of its own, that nothing else reads."""

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        """Elementwise, any shape."""
        return branch + shortcut


class ResidualBlock(nn.Module):
    """Norm, SiLU, causal convolution, twice, plus the input. [B, in, T, H, W] -> [B, out, T, H, W]."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            ChannelNorm(in_channels),
            nn.SiLU(),
            CausalConv3d(in_channels, out_channels),
            ChannelNorm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            CausalConv3d(out_channels, out_channels),
        )
        self.shortcut = nn.Identity() if in_channels == out_channels else PointwiseConv3d(in_channels, out_channels)
        self.sum = Sum()

    def forward(self, x: Tensor, cache: FeatureCache | None = None) -> Tensor:
        """Run one chunk; both convolutions look back through ``cache``."""
        hidden = x
        for layer in self.residual:
            hidden = layer(hidden, cache) if isinstance(layer, CausalConv3d) else layer(hidden)
        out: Tensor = self.sum(hidden, self.shortcut(x))
        return out


class AttentionBlock(nn.Module):
    """Single-head attention among the pixels of each frame, plus the input. [B, C, T, H, W] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, per_frame=True)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        self.sum = Sum()

    def forward(self, x: Tensor) -> Tensor:
        """Attend within every frame on its own; memory grows with the square of H * W unless attention is fused."""
        frames = fold_time(x)
        height, width = frames.shape[-2:]
        tokens = rearrange(self.to_qkv(self.norm(frames)), "n c h w -> n (h w) c")
        query, key, value = tokens[:, None].chunk(3, dim=-1)
        mixed = functional.scaled_dot_product_attention(query, key, value)[:, 0]
        mixed = self.proj(rearrange(mixed, "n (h w) c -> n c h w", h=height, w=width))
        out: Tensor = self.sum(unfold_time(mixed, x.shape[0]), x)
        return out


class Downsample(nn.Module):
    """Halve height and width, and with ``temporal`` the frames too: 1 + 2n frames become 1 + n, later 2n become n."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: FeatureCache | None = None) -> Tensor:
        """Run one chunk; the clip's first frame passes the temporal part unchanged."""
        x = unfold_time(self.resample(fold_time(x)), x.shape[0])
        return x if self.time_conv is None else self._halve_time(self.time_conv, x, cache)

    @staticmethod
    def _halve_time(time_conv: nn.Conv3d, x: Tensor, cache: FeatureCache | None) -> Tensor:
        past = None if cache is None else cache.past(time_conv, x)
        out: Tensor
        if past is not None:
            out = time_conv(torch.cat([past[:, :, 1:], x], dim=2))
        elif x.shape[2] == 1:
            out = x
        else:
            out = torch.cat([x[:, :, :1], time_conv(x)], dim=2)
        if cache is not None:
            cache.remember(time_conv, x)
        return out


class NearestConv2d(nn.Sequential):
    """Nearest upsampling by 2 and a 3x3 convolution. [N, in, H, W] -> [N, out, 2 * H, 2 * W]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        super().__init__(nn.Upsample(scale_factor=2.0, mode="nearest"), conv)


class Upsample(nn.Module):
    """Double height and width, and with ``temporal`` the frames too: 1 + n frames become 1 + 2n, later n become 2n."""

    def __init__(self, in_channels: int, out_channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = NearestConv2d(in_channels, out_channels)
        self.time_conv = CausalConv3d(in_channels, 2 * in_channels, spatial_kernel=1) if temporal else None

    def forward(self, x: Tensor, cache: FeatureCache | None = None) -> Tensor:
        """Run one chunk; the clip's first frame stays one frame and is no history to the temporal part."""
        if self.time_conv is not None:
            x = self._double_time(self.time_conv, x, cache)
        return unfold_time(self.resample(fold_time(x)), x.shape[0])

    @staticmethod
    def _double_time(time_conv: CausalConv3d, x: Tensor, cache: FeatureCache | None) -> Tensor:
        if cache is not None and not cache.is_first_chunk:
            return _interleave(time_conv(x, cache))
        first, rest = x[:, :, :1], x[:, :, 1:]
        if cache is not None:
            cache.remember(time_conv, torch.zeros_like(first))
        if rest.shape[2] == 0:
            return x
        return torch.cat([first, _interleave(time_conv(rest, cache))], dim=2)


def _interleave(x: Tensor) -> Tensor:
    """[B, 2 * C, T, H, W] -> [B, C, 2 * T, H, W]: the channel halves are the even and the odd frames."""
    frames = rearrange(x, "b (a c) t h w -> b (t a) h w c", a=2)  # copied with channels last in memory
    return frames.permute(0, 4, 1, 2, 3)
