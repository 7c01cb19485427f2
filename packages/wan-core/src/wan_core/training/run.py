"""A planned run, carried out: cache, train, validate, export - one transformer after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wan_core.checkpoints import Part
from wan_core.drafts import alone_in
from wan_core.errors import RequestError
from wan_core.files import plain_text
from wan_core.runtime import prepare_model
from wan_core.sampling import FlowTable
from wan_core.training.average import AveragedWeights, averaged
from wan_core.training.cache import Cache, write_cache
from wan_core.training.examples import ExampleEncoder, Sampler
from wan_core.training.export import complete_model, save_companion, save_network
from wan_core.training.flow_loss import FlowLoss
from wan_core.training.loop import TrainingResult, train
from wan_core.training.lora import attach_lora, save_lora
from wan_core.training.objective import NoiseLevels, expert_levels
from wan_core.training.optimizers import build_optimizers
from wan_core.training.plan import DIT, TrainedNetworks, TrainingPlan
from wan_core.training.ranks import Ranks
from wan_core.training.stage import Loss, Stage
from wan_core.training.tensorboard import tensorboard_listener
from wan_core.training.validation import Validation, with_networks

LOG_NAME = "log.jsonl"


@dataclass(frozen=True, kw_only=True)
class Listeners:
    """Who follows a run: ``log`` gets sentences, ``encoded`` the count of cached examples, ``step`` the log's lines."""

    log: Callable[[str], None]
    encoded: Callable[[int], None]
    step: Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class RunResult:
    """What a run made, and how it ended: ``signal`` is the one that stopped it, ``outputs`` the files for others."""

    results: Mapping[str, TrainingResult]
    outputs: Sequence[Path] = ()
    signal: int | None = None


def carry_out(plan: TrainingPlan, listeners: Listeners, ranks: Ranks | None = None) -> RunResult:
    """Make the cache if there is none, then train each network of the plan and write what others can use.

    A run that was stopped goes on when it is called again. Raises RequestError when another one works in the output
    folder, and what `write_cache` and `train` raise.
    """
    ranks = ranks or Ranks()
    output = plan.options.output
    busy = RequestError(f"another training run works in {plain_text(output)}; wait for its end, or name another folder")
    with alone_in(output, busy) if ranks.is_first else nullcontext():
        return _carry_out(plan, listeners, ranks)


def _carry_out(plan: TrainingPlan, listeners: Listeners, ranks: Ranks) -> RunResult:
    for note in plan.notes if ranks.is_first else ():
        listeners.log(note)
    cache = None if plan.objective is not None else prepare_cache(plan, listeners, ranks)
    results: dict[str, TrainingResult] = {}
    outputs: list[Path] = []
    for part in plan.parts:
        results[part.expert or ""], written = _train_part(plan, part, cache, listeners, ranks)
        outputs += [path for path in written if path not in outputs]
        signal = results[part.expert or ""].signal
        if signal is not None:
            return RunResult(results, outputs, signal)
    return RunResult(results, outputs)


def prepare_cache(plan: TrainingPlan, listeners: Listeners, ranks: Ranks) -> Cache:
    """The finished cache of a plan; made here, by the first rank, when the plan has examples."""
    examples = plan.examples
    if examples is not None and ranks.is_first:
        encode = ExampleEncoder(plan.pipeline, plan.clips, each_image=bool(plan.cache_settings["pictures"]))
        with encode.ready():
            write_cache(
                plan.cache_folder,
                len(examples),
                lambda number: encode(examples[number]),
                plan.cache_settings,
                report=listeners.encoded,
            )
    ranks.wait()
    return Cache(plan.cache_folder, expected=plan.cache_settings if examples is not None else None)


def _train_part(
    plan: TrainingPlan, part: Part, cache: Cache | None, listeners: Listeners, ranks: Ranks
) -> tuple[TrainingResult, Sequence[Path]]:
    networks = load_networks(plan, part, ranks)
    prepare_model(
        networks.dit, inference=False, shard=ranks.shard, dtype=plan.dtype, recompute=plan.settings.checkpointing
    )
    for network in networks.beside.values():
        prepare_model(network, inference=False, shard=ranks.shard, dtype=plan.dtype)
    if cache is not None:
        stage = _flow_stage(plan, part, networks, cache, ranks)
    elif plan.objective is not None:
        stage = plan.objective.stage(plan, networks, ranks)
    else:
        raise ValueError("a plan has a cache or an objective")
    name = part.expert or ""
    validation = Validation(
        stage=stage, pipeline=with_networks(plan.pipeline, networks, part), requests=plan.requests,
        folder=plan.options.output / "validation" / name, ranks=ranks,
    )  # fmt: skip

    def validate(step: int) -> Mapping[str, Any]:
        if plan.options.export_at_validation and 0 < step < plan.loop.steps:
            for path in _export(plan, part, networks, step, ranks):
                listeners.log(str(path))
        return validation(step)

    result = train(
        stage,
        plan.loop,
        checkpoints=plan.checkpoints(part),
        recipe=plan.recipe(part),
        log_path=plan.options.output / name / LOG_NAME,
        report=_report(plan, name, listeners, ranks),
        validate=validate,
        rank=ranks.rank,
        reduce=ranks.reduce,
    )
    if result.signal is not None:
        return result, ()
    with averaged(stage.model, stage.average):
        return result, _export(plan, part, networks, result.step, ranks)


