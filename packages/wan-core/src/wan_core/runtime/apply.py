"""What is done to a network between its weights and its use: the one place that knows the order.

1. LoRA: for inference merged into the weights while they are read (`wan_core.checkpoints`), for training attached as
   adapters; kernels and sharding must find the final layers.
2. Kernels, for inference: layers that compute faster than the plain ones of the models.
3. Attention backend: the kernel inside every attention.
4. Sequence parallelism, for inference: the layout that divides the tokens among processes.
5. Sharding: weights divided among processes; what comes before may replace layers, what comes after may not.
6. The dtype to compute in, for training: whole weights are cast while they are used; divided ones are gathered in it.
7. Recompute, for training, or a step cache, for inference: around the blocks as they are then.

Every step is a no-op when it is not asked for, and none changes the names of weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from wan_core.errors import ConfigError
from wan_core.runtime.attention_backends import apply_attention_backend
from wan_core.runtime.fsdp import Shard, is_sharded
from wan_core.runtime.kernels import apply_kernels, has_kernels
from wan_core.runtime.precision import apply_compute_dtype
from wan_core.runtime.recompute import apply_recompute
from wan_core.runtime.sequence_parallel import apply_sequence_parallel
from wan_core.runtime.step_cache import apply_step_cache

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def prepare_model(
    model: nn.Module,
    *,
    inference: bool,
    attention: str | None = None,
    sequence: DeviceMesh | None = None,
    shard: Shard | None = None,
    dtype: torch.dtype | None = None,
    recompute: bool = False,
    step_cache: bool = False,
) -> None:
    """Apply what is asked for to a network whose weights are where it runs, in place.

    ``inference`` promises that no gradient is needed. ``attention`` names a kernel that `choose_attention_backend`
    found. ``sequence`` is the mesh of a `ParallelPlan`, whose ring and ulysses processes share the tokens. ``shard``
    divides the weights, as `shard_model` does. ``dtype`` is what to train in: weights stay float32, and layers but for
    ``float32_modules`` see them in it, as in inference. ``recompute`` lets blocks be computed again in the backward
    pass, ``step_cache`` lets sampling leave them out.
    Raises ConfigError for pairs that cannot be, and what `apply_attention_backend` and `apply_sequence_parallel` raise.
    """
    if inference:
        _check_use(recompute=recompute, dtype=dtype)
    else:
        _check_training(model, shares_tokens=sequence is not None, step_cache=step_cache)
    if inference:
        apply_kernels(model)
    if attention is not None:
        apply_attention_backend(model, attention, next(model.parameters()).device)
    if sequence is not None:
        apply_sequence_parallel(model, sequence)
    if shard is not None:
        shard(model, dtype=dtype)
    if dtype is not None and not is_sharded(model):
        apply_compute_dtype(model, dtype, recompute=recompute)
    if recompute:
        apply_recompute(model)
    if step_cache:
        apply_step_cache(model)


def _check_use(*, recompute: bool, dtype: torch.dtype | None) -> None:
    """Raises ConfigError for what inference has no use for."""
    if recompute:
        raise ConfigError("recompute saves memory of the backward pass, and inference has none; leave one of them out")
    if dtype is not None:
        raise ConfigError("for inference weights are read in the dtype to compute in; a dtype is asked for in training")


def _check_training(model: nn.Module, *, shares_tokens: bool, step_cache: bool) -> None:
    """Raises ConfigError for what a network that is trained cannot have."""
    if step_cache:
        raise ConfigError("a step cache is for sampling; a network that is trained runs all of its blocks")
    if shares_tokens:
        raise ConfigError("processes share the tokens of a forward in inference alone; in training they share weights")
    if has_kernels(model):
        raise ConfigError("this network was prepared for inference; take Placed.trainable for one to train")
