"""Averaged weights, which are validated and saved in place of the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wan_core.errors import ConfigError


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training changes, by name; buffers are not among them."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class AveragedWeights:
    """Exponential moving average of a model's trained weights, in float32.

    ``decay`` in 0..1; early averages follow ``(1 + n) / (10 + n)`` after n updates, so that the random start is soon
    forgotten (as TensorFlow's moving averages do). Raises ConfigError for a decay outside 0..1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"the averaging decay must be in 0..1 (1 excluded), got {decay}")
        self.decay = decay
        self.updates = 0
        self.tensors = {name: value.detach().float().clone() for name, value in trained_tensors(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, value in trained_tensors(model).items():
            self.tensors[name].lerp_(value.float(), 1 - decay)

    @torch.no_grad()
    def exchange(self, model: nn.Module) -> None:
        """Swap averaged and present weights; a second call swaps back."""
        for name, value in trained_tensors(model).items():
            held = value.detach().float().clone()
            value.copy_(self.tensors[name])
            self.tensors[name].copy_(held)


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
