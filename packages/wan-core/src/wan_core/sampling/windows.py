"""Videos longer than a network was trained for: overlapping windows, each under conditions of its own."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wan_core.errors import ConfigError


class WindowDenoiser:
    """Velocity of latents of any length: each window has a denoiser of its own; where windows overlap, their mean.

    ``frames`` are the latent frames of each window in its order, which need not be neighbours. Since steps of solvers
    are linear in the velocity, the mean of velocities steps as the mean of stepped windows. Raises ConfigError unless
    there is one denoiser a window.
    """

    def __init__(
        self, denoisers: Sequence[Callable[[Tensor, Tensor], Tensor]], frames: Sequence[Sequence[int]]
    ) -> None:
        if not denoisers or len(denoisers) != len(frames):
            raise ConfigError(f"each window needs a denoiser, got {len(denoisers)} for {len(frames)} windows")
        self._windows = [(denoise, list(indices)) for denoise, indices in zip(denoisers, frames, strict=True)]

    def __call__(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Velocity [B, C, T, H, W] at a scalar ``timestep``. Raises ConfigError where a frame is in no window."""
        counts = torch.zeros(latents.shape[2])  # on the host, so that nothing waits for a device
        for _, indices in self._windows:
            counts[indices] += 1
        if not counts.all():
            raise ConfigError(f"latent frame {int(counts.argmin())} is in no window")
        total = latents.new_zeros(latents.shape)
        for denoise, indices in self._windows:
            total[:, :, indices] += denoise(latents[:, :, indices], timestep)
        return total / counts.to(total)[:, None, None]
