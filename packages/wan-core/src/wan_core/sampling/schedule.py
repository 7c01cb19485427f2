"""Noise levels: the sigma grids of the solvers, the flow shift and the timesteps that a model sees.

A noisy sample is ``(1 - sigma) * clean + sigma * noise``. Grids are computed in float64 and their values rounded to
float32, because the reference solvers store float32 and a golden timestep is the truncation of ``1000 * sigma``
taken before that rounding. Everything here lives on the host; nothing waits for a device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wan_core.errors import ConfigError

NUM_TRAIN_TIMESTEPS = 1000
# Largest sigma with a finite log-SNR that multistep solvers in lambda accept; diffusers uses the same distance to 1.
LARGEST_FINITE_SIGMA = 1.0 - 1e-6


@dataclass(frozen=True)
class Schedule:
    """Noise levels of one run.

    ``sigmas``: N + 1 values, float32-exact, strictly decreasing, the last is 0. ``timesteps``: [N] on the CPU, int64
    where the solver truncates, float32 where it does not; scale 0..1000.
    """

    sigmas: tuple[float, ...]
    timesteps: Tensor

    @property
    def num_steps(self) -> int:
        """Number of solver steps N."""
        return len(self.sigmas) - 1


def shift_sigma(sigma: float, flow_shift: float) -> float:
    """Move a noise level towards 1: ``s * sigma / (1 + (s - 1) * sigma)``; 0 and 1 stay."""
    return flow_shift * sigma / (1 + (flow_shift - 1) * sigma)


def linear_sigmas(num_inference_steps: int, first: float = 1.0, last: float = 0.0) -> list[float]:
    """``num_inference_steps`` evenly spaced values from ``first`` towards ``last``, which is left out."""
    if num_inference_steps < 1:
        raise ConfigError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    step = (last - first) / num_inference_steps
    return [first + index * step for index in range(num_inference_steps)]


def shifted_sigmas(sigmas: Sequence[float], flow_shift: float) -> list[float]:
    """Apply ``shift_sigma`` to every value; ``flow_shift`` must be positive and finite, else ``ConfigError``."""
    if not (math.isfinite(flow_shift) and flow_shift > 0):
        raise ConfigError(f"flow_shift must be a positive number, got {flow_shift}")
    return [shift_sigma(sigma, flow_shift) for sigma in sigmas]


def double_shifted_sigmas(num_inference_steps: int, flow_shift: float) -> list[float]:
    """The grid of diffusers' FlowMatchEuler: its range ends are shifted, then all points, ends included, once more.

    Kept for compatibility with pipelines tuned on it; the low end lies higher than the shift asks for.
    """
    lowest = shifted_sigmas([1 / NUM_TRAIN_TIMESTEPS], flow_shift)[0]
    spacing = (lowest - 1.0) / max(num_inference_steps - 1, 1)
    count = len(linear_sigmas(num_inference_steps))
    return shifted_sigmas([1.0 + index * spacing for index in range(count)], flow_shift)


def make_schedule(sigmas: Sequence[float], *, truncate: bool) -> Schedule:
    """Schedule over explicit noise levels, without the final 0, which is added.

    ``truncate`` gives int64 timesteps ``floor(1000 * sigma)``, otherwise float32 ``1000 * sigma``. Raises
    ``ConfigError`` unless the values decrease strictly within (0, 1] after rounding to float32.
    """
    exact = torch.tensor(list(sigmas), dtype=torch.float64)
    rounded = [float(value) for value in exact.to(torch.float32).tolist()]
    if not rounded:
        raise ConfigError("a schedule needs at least one sigma")
    if not (rounded[0] <= 1 and all(a > b for a, b in zip(rounded, [*rounded[1:], 0.0], strict=True))):
        raise ConfigError(
            f"{len(rounded)} sigmas must decrease strictly from at most 1 to above 0 (the last 0 is added), "
            f"got {_abbreviated(rounded)}"
        )
    timesteps = exact * NUM_TRAIN_TIMESTEPS
    return Schedule((*rounded, 0.0), timesteps.to(torch.int64 if truncate else torch.float32))


def explicit_sigmas(sigmas: Sequence[float] | None, num_inference_steps: int, default: Sequence[float]) -> list[float]:
    """The caller's noise levels when given, else ``default``; their count must be ``num_inference_steps``."""
    if sigmas is None:
        return list(default)
    if len(sigmas) != num_inference_steps:
        raise ConfigError(f"{num_inference_steps} steps need {num_inference_steps} sigmas, got {len(sigmas)}")
    return [float(sigma) for sigma in sigmas]


def flow_match_table(flow_shift: float, num_train_timesteps: int = NUM_TRAIN_TIMESTEPS) -> Tensor:
    """The training table of flow matching: [num_train_timesteps] float64 sigmas from 1 down, shifted, without 0.

    Entry i belongs to the unshifted time ``num_train_timesteps - i`` (Self-Forcing's scheduler with sigma_min 0).
    """
    return torch.tensor(shifted_sigmas(linear_sigmas(num_train_timesteps), flow_shift), dtype=torch.float64)


def nearest_sigmas(timesteps: Tensor, flow_shift: float, num_train_timesteps: int = NUM_TRAIN_TIMESTEPS) -> Tensor:
    """Noise level of the table entry nearest to each timestep (ties: the noisier one); same shape, float32.

    Timestep 0 gives the last entry, not 0, as in Self-Forcing.
    """
    table = flow_match_table(flow_shift, num_train_timesteps).to(timesteps.device)
    distance = (table * num_train_timesteps - timesteps.to(torch.float64).unsqueeze(-1)).abs()
    return table[distance.argmin(dim=-1)].to(torch.float32)


def _abbreviated(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:5])
    return f"[{shown}{', ...' if len(values) > 5 else ''}]"
