"""Timesteps to shifts, scales and gates: one row per segment of tokens that share a timestep, never one per token.

Rows are [B, S, C] float32; ``lengths`` are the tokens of each of the S segments, in the order of the tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

Lengths = tuple[int, ...]


def sinusoidal_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """[...] timesteps to [..., dim] float64: cosines, then sines, of ``t * 10000**(-j / (dim / 2))``."""
    half = dim // 2
    device = torch.device("cpu") if timesteps.device.type == "mps" else timesteps.device  # that one has no float64
    exponents = torch.arange(half, dtype=torch.float64, device=device) / half
    angles = timesteps.to(device, torch.float64).unsqueeze(-1) * torch.pow(10000.0, -exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ModulatedNorm(nn.Module):
    """Layer norm without learned weights; scale and shift follow from the timestep."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(
        self, tokens: Tensor, shift: Tensor, scale: Tensor, lengths: Lengths, dtype: torch.dtype | None = None
    ) -> Tensor:
        """``layer_norm(tokens) * (1 + scale) + shift`` of [B, L, C], computed in float32 and given in ``dtype``."""
        dim, dtype = tokens.shape[-1], dtype or tokens.dtype
        if shift.shape[0] == shift.shape[1] == 1:  # one row for all: the norm's own weight and bias, in one pass
            return functional.layer_norm(tokens, (dim,), 1 + scale.flatten(), shift.flatten(), self.eps).to(dtype)
        normed = functional.layer_norm(tokens, (dim,), eps=self.eps)
        return self.modulate(normed, shift, 1 + scale, lengths, dtype)

    def modulate(self, normed: Tensor, shift: Tensor, gain: Tensor, lengths: Lengths, dtype: torch.dtype) -> Tensor:
        """``normed * gain + shift``, a row for each segment."""
        parts = by_segment(lengths, [normed], [shift, gain])
        return _join([torch.addcmul(bias, part, factor) for part, bias, factor in parts], normed).to(dtype)


class GatedSum(nn.Module):
    """The residual sum of an update under a gate."""

    def forward(self, tokens: Tensor, update: Tensor, gate: Tensor, lengths: Lengths) -> Tensor:
        """``tokens + update * gate`` of [B, L, C], float32."""
        parts = by_segment(lengths, [tokens, update], [gate])
        return _join([part + change * row for part, change, row in parts], tokens)


def by_segment(lengths: Lengths, tokens: Sequence[Tensor], rows: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Views of tensors [B, L, C] and of rows [B, S, C] that broadcast to each other, segment by segment."""
    views = [_parts(each, lengths) for each in tokens] + [_rows(each, lengths) for each in rows]
    return list(zip(*views, strict=True))


def _parts(tokens: Tensor, lengths: Lengths) -> list[Tensor]:
    """Views of the segments: all in one [B, S, L / S, C] where they are of equal length, else one [B, l, C] each."""
    if len(lengths) == 1:
        return [tokens]
    if len(set(lengths)) == 1:
        return [tokens.view(tokens.shape[0], len(lengths), lengths[0], tokens.shape[2])]
    return list(torch.split(tokens, list(lengths), dim=1))


def _rows(rows: Tensor, lengths: Lengths) -> list[Tensor]:
    """The rows [B, S, C] in shapes that broadcast to the parts."""
    if len(lengths) > 1 and len(set(lengths)) == 1:
        return [rows.unsqueeze(2)]
    return list(torch.split(rows, 1, dim=1))


def _join(parts: list[Tensor], like: Tensor) -> Tensor:
    return parts[0].view(like.shape) if len(parts) == 1 else torch.cat(parts, dim=1)
