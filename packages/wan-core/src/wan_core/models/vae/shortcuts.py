"""The parameter-free shortcuts and the 2x2 patch folding of the Wan 2.2 video autoencoder.

All are reorderings of [B, C, T, H, W] with a mean or a repetition. Architecture: Wan 2.2 (Wan Team, 2025), after the
residual autoencoding of DC-AE (Chen et al., 2024); the code is our own.
"""

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
    clip's first frame is averaged with an imagined empty one. ``C * ft * fs * fs`` must be a multiple of ``out``.
    """
    missing = -x.shape[2] % factor_t
    if missing:
        x = torch.cat([x.new_zeros((*x.shape[:2], missing, *x.shape[3:])), x], dim=2)
    group = x.shape[1] * factor_t * factor_s**2 // out_channels
    if group == 1 and x.shape[1] == out_channels:
        return x
    # Mean over channel offsets first: [B, T, H, W, C * F] with channels last, in the order (c, dt, dh, dw).
    folded = rearrange(x, "b c (t a) (h q) (w s) -> b t h w (c a q s)", a=factor_t, q=factor_s, s=factor_s)
    return folded.view(*folded.shape[:-1], out_channels, group).mean(-1).permute(0, 4, 1, 2, 3)


def duplicate_upsample(x: Tensor, out_channels: int, factor_t: int, factor_s: int, *, is_first_chunk: bool) -> Tensor:
    """Repeat channels, then unfold them into time and space: the counterpart of :func:`average_downsample`.

    [B, C, T, H, W] -> [B, out, T * ft, H * fs, W * fs]; a clip's first chunk loses its ``ft - 1`` leading frames.
    ``out * ft * fs * fs`` must be a multiple of ``C``.
    """
    repeats = out_channels * factor_t * factor_s**2 // x.shape[1]
    repeated = x.permute(0, 2, 3, 4, 1).repeat_interleave(repeats, dim=-1)
    out = rearrange(
        repeated, "b t h w (c a q s) -> b (t a) (h q) (w s) c", a=factor_t, q=factor_s, s=factor_s, c=out_channels
    ).permute(0, 4, 1, 2, 3)
    return out[:, :, factor_t - 1 :] if is_first_chunk else out
