"""Two processes that train one small network, each with the whole of it: their gradients are averaged.

A tiny network is not worth dividing, which is what `wan_core.training` does with large ones.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, distributed, nn

from wan_core.models import WanDiT
from wan_core.training import CheckpointFolder, TrainingState, trained_tensors


def prepare(dit: WanDiT, *, world: int, compiled: bool) -> None:
    """Make a DiT ready to train in ``world`` processes, its blocks compiled or not."""
    if world > 1:
        average_gradients(dit)
    if compiled:
        for block in dit.blocks:
            block.compile(dynamic=False)


def average_gradients(model: nn.Module) -> None:
    """Make every backward pass average the gradients of all processes, weight by weight as they come."""

    def average(weight: Tensor) -> None:
        assert weight.grad is not None
        distributed.all_reduce(weight.grad)
        weight.grad /= distributed.get_world_size()

    for weight in trained_tensors(model).values():
        weight.register_post_accumulate_grad_hook(average)


class FollowerFolder(CheckpointFolder):
    """The checkpoints of a process that writes none: it goes on from what the first process wrote."""

    def save(self, state: TrainingState, step: int) -> Path:
        """Nothing is written; the folder that the first process writes."""
        return self.path(step)
