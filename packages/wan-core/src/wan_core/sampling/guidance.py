"""Classifier-free guidance: from a model and its conditions to a callable (latents, timestep) -> velocity."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from wan_core.errors import ConfigError
from wan_core.sampling.anchors import Anchors


class NetworkInputs(Protocol):
    """What a model's inputs must offer for batched guidance; their content stays opaque here."""

    @classmethod
    def batch(cls, parts: Sequence[Self]) -> Self:
        """Join several inputs on the batch axis."""


class SharedBranches(Protocol):
    """Two processes that evaluate one branch of guidance each, at the same time."""

    @property
    def index(self) -> int:
        """The branch of this process: 0 is the positive one."""

    def exchange(self, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """The velocities of both branches, the positive one first, from this process's own; both call it."""


class Denoiser:
    """Velocity of one model under guidance: ``negative + guidance_scale * (positive - negative)``.

    ``model(latents [B, C, T, H, W], timesteps [B] or [B, T], inputs) -> velocity``. Without ``negative``, or with a
    scale of 1, there is one forward per step. ``batched`` joins both branches into one forward of batch 2B (more
    memory, the same result up to rounding); ``shared`` evaluates one of them here and gets the other, with the same
    result to the bit. With ``anchors`` the timesteps are [B, T], 0 on fixed frames.
    Raises ``ConfigError`` for a scale that is not finite, and for branches that are batched and shared.
    """

    def __init__(
        self,
        model: Callable[[Tensor, Tensor, Any], Tensor],
        positive: NetworkInputs,
        negative: NetworkInputs | None = None,
        guidance_scale: float = 1.0,
        *,
        anchors: Anchors | None = None,
        batched: bool = False,
        shared: SharedBranches | None = None,
    ) -> None:
        if not math.isfinite(guidance_scale):
            raise ConfigError(f"guidance_scale must be a finite number, got {guidance_scale}")
        if batched and shared is not None:
            raise ConfigError("the branches of guidance are one batch or in two processes, not both")
        self._model = model
        self._positive = positive
        self._negative = None if guidance_scale == 1.0 else negative
        self._joint = None
        if batched and self._negative is not None:
            self._joint = type(positive).batch([positive, self._negative])
        self._guidance_scale = float(guidance_scale)
        self._anchors = anchors
        self._shared = shared

    def __call__(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Velocity [B, C, T, H, W], float32, at a scalar ``timestep`` that lives on the CPU (0..1000)."""
        timesteps = self._timesteps(latents, timestep)
        if self._negative is None:
            return self._model(latents, timesteps, self._positive).float()
        if self._shared is not None:
            own = self._negative if self._shared.index else self._positive
            positive, negative = self._shared.exchange(self._model(latents, timesteps, own).float())
        elif self._joint is None:
            positive = self._model(latents, timesteps, self._positive)
            negative = self._model(latents, timesteps, self._negative)
        else:
            both = self._model(torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), self._joint)
            positive, negative = both.chunk(2)
        return torch.lerp(negative.float(), positive.float(), self._guidance_scale)

    def _timesteps(self, latents: Tensor, timestep: Tensor) -> Tensor:
        batch = latents.shape[0]
        if self._anchors is not None:
            return self._anchors.timesteps(timestep).expand(batch, -1)
        return torch.full((batch,), timestep.item(), dtype=timestep.dtype, device=latents.device)
