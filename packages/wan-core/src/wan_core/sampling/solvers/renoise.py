"""Few-step generation: predict the clean sample, put fresh noise of the next level on it, repeat.

The sampling of distilled models (consistency and distribution matching, Self-Forcing). The default noise levels are
the evenly spaced times 1000, 750, 500, 250 (for four steps) under the flow shift.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wan_core.errors import ConfigError
from wan_core.sampling.noise import draw_noise
from wan_core.sampling.schedule import (
    NUM_TRAIN_TIMESTEPS,
    Schedule,
    linear_sigmas,
    make_schedule,
    nearest_sigmas,
    shifted_sigmas,
)

NoiseSource = Callable[[Sequence[int]], Tensor]


class RenoiseSolver:
    """``x_next = (1 - sigma_next) * clean + sigma_next * noise``; the last step returns the clean prediction.

    Noise is float32, drawn from the run's generator (on the generator's device, then moved: that of all steps in the
    first one, so that no later one waits for it), or taken from ``noise``.
    """

    def __init__(self, schedule: Schedule, noise: NoiseSource | None = None) -> None:
        self.timesteps = schedule.timesteps
        self.sigmas = schedule.sigmas
        self._noise = noise
        self._drawn: list[Tensor] = []

    def step(self, velocity: Tensor, index: int, latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents after step ``index``; without ``generator`` the device's default generator draws."""
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
        clean = torch.add(latents, velocity, alpha=-self.sigmas[index])
        following = self.sigmas[index + 1]
        if following == 0.0:
            return clean
        return clean.lerp_(self._next_noise(clean, index, generator).to(clean), following)

    def _next_noise(self, clean: Tensor, index: int, generator: torch.Generator | None) -> Tensor:
        if self._noise is not None:
            return self._noise(clean.shape)
        if generator is None or generator.device.type == clean.device.type:
            return draw_noise(clean.shape, generator, clean.device)
        if not self._drawn:
            count = sum(sigma != 0.0 for sigma in self.sigmas[index + 1 :])
            self._drawn = [*torch.stack([draw_noise(clean.shape, generator) for _ in range(count)]).to(clean.device)]
        return self._drawn.pop(0)


def make_renoise(
    num_inference_steps: int,
    *,
    flow_shift: float,
    timesteps: Sequence[float] | None = None,
    shift_timesteps: bool = True,
    noise: NoiseSource | None = None,
) -> RenoiseSolver:
    """Few-step solver; the model sees float timesteps.

    ``timesteps``: ``num_inference_steps`` decreasing times in (0, 1000]. They are shifted, or with
    ``shift_timesteps=False`` shown to the model as they are, and their noise levels looked up in the shifted table of
    1000 entries (what Self-Forcing calls not warped). Raises ``ConfigError`` for other values.
    """
    times = [NUM_TRAIN_TIMESTEPS * sigma for sigma in linear_sigmas(num_inference_steps)]
    if timesteps is not None:
        times = [float(time) for time in timesteps]
    if len(times) != num_inference_steps:
        raise ConfigError(f"{num_inference_steps} steps need {num_inference_steps} timesteps, got {len(times)}")
    if any(not 0 < time <= NUM_TRAIN_TIMESTEPS for time in times):
        raise ConfigError(f"renoise timesteps must be within (0, {NUM_TRAIN_TIMESTEPS}], got {times}")
    if shift_timesteps:
        levels = shifted_sigmas([time / NUM_TRAIN_TIMESTEPS for time in times], flow_shift)
        return RenoiseSolver(make_schedule(levels, truncate=False), noise)
    shown = torch.tensor(times, dtype=torch.float32)
    looked_up = make_schedule(nearest_sigmas(shown, flow_shift).tolist(), truncate=False)
    return RenoiseSolver(Schedule(looked_up.sigmas, shown), noise)
