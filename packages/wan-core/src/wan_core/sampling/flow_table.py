"""The noise levels that a network learns, looked up by the nearest timestep: Self-Forcing's flow-match scheduler.

Its table has 1000 entries, of which the last is above 0: no lookup gives a clean sample.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from wan_core.errors import ConfigError
from wan_core.sampling.schedule import NUM_TRAIN_TIMESTEPS, flow_match_table


class FlowTable:
    """``sigmas`` and ``timesteps`` [1000] float32, decreasing, under a ``flow_shift``; ``weights`` of a loss there.

    Timesteps are [B], or [B, T] of samples [B, C, T, H, W]. Raises ConfigError for a shift that is not positive.
    """

    def __init__(self, flow_shift: float) -> None:
        levels = flow_match_table(flow_shift)
        self.sigmas = levels.float()
        self.timesteps = (levels * NUM_TRAIN_TIMESTEPS).float()
        # A bell around the middle, moved down to 0 at its lowest and scaled to a mean of 1.
        bell = torch.exp(-2 * ((self.timesteps - NUM_TRAIN_TIMESTEPS / 2) / NUM_TRAIN_TIMESTEPS) ** 2)
        self.weights = (bell - bell.min()) * (NUM_TRAIN_TIMESTEPS / (bell - bell.min()).sum())

    def index(self, timesteps: Tensor) -> Tensor:
        """The entry nearest to each timestep, the noisier one of two; same shape, on the CPU."""
        return (self.timesteps - timesteps.float().cpu().unsqueeze(-1)).abs().argmin(dim=-1)

    def weight(self, timesteps: Tensor) -> Tensor:
        """The weight of a loss at each timestep, float32."""
        return self.weights[self.index(timesteps)]

    def warped(self, times: Sequence[int]) -> list[float]:
        """Times before the shift, whole numbers from 1000 to 0, as the timesteps that a network sees."""
        if any(not 0 <= time <= NUM_TRAIN_TIMESTEPS for time in times):
            raise ConfigError(f"denoising steps must be within 0..{NUM_TRAIN_TIMESTEPS}, got {list(times)}")
        entries = [*self.timesteps.tolist(), 0.0]
        return [entries[NUM_TRAIN_TIMESTEPS - int(time)] for time in times]

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``(1 - sigma) * clean + sigma * noise`` in the dtype of the noise."""
        sigma = self._levels(timesteps, clean)
        return ((1 - sigma) * clean + sigma * noise).to(noise.dtype)

    def loss(self, velocity: Tensor, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The weighted mean squared error of each sample's velocity, [B] float32; ``timesteps`` are [B]."""
        error = (velocity.float() - (noise - clean).float()).square().flatten(1).mean(1)
        return error * self.weight(timesteps).to(error.device)

    def step(self, velocity: Tensor, timesteps: Tensor, latents: Tensor, *, to_final: bool = False) -> Tensor:
        """The latents at the next entry; at sigma 0 for all samples if ``to_final`` or one is at the last entry."""
        index = self.index(timesteps)
        is_last = to_final or bool((index + 1 >= NUM_TRAIN_TIMESTEPS).any())
        following = torch.zeros_like(self.sigmas[index]) if is_last else self.sigmas[index + 1]
        return latents + velocity * _over(following - self.sigmas[index], latents)

    def clean(self, velocity: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """The clean sample that a velocity at noisy ``latents`` means, computed in float64."""
        sigma = self._levels(timesteps, latents, torch.float64)
        return (latents.double() - sigma * velocity.double()).to(velocity.dtype)

    def velocity(self, clean: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """The reverse: the velocity that means this clean sample, computed in float64."""
        sigma = self._levels(timesteps, latents, torch.float64)
        return ((latents.double() - clean.double()) / sigma).to(clean.dtype)

    def _levels(self, timesteps: Tensor, samples: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return _over(self.sigmas[self.index(timesteps)].to(dtype), samples)


def _over(values: Tensor, samples: Tensor) -> Tensor:
    """Numbers [B] or [B, T] in a shape that broadcasts over samples [B, ...] or [B, C, T, H, W]."""
    values = values.to(samples.device)
    if values.ndim == 2:
        return values[:, None, :, None, None]
    return values.view(-1, *[1] * (samples.ndim - 1))
