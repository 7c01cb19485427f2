"""Weights divided among processes: FSDP2 around each block and the rest (Zhao et al., arXiv 2304.11277)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard_model(model: nn.Module, mesh: DeviceMesh) -> None:
    """Divide a model's weights over ``mesh`` in place: each block on its own, the rest together.

    A block's weights are gathered when it runs and let go after it; the rest also for what ``further_forwards`` names,
    which others call besides the forward. Weights keep their dtype; what should be computed in bfloat16 is said by
    autocast, so what a model keeps in float32 stays so. Adapters come before, optimizers after.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # Blocks also return keys and values for a cache, which are views; nothing changes them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for module in model.modules():
        blocks = getattr(module, "blocks", None)
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                fully_shard(block, mesh=mesh)
    # Also the rest is let go after a forward: one without gradients has no backward pass that would do so.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for name in getattr(model, "further_forwards", ()):
        register_fsdp_forward_method(model, name)


class DividedReading:
    """Weights over a mesh of one dimension, of which each process reads its own rows: a `checkpoints.Division`.

    ``apply`` does to a network what comes before its weights are divided, and is given the function that divides them.
    Host memory and what is read are those of one share, but for weights that are computed from others (merged LoRAs,
    unpacked formats), which are made one at a time.
    """

    def __init__(self, mesh: DeviceMesh, apply: Callable[[nn.Module, Callable[[nn.Module], None]], None]) -> None:
        self._mesh = mesh
        self._apply = apply

    def prepare(self, model: nn.Module) -> None:
        """Divide weights that have not been read."""
        self._apply(model, self._divide)

    def part(self, weight: Tensor, stored: Tensor) -> Tensor:
        """The rows of this process, as `fully_shard` cuts them; the whole of a weight that is not divided."""
        if not is_divided(weight):
            return stored
        chunks = torch.chunk(stored, self._mesh.size(), dim=0)
        index = self._mesh.get_local_rank()
        return chunks[index] if index < len(chunks) else stored[:0]

    def joined(self, weight: Tensor, part: Tensor) -> Tensor:
        """The divided weight of which this process holds ``part``."""
        if not is_divided(weight):
            return part
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            part.contiguous(),
            weight.device_mesh,  # type: ignore[attr-defined]
            weight.placements,  # type: ignore[attr-defined]
            run_check=False,
            shape=weight.shape,
            stride=weight.stride(),
        )

    def _divide(self, model: nn.Module) -> None:
        # FSDP cuts real or meta weights; those that stand in for unread ones are neither.
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                module.register_parameter(name, nn.Parameter(parameter.to("meta"), requires_grad=False))
        shard_model(model, self._mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether any weight of a model is divided."""
    return any(is_divided(parameter) for parameter in model.parameters())


def whole_tensor(tensor: Tensor) -> Tensor:
    """A weight gathered from all processes, on each of them; a whole one as it is. All must call it."""
    whole: Tensor = tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[attr-defined]
    return whole.detach()


def divided_as(like: Tensor, whole: Tensor) -> Tensor:
    """A tensor that every process has whole, divided as ``like`` is; nothing is sent."""
    if not is_divided(like):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh  # type: ignore[attr-defined]
    everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    divided: Tensor = everywhere.redistribute(placements=like.placements)  # type: ignore[attr-defined]
    return divided


def mean_over_processes(values: Sequence[float], device: torch.device) -> list[float]:
    """The mean of each number over all processes, the same on each."""
    numbers = torch.tensor(values, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
    distributed.all_reduce(numbers)
    return [float(number) for number in numbers / distributed.get_world_size()]


def is_divided(tensor: Tensor) -> bool:
    """Whether a weight is a DTensor; importing that class costs as much as torch, and one process has none."""
    if not distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
