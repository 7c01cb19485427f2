"""Muon: momentum whose step is orthogonalised, for the matrices inside a network (Jordan et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from wan_core.errors import ConfigError
from wan_core.runtime import divided_as, whole_tensor

# Quintic Newton-Schulz coefficients of the Muon article: singular values end up in about 0.7..1.2 after five rounds.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor, rounds: int = 5) -> Tensor:
    """Replace the singular values of ``matrix`` ``[rows, columns]`` (float32) by about one, keeping its directions."""
    tall = matrix.shape[0] > matrix.shape[1]
    work: Tensor = matrix.T if tall else matrix
    work = work / work.norm().clamp_min(1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(rounds):
        gram = work @ work.T
        work = a * work + (b * gram + c * gram @ gram) @ work
    return work.T if tall else work


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps, for weights of two or more dimensions (the rest belongs to AdamW).

    A convolution kernel counts as ``[out, in * taps]``. A step changes a matrix by ``lr`` in spectral norm, times
    ``sqrt(rows / columns)`` for tall ones. State is one momentum buffer in the parameter's dtype. Directions of
    divided weights are gathered, one at a time, and orthogonalised whole, in every process alike. Raises ConfigError
    for a weight of fewer than two dimensions, a learning rate that is not positive or a momentum outside 0..1.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        if lr <= 0 or not 0 <= momentum < 1:
            raise ConfigError(f"Muon needs lr > 0 and momentum in 0..1, got lr {lr} and momentum {momentum}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim < 2:
                    raise ConfigError(
                        f"Muon trains matrices, got a weight of shape {tuple(parameter.shape)}; use AdamW"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every weight that has a gradient; returns the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(momentum, group["momentum"])  # Nesterov
        matrix = orthogonalize(whole_tensor(direction).flatten(1).float())
        scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        change = divided_as(parameter, matrix.view(parameter.shape).to(parameter.dtype))
        parameter.add_(change, alpha=-group["lr"] * scale)
