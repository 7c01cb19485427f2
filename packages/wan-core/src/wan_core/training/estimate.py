"""How much a planned run will take: counts and memory, without loading anything."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from wan_core.files import plain_text
from wan_core.models import WanDiTConfig
from wan_core.training.data import Example
from wan_core.training.plan import DIT, TrainingPlan, meta_network

# Values that a block keeps for its backward pass, per token and unit of width: counted on the tiny network.
_KEPT_PER_WIDTH = 17
_KEPT_PER_FFN = 2
_STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "muon": 4}


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


def memory_of(plan: TrainingPlan, tokens: int, total: int, trained: int) -> dict[str, int]:
    """Estimated bytes of a step: weights, gradients, optimizer, averaged weights, activations.

    ``tokens`` are those of one sample, ``total`` and ``trained`` are `count_parameters`. Activations are an estimate
    from counts of kept values, good to about a third.
    """
    config: WanDiTConfig = plan.pipeline.components.configs[DIT]
    own = 0 if plan.trains_all else trained  # what is trained beside fixed weights is float32
    weights = (total - own) * plan.weights_dtype.itemsize + own * 4
    return {
        "weights": weights,
        "gradients": trained * 4,
        "optimizer": trained * _STATE_BYTES[plan.settings.optimizer],
        "averaged weights": 0 if plan.settings.ema is None else trained * 4,
        "activations": activation_bytes(
            config, tokens * plan.settings.batch, plan.dtype.itemsize, recompute=plan.settings.checkpointing
        ),
    }


def describe_trained(plan: TrainingPlan) -> str:
    """What is trained, for people."""
    lora = plan.settings.lora()
    names = [name for name in plan.networks if name != DIT]
    if DIT in plan.networks:
        names.insert(
            0, "all weights" if lora is None else f"a LoRA of rank {lora.rank}, alpha {lora.scale * lora.rank:g}"
        )
    return " and the ".join(names)


def activation_bytes(config: WanDiTConfig, tokens: int, itemsize: int, *, recompute: bool) -> int:
    """Estimated bytes that ``tokens`` tokens keep for the backward pass; ``recompute`` keeps the inputs of blocks."""
    block = tokens * (_KEPT_PER_WIDTH * config.dim + _KEPT_PER_FFN * config.ffn_dim) * itemsize
    if recompute:
        return block + config.num_layers * tokens * config.dim * 4
    return block * config.num_layers


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
    memory = memory_of(plan, tokens, total, trained)
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
        "memory": {**{name: gib(count) for name, count in memory.items()}, "sum": gib(sum(memory.values()))},
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
