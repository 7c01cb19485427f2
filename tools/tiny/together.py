"""Two processes that train one small network, each with the whole of it: their gradients are averaged.

A tiny network is not worth dividing, which is what `wan_core.training` does with large ones.
"""

from __future__ import annotations

from pathlib import Path

import torch
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
    """Make every backward pass average the gradients of all processes: at its end, all that came in one message.

    A message for each weight makes two busy processes wait for each other hundreds of times a step.
    """
    order = {weight: number for number, weight in enumerate(trained_tensors(model).values())}
    came: list[Tensor] = []

    def average() -> None:
        gradients = [weight.grad for weight in sorted(came, key=order.__getitem__) if weight.grad is not None]
        came.clear()
        joined = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(joined)
        joined /= distributed.get_world_size()
        for gradient, part in zip(gradients, joined.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def note(weight: Tensor) -> None:
        if not came:
            torch.autograd.Variable._execution_engine.queue_callback(average)
        came.append(weight)

    for weight in order:
        weight.register_post_accumulate_grad_hook(note)


class FollowerFolder(CheckpointFolder):
    """The checkpoints of a process that writes none: it goes on from what the first process wrote."""

    def save(self, state: TrainingState, step: int) -> Path:
        """Nothing is written; the folder that the first process writes."""
        return self.path(step)
