"""Weights divided among processes: FSDP2 around each block and the rest (Zhao et al., arXiv 2304.11277)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, distributed, nn

from wan_core.checkpoints import assign_tensor, stays_float32
from wan_core.errors import BackendError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy


_SEVERAL_DTYPES = (2, 8)
"""The first torch whose FSDP2 takes weights of several dtypes together, where none is trained."""


class Shard(Protocol):
    """Divides a model's weights in place, as `shard_model` on a mesh does, or leaves them whole."""

    def __call__(self, model: nn.Module, *, dtype: torch.dtype | None = None) -> None:
        """Divide; ``dtype`` is the one that weights are gathered in, their own by default."""


def shard_model(model: nn.Module, mesh: DeviceMesh, *, dtype: torch.dtype | None = None) -> None:
    """Divide a model's weights over ``mesh`` in place: each block on its own, the rest together.

    A block's weights are gathered when it runs and let go after it; the rest also for what ``further_forwards`` names,
    which others call besides the forward. The parts keep their dtype; with a ``dtype`` they are gathered in it, but for
    those that the model keeps in float32, and gradients are averaged in float32. Adapters come before, optimizers
    after. Weights of a `RowReading` on this mesh are in parts already, and stay as they are. Raises BackendError where
    torch cannot tell weights apart: for a ``dtype``, or, before 2.8, for weights of two dtypes.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    read = {name: weight for name, weight in model.named_parameters() if is_divided(weight)}
    for name, weight in read.items():  # FSDP cuts whole weights, and those without memory are cut at no cost
        whole = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
        assign_tensor(model, name, whole)
    policy = _policy(model, dtype)
    # Blocks also return keys and values for a cache, which are views; nothing changes them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for module in model.modules():
        blocks = getattr(module, "blocks", None)
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                fully_shard(block, mesh=mesh, mp_policy=policy)
    # Also the rest is let go after a forward: one without gradients has no backward pass that would do so.
    fully_shard(model, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    for name in getattr(model, "further_forwards", ()):
        register_fsdp_forward_method(model, name)
    for name, weight in read.items():
        assign_tensor(model, name, weight.detach())


def _policy(model: nn.Module, dtype: torch.dtype | None) -> MixedPrecisionPolicy:
    """What weights are gathered in. Inputs are not cast: the model does that, and its residual stream is float32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if dtype in (None, torch.float32):
        if _is_before(_SEVERAL_DTYPES) and len({weight.dtype for weight in model.parameters()}) > 1:
            raise BackendError(
                f"torch {torch.__version__} divides weights of one dtype, and this network keeps some in float32; "
                "take --dtype float32 on several processes, or install torch 2.8 or newer"
            )
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    exact = {id(weight) for name, weight in model.named_parameters() if stays_float32(model, name)}

    def own_dtype(weight: nn.Parameter) -> torch.dtype | None:
        return weight.dtype if id(weight) in exact else None

    try:
        return MixedPrecisionPolicy(
            param_dtype=dtype,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
            param_dtype_override_fn=own_dtype,
        )
    except TypeError as error:
        raise BackendError(
            f"torch {torch.__version__} gathers weights in one dtype, and this network keeps some in float32; train "
            "with --dtype float32 on several processes, or install torch 2.15 or newer"
        ) from error


def _is_before(version: tuple[int, int]) -> bool:
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) < version


class DividedReading:
    """Weights over a mesh of one dimension, of which each process reads its own rows: a `checkpoints.Division`.

    ``apply`` does to a network what comes before its weights are divided, and is given the function that divides them.
    Host memory and what is read are those of one share, but for weights that are computed from others (merged LoRAs,
    unpacked formats), which are made one at a time.
    """

    def __init__(self, mesh: DeviceMesh, apply: Callable[[nn.Module, Shard], None]) -> None:
        self._mesh = mesh
        self._apply = apply

    def prepare(self, model: nn.Module) -> None:
        """Divide weights that have not been read."""
        self._apply(model, self._divide)

    def part(self, weight: Tensor, stored: Tensor) -> Tensor:
        """The rows of this process, as `fully_shard` cuts them; the whole of a weight that is not divided."""
        return _own_rows(stored, self._mesh) if is_divided(weight) else stored

    def joined(self, weight: Tensor, part: Tensor) -> Tensor:
        """The divided weight of which this process holds ``part``."""
        return _joined(part, weight.shape, self._mesh) if is_divided(weight) else part

    def _divide(self, model: nn.Module, *, dtype: torch.dtype | None = None) -> None:
        # FSDP cuts real or meta weights; those that stand in for unread ones are neither.
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                module.register_parameter(name, nn.Parameter(parameter.to("meta"), requires_grad=False))
        shard_model(model, self._mesh, dtype=dtype)


class RowReading:
    """Weights to be trained, of which each process reads its own rows: a `checkpoints.Division`.

    They are in parts when they have been read; adapters may come then, and `shard_model` on the same ``mesh`` after
    them. With a mesh of two dimensions the first one's groups hold the same weights each.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh

    def prepare(self, model: nn.Module) -> None:
        """Nothing: weights are put in their places as parts."""

    def part(self, weight: Tensor, stored: Tensor) -> Tensor:
        """The rows of this process, as `fully_shard` cuts them."""
        return _own_rows(stored, self._mesh)

    def joined(self, weight: Tensor, part: Tensor) -> Tensor:
        """The divided weight of which this process holds ``part``."""
        return _joined(part, weight.shape, self._mesh)


def _own_rows(stored: Tensor, mesh: DeviceMesh) -> Tensor:
    last = mesh.ndim - 1
    chunks = torch.chunk(stored, mesh.size(last), dim=0)
    index = mesh.get_local_rank(last)
    return chunks[index] if index < len(chunks) else stored[:0]


def _joined(part: Tensor, shape: torch.Size, mesh: DeviceMesh) -> Tensor:
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor import Shard as Rows

    placements = [*[Replicate()] * (mesh.ndim - 1), Rows(0)]
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part.contiguous(), mesh, placements, run_check=False, shape=shape, stride=stride)


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
