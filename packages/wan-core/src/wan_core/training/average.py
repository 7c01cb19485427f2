"""Averaged weights, which are validated and saved in place of the last ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wan_core.errors import ConfigError


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training changes, by name; buffers are not among them."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def every_weight(name: str) -> bool:
    """The `AveragedWeights` of all that is trained."""
    return True


class AveragedWeights:
    """Exponential moving average of a model's trained weights, in float32.

    ``decay`` in 0..1; early averages follow ``(1 + n) / (10 + n)`` after n updates, so that the random start is soon
    forgotten (as TensorFlow's moving averages do). With a ``start`` the average is that of the weights after so many
    updates, and of all later ones under ``decay`` itself. Of ``every`` so many updates the first counts, for weights
    that change that seldom. ``chosen`` tells by name which weights are followed. Raises ConfigError for a decay outside
    0..1.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float,
        *,
        start: int = 0,
        every: int = 1,
        chosen: Callable[[str], bool] = every_weight,
    ) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"the averaging decay must be in 0..1 (1 excluded), got {decay}")
        self.decay, self.start, self.every = decay, start, every
        self.updates = 0
        weights = {name: value for name, value in trained_tensors(model).items() if chosen(name)}
        self.tensors = {name: value.detach().float().clone() for name, value in weights.items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's present weights."""
        number = self.updates
        self.updates += 1
        if number % self.every:
            return
        decay = self.decay if self.start else min(self.decay, (1 + number) / (10 + number))
        for name, value in self._followed(model).items():
            self.tensors[name].lerp_(value.float(), 1.0 if number < self.start else 1 - decay)

    @torch.no_grad()
    def exchange(self, model: nn.Module) -> None:
        """Swap averaged and present weights; a second call swaps back."""
        for name, value in self._followed(model).items():
            held = value.detach().float().clone()
            value.copy_(self.tensors[name])
            self.tensors[name].copy_(held)

    def _followed(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: value for name, value in trained_tensors(model).items() if name in self.tensors}


@contextmanager
def averaged(model: nn.Module, average: AveragedWeights | None) -> Iterator[None]:
    """The model with its averaged weights, where there are any."""
    if average is None:
        yield
        return
    average.exchange(model)
    try:
        yield
    finally:
        average.exchange(model)
