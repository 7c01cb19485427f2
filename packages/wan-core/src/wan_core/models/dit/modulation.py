"""Timesteps to shifts, scales and gates: one row per segment of tokens that share a timestep, never one per token."""

import torch
from torch import Tensor
from torch.nn import functional


def sinusoidal_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """[...] timesteps to [..., dim] float64: cosines, then sines, of ``t * 10000**(-j / (dim / 2))``."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float64, device="cpu") / half
    frequencies = torch.pow(10000.0, -exponents)
    angles = timesteps.to("cpu", torch.float64).unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def per_segment(tokens: Tensor, length: int) -> Tensor:
    """View tokens [B, L, C] as segments [B, L / length, length, C]."""
    return tokens.view(tokens.shape[0], -1, length, tokens.shape[2])


def modulated_norm(tokens: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """``layer_norm(tokens) * (1 + scale) + shift`` in float32; tokens [B, L, C], rows [B, S, C] with S dividing L."""
    dim = tokens.shape[-1]
    if shift.shape[0] == shift.shape[1] == 1:
        return functional.layer_norm(tokens, (dim,), 1 + scale.flatten(), shift.flatten(), eps)
    segments = per_segment(functional.layer_norm(tokens, (dim,), eps=eps), tokens.shape[1] // shift.shape[1])
    return torch.addcmul(shift.unsqueeze(2), segments, 1 + scale.unsqueeze(2)).flatten(1, 2)


def add_gated(tokens: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """``tokens + update * gate`` in float32; tokens and update [B, L, C], gate [B, S, C] with S dividing L.

    Without gradients ``tokens`` is changed in place.
    """
    length = tokens.shape[1] // gate.shape[1]
    parts = per_segment(tokens, length), per_segment(update, length), gate.unsqueeze(2)
    if torch.is_grad_enabled():
        return torch.addcmul(*parts).flatten(1, 2)
    parts[0].addcmul_(*parts[1:])
    return tokens
