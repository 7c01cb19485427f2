"""What the loop trains: one or more networks, each change of them by a loss and the optimizers that follow it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wan_core.training.average import AveragedWeights

Loss = Callable[[int, int], Tensor | Mapping[str, Tensor]]
"""(step, accumulation index) -> the scalar to minimise, or a mapping with it as ``loss`` and other numbers for the log.

It draws data by these numbers and noise from torch's generator."""


def nothing_held_out() -> float | None:
    """The held-out loss of a run that holds no example back."""
    return None


@dataclass(frozen=True, kw_only=True)
class WeightUpdate:
    """One change of weights: a loss, and the optimizers whose weights follow its gradient.

    It happens at every ``every``-th step, from the first on. ``name`` tells several losses apart in the log.
    """

    loss: Loss
    optimizers: Sequence[torch.optim.Optimizer]
    name: str = ""
    every: int = 1

    def weights(self) -> list[Tensor]:
        """The weights that are changed."""
        return [weight for each in self.optimizers for group in each.param_groups for weight in group["params"]]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Networks in training: ``model`` holds all of them, ``updates`` happen one after another at each step.

    A generator and its critic are two updates on a model of both. ``average`` follows the trained weights;
    ``held_out`` is the loss on examples that are not trained on.
    """

    model: nn.Module
    updates: Sequence[WeightUpdate]
    average: AveragedWeights | None = None
    held_out: Callable[[], float | None] = nothing_held_out

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        loss: Loss,
        average: AveragedWeights | None = None,
    ) -> Stage:
        """The stage of one loss."""
        return cls(model=model, updates=[WeightUpdate(loss=loss, optimizers=optimizers)], average=average)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers of all updates."""
        return [optimizer for update in self.updates for optimizer in update.optimizers]
