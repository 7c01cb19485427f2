"""What a solver is, and the one machine behind every linear multistep solver.

All of them move the sample towards clean predictions ``m_j = x_j - sigma_j * v_j`` of this and earlier steps:
``x_next = x + sum_j w_j * (m_j - x)``. The weights depend on the schedule alone, so they are computed once, on the
host, in float64; a step is then one linear combination of the latents, the velocity and the kept predictions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from wan_core.errors import ConfigError
from wan_core.sampling.schedule import Schedule

StepWeights = Mapping[int, float]


class Solver(Protocol):
    """Turns velocities into steps. Built fresh for every run: its state belongs to that run.

    ``timesteps``: [N] on the CPU, exactly what the model sees.
    """

    timesteps: Tensor

    def step(self, velocity: Tensor, index: int, latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents after step ``index`` (0..N-1, in order) from the latents that gave ``velocity``, same shape."""


class MultistepSolver:
    """A linear multistep solver given by its weights.

    ``weights[i]`` maps a step j <= i to the weight of its prediction in step i. Steps run in float32 (float64 stays)
    whatever the dtype of the velocity. ``latents`` handed to a step are what the step before returned; elements that
    the caller fixes in between may differ. Raises ``ConfigError`` when steps are not taken in order.
    """

    def __init__(self, schedule: Schedule, weights: Sequence[StepWeights]) -> None:
        self.timesteps = schedule.timesteps
        self.sigmas = schedule.sigmas
        self._weights = weights
        self._last_use = {step: index for index, row in enumerate(weights) for step, weight in row.items() if weight}
        self._predictions: dict[int, Tensor] = {}
        self._next_index = 0

    def step(self, velocity: Tensor, index: int, latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents after step ``index``; ``generator`` is not used: these solvers are deterministic."""
        if index != self._next_index or index >= len(self._weights):
            raise ConfigError(
                f"solver steps run once and in order: expected {self._next_index} of {len(self._weights)}, "
                f"got {index}; build a new solver for a new run"
            )
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
        row = self._weights[index]
        past = [(weight, self._predictions[step]) for step, weight in row.items() if step != index and weight]
        result = self._current(velocity, index, latents, 1.0 - sum(weight for weight, _ in past))
        for weight, prediction in past:
            result.add_(prediction, alpha=weight)
        self._remember(velocity, index, latents)
        self._next_index += 1
        return result

    def _current(self, velocity: Tensor, index: int, latents: Tensor, share: float) -> Tensor:
        """``share * latents`` minus the velocity's part; one pass when nothing of the past takes part."""
        pull = -self.sigmas[index] * self._weights[index].get(index, 0.0)
        if share == 1.0:
            return torch.add(latents, velocity, alpha=pull)
        return torch.mul(latents, share).add_(velocity, alpha=pull)

    def _remember(self, velocity: Tensor, index: int, latents: Tensor) -> None:
        if self._last_use.get(index, index) > index:
            self._predictions[index] = torch.add(latents, velocity, alpha=-self.sigmas[index])
        for step in [step for step in self._predictions if self._last_use[step] <= index]:
            del self._predictions[step]


def log_snr(sigma: float) -> float:
    """``lambda = ln((1 - sigma) / sigma)``: -inf at sigma 1, +inf at sigma 0."""
    if sigma <= 0.0:
        return float("inf")
    if sigma >= 1.0:
        return float("-inf")
    return math.log((1.0 - sigma) / sigma)
