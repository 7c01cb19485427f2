"""Anchors: latent frames that stay fixed while the others are denoised (first frames of ti2v and mi2v)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from wan_core.errors import RequestError


@dataclass(frozen=True)
class Anchors:
    """Fixed latent frames.

    ``latents``: [B, C, T, H, W], read only where fixed. ``mask``: [B, T] bool, True = fixed. B = 1 fits any batch.
    """

    latents: Tensor
    mask: Tensor

    @classmethod
    def leading(cls, latents: Tensor, latent_frames: int) -> Self:
        """Fix the first N of ``latent_frames`` frames to ``latents`` [B, C, N, H, W]."""
        return cls.at(latents, range(latents.shape[2]), latent_frames)

    @classmethod
    def at(cls, latents: Tensor, positions: Sequence[int], latent_frames: int) -> Self:
        """Fix the frames at ``positions`` (one per frame of ``latents`` [B, C, N, H, W]) of ``latent_frames``.

        Raises ``RequestError`` for a position outside the video, a repeated one, or a count that is not N.
        """
        frames = list(positions)
        if len(frames) != latents.shape[2]:
            raise RequestError(f"{latents.shape[2]} anchored latent frames need as many positions, got {len(frames)}")
        if len(frames) > latent_frames:
            raise RequestError(f"{len(frames)} anchored latent frames do not fit into {latent_frames}")
        if len(set(frames)) != len(frames) or any(not 0 <= frame < latent_frames for frame in frames):
            raise RequestError(f"anchor positions must be distinct and within 0..{latent_frames - 1}, got {frames}")
        values = latents.new_zeros(*latents.shape[:2], latent_frames, *latents.shape[3:])
        values[:, :, frames] = latents
        mask = torch.zeros(latents.shape[0], latent_frames, dtype=torch.bool)
        mask[:, frames] = True
        return cls(values, mask.to(latents.device))

    @property
    def is_complete(self) -> bool:
        """Whether every frame is fixed, so that there is nothing to denoise."""
        return bool(self.mask.all())

    def apply(self, latents: Tensor) -> Tensor:
        """``latents`` [B, C, T, H, W] with the fixed frames put in; whatever was there, NaN too, is gone."""
        return torch.where(self.mask[:, None, :, None, None], self.latents.to(latents.dtype), latents)

    def timesteps(self, timestep: Tensor) -> Tensor:
        """One timestep per latent frame, [B, T]: 0 where fixed, the scalar ``timestep`` (on the CPU) elsewhere."""
        spread = torch.full(self.mask.shape, timestep.item(), dtype=timestep.dtype, device=self.mask.device)
        return spread.masked_fill_(self.mask, 0)
