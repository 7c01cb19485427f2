"""Weights divided among processes: FSDP2 around each block and the rest (Zhao et al., arXiv 2304.11277)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard_model(model: nn.Module, mesh: DeviceMesh) -> None:
    """Divide a model's weights over ``mesh`` in place: each block on its own, the rest together.

    A block's weights are gathered when it runs and let go after it. Weights keep their dtype; what should be computed
    in bfloat16 is said by autocast, so what a model keeps in float32 stays so. Adapters come before, optimizers after.
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
