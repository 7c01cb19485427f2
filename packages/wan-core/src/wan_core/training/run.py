"""A planned run, carried out: cache, train, validate, export - one network after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wan_core.models import WanDiT
from wan_core.runtime import prepare_model
from wan_core.tasks import Experts
from wan_core.training.cache import Cache, write_cache
from wan_core.training.examples import ExampleEncoder, Sampler
from wan_core.training.export import complete_model, save_network
from wan_core.training.flow_loss import FlowLoss
from wan_core.training.loop import TrainingResult, train
from wan_core.training.lora import attach_lora, save_lora
from wan_core.training.objective import NoiseLevels, expert_levels
from wan_core.training.optimizers import build_optimizers
from wan_core.training.plan import Expert, TrainingPlan
from wan_core.training.ranks import Ranks
from wan_core.training.state import AveragedWeights
from wan_core.training.tensorboard import tensorboard_listener
from wan_core.training.validation import Validation, averaged, with_network

LOG_NAME = "log.jsonl"


@dataclass(frozen=True, kw_only=True)
class Listeners:
    """Who hears of a run: ``say`` sentences, ``encoded`` the number of cached examples, ``step`` the log's lines."""

    say: Callable[[str], None]
    encoded: Callable[[int], None]
    step: Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class RunResult:
    """What a run made, and how it ended: ``signal`` is the one that stopped it, ``output`` the files for others."""

    results: Mapping[str, TrainingResult]
    output: Path | None
    signal: int | None = None


def carry_out(plan: TrainingPlan, listeners: Listeners, ranks: Ranks | None = None) -> RunResult:
    """Make the cache if there is none, then train each network of the plan and write what others can use.

    A run that was stopped goes on when it is called again. Raises what `write_cache` and `train` raise.
    """
    ranks = ranks or Ranks()
    cache = prepare_cache(plan, listeners, ranks)
    results: dict[str, TrainingResult] = {}
    output: Path | None = None
    for expert in plan.experts:
        result, output = _train_expert(plan, expert, cache, listeners, ranks)
        results[expert.name] = result
        if result.signal is not None:
            return RunResult(results, None, result.signal)
    return RunResult(results, output)


def prepare_cache(plan: TrainingPlan, listeners: Listeners, ranks: Ranks) -> Cache:
    """The finished cache of a plan; made here, by the first rank, when the plan has examples."""
    examples = plan.examples
    if examples is not None and ranks.is_first:
        encoder = ExampleEncoder(plan.pipeline(plan.dtype), plan.clips, pictures=bool(plan.cache_settings["pictures"]))
        write_cache(
            plan.cache_folder,
            len(examples),
            lambda number: encoder(examples[number]),
            plan.cache_settings,
            report=listeners.encoded,
        )
    ranks.wait()
    return Cache(plan.cache_folder, expected=plan.cache_settings if examples is not None else None)


def _train_expert(
    plan: TrainingPlan, expert: Expert, cache: Cache, listeners: Listeners, ranks: Ranks
) -> tuple[TrainingResult, Path]:
    model = load_network(plan, expert)
    settings = plan.settings
    prepare_model(model, inference=False, shard=ranks.shard, recompute=settings.checkpointing)
    optimizers = build_optimizers(model, settings.optimizer, settings.base_rate(), weight_decay=settings.weight_decay)
    average = None if settings.ema is None else AveragedWeights(model, settings.ema)
    loss = _loss(plan, expert, model, cache, ranks)
    pipeline = with_network(plan.pipeline(plan.dtype), model, expert.name)
    validation = Validation(
        model=model, loss=loss, average=average, pipeline=pipeline, prompts=plan.prompts,
        folder=plan.options.output / "validation" / expert.name, ranks=ranks,
    )  # fmt: skip
    result = train(
        model,
        optimizers,
        loss,
        plan.loop,
        checkpoints=plan.checkpoints(expert),
        average=average,
        recipe=plan.recipe(expert),
        log_path=plan.options.output / expert.name / LOG_NAME,
        report=_report(plan, expert, listeners, ranks),
        validate=validation,
        rank=ranks.rank,
        reduce=ranks.reduce,
    )
    if result.signal is not None:
        return result, plan.options.output
    with averaged(model, average):
        return result, _export(plan, expert, model, result, ranks)


def _report(plan: TrainingPlan, expert: Expert, listeners: Listeners, ranks: Ranks) -> Callable[[dict[str, Any]], None]:
    if not plan.options.tensorboard or not ranks.is_first:
        return listeners.step
    board = tensorboard_listener(plan.options.output / "tensorboard" / expert.name)

    def report(line: dict[str, Any]) -> None:
        listeners.step(line)
        board(line)

    return report


def load_network(plan: TrainingPlan, expert: Expert) -> WanDiT:
    """The network of a plan, ready to train: adapters attached, or every weight its own float32 tensor."""
    dit = plan.pipeline(plan.weights_dtype, inference=False).components.dit
    placed = getattr(dit, expert.name) if isinstance(dit, Experts) else dit
    model: WanDiT = placed.module()
    lora = plan.settings.lora()
    torch.manual_seed(plan.settings.seed)
    if lora is not None:
        attach_lora(model, lora)
    else:
        own_weights(model)
    return model.train()


@torch.no_grad()
def own_weights(model: nn.Module) -> None:
    """Give every weight memory of its own: those of a mapped file are not to be written to."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(True)


def trained_levels(plan: TrainingPlan, expert: Expert) -> NoiseLevels:
    """The noise levels that one network is trained at."""
    levels = plan.settings.levels(plan.preset.sampling.flow_shift)
    if not expert.name or plan.preset.boundary is None:
        return levels
    return expert_levels(levels, "high" if expert.name == "high" else "low", plan.preset.boundary)


def _loss(plan: TrainingPlan, expert: Expert, model: nn.Module, cache: Cache, ranks: Ranks) -> FlowLoss:
    settings = plan.settings
    held_out = settings.held_out_of(len(cache))
    return FlowLoss(
        model=model,
        cache=cache,
        sampler=Sampler(cache, batch=settings.batch, seed=settings.seed, held_out=held_out, world=ranks.world),
        settings=settings,
        levels=trained_levels(plan, expert),
        device=plan.device,
        dtype=plan.dtype,
        accumulation=plan.loop.accumulation,
        rank=ranks.rank,
        world=ranks.world,
    )


def _export(plan: TrainingPlan, expert: Expert, model: WanDiT, result: TrainingResult, ranks: Ranks) -> Path:
    recipe = {**plan.recipe(expert), "steps": result.step, "loop": plan.loop.identity()}
    metadata = {"base_model": plan.preset.name, "training": json.dumps(recipe, sort_keys=True)}
    output = plan.options.output
    if plan.settings.lora() is not None:
        path = output / (f"lora-{expert.name}.safetensors" if expert.name else "lora.safetensors")
        save_lora(model, path, metadata=metadata, ranks=ranks)
        ranks.wait()
        return path
    target = output / "model"
    save_network(model, target / expert.part.file, dtype=plan.dtype, metadata=metadata, ranks=ranks)
    if ranks.is_first and expert == plan.experts[-1]:
        complete_model(plan.preset, plan.folder, target)
    ranks.wait()
    return target
