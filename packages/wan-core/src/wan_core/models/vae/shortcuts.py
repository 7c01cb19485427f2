"""The parameter-free shortcuts and the 2x2 patch folding of the Wan 2.2 video autoencoder.

All are reorderings of [B, C, T, H, W] with a mean or a repetition. Architecture: Wan 2.2 (Wan Team, 2025), after the
residual autoencoding of DC-AE (Chen et al., 2024); the code is our own.
"""

from math import gcd, prod

import torch
from einops import rearrange
from torch import Tensor


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """Fold p x p pixels into channels: [B, C, T, H * p, W * p] -> [B, C * p * p, T, H, W].

    The column inside the patch varies slower than the row: output channel = c * p * p + column * p + row.
    """
    if patch_size == 1:
        return x
    return rearrange(x, "b c t (h q) (w r) -> b (c r q) t h w", q=patch_size, r=patch_size)


def unpatchify(x: Tensor, patch_size: int) -> Tensor:
    """The inverse of :func:`patchify`: [B, C * p * p, T, H, W] -> [B, C, T, H * p, W * p]."""
    if patch_size == 1:
        return x
    return rearrange(x, "b (c r q) t h w -> b c t (h q) (w r)", q=patch_size, r=patch_size)


def average_downsample(x: Tensor, out_channels: int, factor_t: int, factor_s: int) -> Tensor:
    """Fold time and space into channels, then average neighbouring channels down to ``out_channels``.

    [B, C, T, H, W] -> [B, out, ceil(T / ft), H / fs, W / fs]. Missing frames are zeros in FRONT of the chunk, so a
    clip's first frame is averaged with an imagined empty one. Factors are 1 or 2; ``C * ft * fs * fs`` must be a
    multiple of ``out``.
    """
    missing = -x.shape[2] % factor_t
    if missing:
        x = torch.cat([x.new_zeros((*x.shape[:2], missing, *x.shape[3:])), x], dim=2)
    factors = (factor_t, factor_s, factor_s)
    group = x.shape[1] * prod(factors) // out_channels
    pooled = gcd(group, prod(factors))
    kept = _leading_factors(factors, prod(factors) // pooled)
    folded = rearrange(x, "b c (t a) (h q) (w s) -> b t a h q w s c", a=factor_t, q=factor_s, s=factor_s)
    averaged = [dim for dim, size in zip((2, 4, 6), kept, strict=True) if size == 1]
    if pooled > 1:
        folded = folded.mean(averaged, keepdim=True)
    channels = rearrange(folded, "b t a h q w s c -> b t h w (c a q s)")
    if group > pooled:
        channels = channels.view(*channels.shape[:-1], out_channels, group // pooled).mean(-1)
    return channels.permute(0, 4, 1, 2, 3)


def duplicate_upsample(x: Tensor, out_channels: int, factor_t: int, factor_s: int, *, is_first_chunk: bool) -> Tensor:
    """Repeat channels, then unfold them into time and space: the counterpart of :func:`average_downsample`.

    [B, C, T, H, W] -> [B, out, T * ft, H * fs, W * fs]; a clip's first chunk loses its ``ft - 1`` leading frames.
    Factors are 1 or 2; ``out * ft * fs * fs`` must be a multiple of ``C``.
    """
    factors = (factor_t, factor_s, factor_s)
    repeats = out_channels * prod(factors) // x.shape[1]
    broadcast = gcd(repeats, prod(factors))
    a, q, s = _leading_factors(factors, prod(factors) // broadcast)
    channels = x.permute(0, 2, 3, 4, 1)
    if repeats > broadcast:
        channels = channels.repeat_interleave(repeats // broadcast, dim=-1)
    unfolded = rearrange(channels, "b t h w (c a q s) -> b t a h q w s c", a=a, q=q, s=s)
    batch, frames, _, height, _, width, _, _ = unfolded.shape
    shape = (batch, frames, factor_t, height, factor_s, width, factor_s, out_channels)
    out = rearrange(unfolded.expand(shape), "b t a h q w s c -> b (t a) (h q) (w s) c").permute(0, 4, 1, 2, 3)
    return out[:, :, factor_t - 1 :] if is_first_chunk else out


def _leading_factors(factors: tuple[int, ...], product: int) -> list[int]:
    """Each factor where the leading ones make up ``product``, else 1: the offsets that channels distinguish."""
    leading = []
    for factor in factors:
        leading.append(factor if product % factor == 0 and product > 1 else 1)
        product //= leading[-1]
    return leading
