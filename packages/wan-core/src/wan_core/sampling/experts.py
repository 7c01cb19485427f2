"""Two experts: one model for high noise, one for low noise, chosen by the timestep (Wan2.2 A14B)."""

from collections.abc import Callable

from torch import Tensor

from wan_core.errors import ConfigError
from wan_core.sampling.schedule import NUM_TRAIN_TIMESTEPS

Velocity = Callable[[Tensor, Tensor], Tensor]


def is_high_noise(timestep: Tensor, boundary: float, num_train_timesteps: int = NUM_TRAIN_TIMESTEPS) -> bool:
    """Whether the truncated scalar ``timestep`` reaches ``boundary * num_train_timesteps`` (boundary in 0..1)."""
    return int(timestep.item()) >= boundary * num_train_timesteps


def count_high_noise_steps(timesteps: Tensor, boundary: float, num_train_timesteps: int = NUM_TRAIN_TIMESTEPS) -> int:
    """Number of leading steps of a run that belong to the high-noise expert; ``timesteps`` [N] decrease."""
    return sum(is_high_noise(timestep, boundary, num_train_timesteps) for timestep in timesteps)


class ExpertDenoiser:
    """Routes each step to one of two denoisers, each with its own model, conditions and guidance scale.

    Timesteps decrease within a run, so the active expert changes at most once and a placed model moves at most once.
    Raises ``ConfigError`` for a boundary outside 0..1.
    """

    def __init__(
        self,
        high: Velocity,
        low: Velocity,
        boundary: float = 0.875,
        num_train_timesteps: int = NUM_TRAIN_TIMESTEPS,
    ) -> None:
        if not 0 <= boundary <= 1:
            raise ConfigError(f"boundary must be within 0..1 (a share of the timesteps), got {boundary}")
        self._high = high
        self._low = low
        self._boundary = boundary
        self._num_train_timesteps = num_train_timesteps

    def __call__(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Velocity [B, C, T, H, W] of the expert that the scalar ``timestep`` belongs to."""
        is_high = is_high_noise(timestep, self._boundary, self._num_train_timesteps)
        return (self._high if is_high else self._low)(latents, timestep)