def _report(plan: TrainingPlan, name: str, listeners: Listeners, ranks: Ranks) -> Callable[[dict[str, Any]], None]:
    if not plan.options.tensorboard or not ranks.is_first:
        return listeners.step
    board = tensorboard_listener(plan.options.output / "tensorboard" / name)

    def report(line: dict[str, Any]) -> None:
        listeners.step(line)
        board(line)

    return report


def load_networks(plan: TrainingPlan, part: Part, ranks: Ranks) -> TrainedNetworks:
    """The networks of a plan, ready to train: with adapters, or every trained weight its own float32 tensor.

    Of the transformer each of several processes reads its own rows.
    """
    companions = {
        name: replace(each, network=each.network.to(plan.device).requires_grad_(name in plan.networks).train())
        for name, each in plan.companions().items()
    }
    dit, lora = plan.placed(part).trainable(plan.weights_dtype, ranks.division), plan.settings.lora()
    torch.manual_seed(plan.settings.seed)
    if DIT not in plan.networks:
        dit.requires_grad_(False)
    elif lora is not None:
        attach_lora(dit, lora)
    else:
        own_weights(dit)
    return TrainedNetworks(dit=dit.train(), companions=companions)


@torch.no_grad()
def own_weights(model: nn.Module) -> None:
    """Give every weight memory of its own: those of a mapped file are not to be written to."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(True)


def trained_levels(plan: TrainingPlan, part: Part) -> NoiseLevels:
    """The noise levels that one transformer is trained at."""
    levels = plan.settings.levels(plan.preset.sampling.flow_shift)
    if part.expert is None or plan.preset.boundary is None:
        return levels
    return expert_levels(levels, part.expert, plan.preset.boundary)


def one_loss(plan: TrainingPlan, networks: TrainedNetworks, loss: Loss) -> Stage:
    """The stage of all networks under one loss, with the optimizer and the average that the settings ask for."""
    model, settings = networks.model, plan.settings
    optimizers = build_optimizers(model, settings.optimizer, settings.base_rate(), weight_decay=settings.weight_decay)
    average = None if settings.ema is None else AveragedWeights(model, settings.ema)
    return Stage.of(model, optimizers, loss, average)


def _flow_stage(plan: TrainingPlan, part: Part, networks: TrainedNetworks, cache: Cache, ranks: Ranks) -> Stage:
    settings = plan.settings
    held_out = settings.held_out_of(len(cache))
    levels = trained_levels(plan, part)
    loss = FlowLoss(
        model=networks.dit,
        task=plan.preset.task,
        networks=networks.beside,
        cache=cache,
        sampler=Sampler(cache, batch=settings.batch, seed=settings.seed, held_out=held_out, world=ranks.world),
        settings=settings,
        levels=levels,
        table=FlowTable(levels.shift) if settings.loss_weighting == "bell" else None,
        device=plan.device,
        accumulation=plan.loop.accumulation,
        rank=ranks.rank,
        world=ranks.world,
    )
    return replace(one_loss(plan, networks, loss), held_out=loss.held_out)


def _export(plan: TrainingPlan, part: Part, networks: TrainedNetworks, step: int, ranks: Ranks) -> list[Path]:
    """Write what others can use; the paths, that of the transformer first. All ranks must call it."""
    recipe = {**plan.recipe(part), "steps": step, "loop": plan.loop.identity()}
    metadata = {"base_model": plan.preset.name, "training": json.dumps(recipe, sort_keys=True, default=str)}
    output, names = plan.options.output, plan.options.names
    known = {"step": step, "expert": f"-{part.expert}" if part.expert else ""}
    written = []
    if plan.trains_all:
        target = output / names.model.format(**known)
        save_network(networks.dit, target / part.place, dtype=plan.dtype, metadata=metadata, ranks=ranks)
        if ranks.is_first and part == plan.parts[-1]:
            complete_model(plan.preset, plan.folder, target)
        written.append(target)
    elif DIT in plan.networks:
        written.append(output / names.lora.format(**known))
        save_lora(networks.dit, written[-1], metadata=metadata, ranks=ranks)
    for name in (each for each in networks.companions if each in plan.networks):
        written.append(output / names.companion.format(name=name, **known))
        save_companion(networks.companions[name], written[-1], metadata=metadata, ranks=ranks)
    ranks.wait()
    return written
