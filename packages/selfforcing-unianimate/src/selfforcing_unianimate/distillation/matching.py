"""Distribution matching: what two scores say of a student's video, and the losses that follow.

All tensors are [B, C, T, h, w]; predictions are of clean latents. DMD: Yin et al. (arXiv 2311.18828, 2405.14867), as in
Self-Forcing (arXiv 2506.08009); SiD: Zhou et al., "Score identity Distillation" (arXiv 2404.04057).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wan_core import ConfigError, RequestError
from wan_core.sampling import FlowTable

Predict = Callable[[Tensor, Tensor], Tensor]
"""(noisy latents, timesteps [B]) -> clean latents."""


@dataclass(frozen=True, kw_only=True)
class ScoreTimes:
    """At which timesteps a student's video is scored: uniform, under ``flow_shift``, kept within ``low``..``high``.

    Raises ConfigError for limits that leave nothing.
    """

    flow_shift: float = 5.0
    low: float = 20.0
    high: float = 980.0

    def __post_init__(self) -> None:
        if self.flow_shift <= 0 or not 0 <= self.low < self.high <= 1000:
            raise ConfigError(
                f"scores need a positive shift and timesteps with 0 <= low < high <= 1000, got {self.flow_shift}, "
                f"{self.low} and {self.high}"
            )

    def shifted(self, times: Tensor) -> Tensor:
        """The timesteps of times before the shift, float32 of the same shape."""
        share = times.float() / 1000
        if self.flow_shift > 1:
            share = self.flow_shift * share / (1 + (self.flow_shift - 1) * share)
        return (share * 1000).clamp(self.low, self.high)


def prediction(network: Callable[..., Any], inputs: Any, table: FlowTable) -> Predict:
    """The clean predictions of a network under its conditions; ``inputs`` are those of the network's kind."""

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        velocity: Tensor = network(noisy, timesteps, inputs)
        return table.clean(velocity.float(), noisy, timesteps)

    return predict


def guided(positive: Predict, negative: Predict | None, scale: float) -> Predict:
    """``positive + scale * (positive - negative)``: a ``scale`` of 3 is one of 4 where guidance counts from 1.

    0 leaves the negative branch out.
    """
    if scale == 0 or negative is None:
        return positive

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        wanted = positive(noisy, timesteps)
        return wanted + scale * (wanted - negative(noisy, timesteps))

    return predict


def dmd_gradient(latents: Tensor, real: Tensor, fake: Tensor, *, normalized: bool = True) -> Tensor:
    """The direction that leads the student's ``latents`` away from what is real, a constant.

    ``fake - real``; with ``normalized`` over the mean of ``|latents - real|`` in each sample (equation 8 of arXiv
    2311.18828). What is not finite is 0, as in the reference.
    """
    gradient = fake.detach() - real.detach()
    if normalized:
        gradient = gradient / _distance(latents, real)
    return torch.nan_to_num(gradient)


def dmd_loss(latents: Tensor, gradient: Tensor, mask: Tensor | None = None) -> Tensor:
    """A scalar whose gradient in ``latents`` is ``gradient`` over the number of elements; float64.

    Where ``mask`` (boolean, broadcast to the latents) is False, nothing counts. Raises RequestError when that is all.
    """
    wanted = (latents.double() - gradient.double()).detach()
    return 0.5 * masked_mean((latents.double() - wanted).square(), mask)


def sid_loss(latents: Tensor, real: Tensor, fake: Tensor, *, alpha: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """Score identity: the mean of ``(real - fake) * (real - latents - alpha * (real - fake))``, a scalar in float64.

    Over the mean of ``|latents - real|`` in each sample. Gradients go through both predictions.
    """
    apart = real.double() - fake.double()
    error = apart * (real.double() - latents.double() - alpha * apart)
    return masked_mean(torch.nan_to_num(error / _distance(latents, real)), mask)


def match_distribution(
    latents: Tensor,
    real: Predict,
    fake: Predict,
    noise: Tensor,
    timesteps: Tensor,
    table: FlowTable,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """The DMD loss of a student's ``latents`` mixed with ``noise`` at ``timesteps`` [B]; no gradient in the scores."""
    with torch.no_grad():
        noisy = table.add_noise(latents, noise, timesteps)
        gradient = dmd_gradient(latents, real(noisy, timesteps), fake(noisy, timesteps))
    return dmd_loss(latents, gradient, mask)


def match_scores(
    latents: Tensor,
    real: Predict,
    fake: Predict,
    noise: Tensor,
    timesteps: Tensor,
    table: FlowTable,
    *,
    alpha: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """The SiD loss of the same; gradients go through both scores to the latents."""
    noisy = table.add_noise(latents, noise, timesteps)
    return sid_loss(latents, real(noisy, timesteps), fake(noisy, timesteps), alpha=alpha, mask=mask)


def critic_loss(velocity: Tensor, latents: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the fake score's ``velocity`` at a mix of the student's ``latents`` and ``noise``."""
    return (velocity.float() - (noise - latents).float()).square().mean()


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean where a boolean mask is True. Raises RequestError for a mask that leaves nothing."""
    if mask is None:
        return values.mean()
    chosen = mask.expand_as(values)
    if not bool(chosen.any()):
        raise RequestError("every latent frame is left out of the loss")
    return values[chosen].mean()


def _distance(latents: Tensor, real: Tensor) -> Tensor:
    """The mean of ``|latents - real|`` in each sample, a constant that broadcasts."""
    return (latents - real).detach().abs().mean(dim=(1, 2, 3, 4), keepdim=True)
