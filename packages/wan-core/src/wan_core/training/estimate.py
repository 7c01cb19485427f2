"""How much a planned run will take: counts and memory, without loading anything."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from wan_core.checkpoints import stays_float32, weight_bytes
from wan_core.files import plain_text
from wan_core.models import WanDiTConfig
from wan_core.runtime import shares_of
from wan_core.training.data import Example
from wan_core.training.plan import DIT, TrainingPlan, meta_network

# Values that a block keeps for its backward pass, per token and unit of width, in the dtype to compute in and in
# float32; and bytes that are kept around the blocks. Counted on small networks of several widths and depths.
_KEPT_BY_ALL = (10.5, 9.6, 12)
_KEPT_BY_ADAPTERS = (9.3, 6.3, 1)
_KEPT_PER_FFN = 2
STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "muon": 4}
"""Of each trained weight, by optimizer; muon has those of its matrices, which are nearly all."""


def count_weights(network: nn.Module) -> tuple[int, int]:
    """Counts of all weights and of the trained ones."""
    every = [(p.numel(), p.requires_grad) for p in network.parameters()]
    return sum(count for count, _ in every), sum(count for count, is_trained in every if is_trained)


def bucket_counts(examples: Sequence[Example]) -> dict[str, int]:
    """How many clips are trained at which width, height and, where these differ, number of frames."""
    shapes = [example.shape or () for example in examples]
    has_lengths = len({shape[0] for shape in shapes}) > 1
    names = (f"{width}x{height}" + (f"x{frames}" if has_lengths else "") for frames, height, width in shapes)
    return dict(Counter(names))


def count_parameters(plan: TrainingPlan) -> tuple[int, int]:
    """Counts of all weights of the transformer and its companions, and of the trained ones."""
    total, trained = count_weights(meta_network(plan))
    for name, companion in plan.companions().items():
        count, _ = count_weights(companion.network)
        total, trained = total + count, trained + (count if name in plan.networks else 0)
    return total, trained


def memory_of(plan: TrainingPlan, tokens: int) -> dict[str, int]:
    """Estimated bytes of one process in a step, row by row, and the ``peak`` that they lead to together.

    ``tokens`` are those of one sample. Rows are those of `step_memory` and one for each network that an objective keeps
    beside the transformer.
    """
    settings, objective, options = plan.settings, plan.objective, plan.options
    rows = step_memory(
        meta_network(plan),
        [companion.network.requires_grad_(name in plan.networks) for name, companion in plan.companions().items()],
        dtype=plan.dtype,
        tokens=tokens * settings.batch,
        state_bytes=STATE_BYTES[settings.optimizer],
        averages=settings.ema is not None,
        recompute=settings.checkpointing,
        accumulates=plan.loop.accumulation > 1,
        world=options.world,
        replicas=options.replicas,
    )
    shares = shares_of(options.world, options.replicas)
    beside = {} if objective is None else objective.held_parts()
    for name, is_trained in beside.items():
        part, config = plan.preset.part(name), plan.pipeline.components.configs.get(name)
        if config is None:  # still to be fetched
            continue
        kept = torch.float32 if is_trained else part.family.dtype_in(plan.dtype)
        weights = weight_bytes(config, part.family, kept)
        # In float32 a gradient takes what its weight does.
        state = weights + weights // 4 * STATE_BYTES[settings.optimizer] if is_trained else 0
        # Others than networks are whole in every process.
        rows[name] = (weights + state) // (shares if part.family.is_denoiser else 1)
        rows["peak"] += rows[name]
    peak = rows.pop("peak")
    return {**rows, "peak": peak}


def step_memory(
    network: nn.Module,
    companions: Sequence[nn.Module] = (),
    *,
    dtype: torch.dtype,
    tokens: int,
    state_bytes: int,
    averages: bool,
    recompute: bool,
    accumulates: bool = False,
    world: int = 1,
    replicas: int = 1,
) -> dict[str, int]:
    """Estimated bytes of a step of a transformer, whose trained weights are float32 and the others ``dtype``.

    ``tokens`` are those of a batch, ``state_bytes`` those of the optimizer for each trained weight. Activations come
    from counts of kept values. The ``peak`` has activations or gradients, as one goes while the other comes, unless
    gradients of an earlier part of the batch are there (``accumulates``). Each of ``replicas`` groups of
    ``world`` processes divides the weights, and gathers them to compute, also where a group is one process. Raises
    ConfigError for groups that would not be equal.
    """
    networks, shares = [network, *companions], shares_of(world, replicas)
    frozen = sum(_bytes_in(each, dtype, is_trained=False) for each in networks)
    trained = sum(count_weights(each)[1] for each in networks)
    config: WanDiTConfig = network.config  # type: ignore[assignment]
    rows = {
        "weights": frozen // shares,
        "master weights": trained * 4 // shares,
        "gradients": trained * 4 // shares,
        "optimizer": trained * state_bytes // shares,
        "averaged weights": trained * 4 // shares if averages else 0,
        "weights in use": _weights_in_use(network, dtype, gathers=world > 1),
        "activations": activation_bytes(
            config,
            tokens,
            dtype.itemsize,
            recompute=recompute,
            trains_all=all(weight.requires_grad for weight in network.parameters()),
        ),
        "batch": _batch_bytes(config, tokens),
    }
    moving = rows["activations"], rows["gradients"]
    peak = sum(rows.values()) - sum(moving) + (sum(moving) if accumulates else max(moving))
    return {**rows, "peak": peak}


def _bytes_in(network: nn.Module, dtype: torch.dtype, *, is_trained: bool) -> int:
    """Bytes of trained or of frozen weights in ``dtype``, but for those that stay float32."""
    return sum(
        weight.numel() * (4 if stays_float32(network, name) else dtype.itemsize)
        for name, weight in network.named_parameters()
        if weight.requires_grad is is_trained
    )


def _weights_in_use(network: nn.Module, dtype: torch.dtype, *, gathers: bool) -> int:
    """What is there of weights while they compute.

    One process has narrow copies of trained weights, those of one block and of what surrounds the blocks. Several
    gather that and the next block, and have a block's gradients in ``dtype`` and, to be averaged, in float32.
    """
    exact = {name for name, _ in network.named_parameters() if stays_float32(network, name)}
    sizes: dict[str, tuple[int, int]] = {}
    for name, weight in network.named_parameters():
        parts = name.split(".")
        unit = ".".join(parts[:2]) if parts[0] == "blocks" else ""
        itemsize = 4 if name in exact else dtype.itemsize
        if not gathers and (name in exact or dtype is torch.float32 or not weight.requires_grad):
            continue
        gathered, gradients = sizes.get(unit, (0, 0))
        reduced = weight.numel() * (itemsize + 4) if gathers and weight.requires_grad else 0
        sizes[unit] = gathered + weight.numel() * itemsize, gradients + reduced
    rest = sizes.pop("", (0, 0))
    block = max(sizes.values(), default=(0, 0))
    return rest[0] + (2 if gathers else 1) * block[0] + max(block[1], rest[1])


def _batch_bytes(config: WanDiTConfig, tokens: int) -> int:
    """Latents, noise, their mixture and the velocities, channels beside them, and text, all float32."""
    patch = math.prod(config.patch_size)
    return 4 * tokens * patch * (4 * config.out_dim + 2 * config.in_dim)


def describe_trained(plan: TrainingPlan) -> str:
    """What is trained, for people."""
    lora = plan.settings.lora()
    names = [name for name in plan.networks if name != DIT]
    if DIT in plan.networks:
        names.insert(
            0, "all weights" if lora is None else f"a LoRA of rank {lora.rank}, alpha {lora.scale * lora.rank:g}"
        )
    return " and the ".join(names)


def activation_bytes(
    config: WanDiTConfig, tokens: int, itemsize: int, *, recompute: bool, trains_all: bool = True
) -> int:
    """Estimated bytes that ``tokens`` tokens keep for the backward pass; ``recompute`` keeps the inputs of blocks.

    ``itemsize`` is that of the dtype to compute in; where adapters alone are trained (not ``trains_all``) less is kept.
    """
    narrow, wide, around = _KEPT_BY_ALL if trains_all else _KEPT_BY_ADAPTERS
    block = tokens * ((narrow * itemsize + 4 * wide) * config.dim + _KEPT_PER_FFN * itemsize * config.ffn_dim)
    rest = tokens * config.dim * around
    if recompute:
        return int(block + rest) + config.num_layers * tokens * config.dim * 4
    return int(block * config.num_layers + rest)


def tokens_of(plan: TrainingPlan) -> int:
    """Tokens of a clip of the planned area, and of the frames that its task puts beside it."""
    spec = plan.preset.latent_spec
    latent_frames = (plan.clips.num_frames - 1) // spec.temporal_stride + 1 + plan.preset.task.further_frames
    frames = latent_frames // spec.patch_size[0]
    return frames * (plan.clips.area // (spec.height_multiple * spec.width_multiple))


def describe_plan(plan: TrainingPlan) -> dict[str, Any]:
    """The plan of a dry run: model, data, counts of weights, steps and memory, as plain values."""
    total, trained = count_parameters(plan)
    tokens = tokens_of(plan)
    memory = memory_of(plan, tokens)
    settings, loop = plan.settings, plan.loop
    data: dict[str, Any] = {"cache": str(plan.cache_folder)}
    if plan.examples is not None:
        data = {"data": _folders(plan), "examples": len(plan.examples), **_held_out(plan)}
        data["sizes"] = bucket_counts(plan.examples)
        if plan.found is not None and plan.found.bad:
            data["left_out"] = [plain_text(error) for error in plan.found.bad]
    return {
        "model": plan.preset.name,
        "weights": str(plan.folder),
        "trains": describe_trained(plan),
        **({"experts": [part.expert for part in plan.parts]} if plan.preset.has_experts else {}),
        **data,
        "clip": f"{plan.clips.num_frames} frames at {plan.clips.fps:g} fps, {tokens} tokens",
        "steps": loop.steps,
        "samples_per_step": settings.batch * loop.accumulation,
        "optimizer": f"{settings.optimizer}, rate {settings.base_rate():g}",
        "device": str(plan.device),
        "dtype": str(plan.dtype).removeprefix("torch."),
        "parameters": total,
        "trained_parameters": trained,
        "memory": {name: gib(count) for name, count in memory.items() if count},
        "output": str(plan.options.output),
        **({"notes": list(plan.notes)} if plan.notes else {}),
    }


def gib(count: float) -> str:
    """Bytes for people."""
    unit = min(3, max(0, math.floor(math.log2(count) / 10))) if count >= 1 else 0
    return f"{count / 1024**unit:.{0 if unit == 0 else 1}f} {('B', 'KiB', 'MiB', 'GiB')[unit]}"


def _folders(plan: TrainingPlan) -> str:
    times = (f" {each.repeats} times" if each.repeats > 1 else "" for each in plan.options.data)
    return ", ".join(f"{each.path}{count}" for each, count in zip(plan.options.data, times, strict=True))


def _held_out(plan: TrainingPlan) -> dict[str, int]:
    return {} if plan.examples is None else {"held_out": plan.settings.held_out_of(len(plan.examples))}
