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
        self._denoisers = list(denoisers)
        self._frames = [list(indices) for indices in frames]
        self._placed: tuple[list[Tensor], Tensor] | None = None

    def __call__(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Velocity [B, C, T, H, W] at a scalar ``timestep``. Raises ConfigError where a frame is in no window."""
        windows, counts = self._at(latents)
        total = latents.new_zeros(latents.shape)
        for denoise, indices in zip(self._denoisers, windows, strict=True):
            total[:, :, indices] += denoise(latents[:, :, indices], timestep)
        return total / counts.to(total.dtype)[:, None, None]

    def _at(self, latents: Tensor) -> tuple[list[Tensor], Tensor]:
        """The frames of each window, and in how many each frame is: on the device from the first step on."""
        if self._placed is None or self._placed[1].shape != latents.shape[2:3]:
            counts = torch.zeros(latents.shape[2])
            for indices in self._frames:
                counts[indices] += 1
            if not counts.all():
                raise ConfigError(f"latent frame {int(counts.argmin())} is in no window")
            there = latents.device
            self._placed = [torch.tensor(each, device=there) for each in self._frames], counts.to(there)
        return self._placed
