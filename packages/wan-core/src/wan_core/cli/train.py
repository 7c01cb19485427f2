"""``wan train``: options and a TOML file to a checked plan, then the run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wan_core import runtime, training
from wan_core.cli.data import data_options, report_left_out
from wan_core.cli.group import PLACE, ErrorReporting, exit_of
from wan_core.cli.options import FINITE, ParsedType, debug_option, part_option
from wan_core.cli.progress import item_progress, progress_unless, reporter, training_progress
from wan_core.errors import RequestError
from wan_core.media import parse_size
from wan_core.training import (
    DEFAULT_TARGETS,
    EXPERTS,
    LOSS_WEIGHTINGS,
    OPTIMIZERS,
    SCHEDULES,
    TIMESTEPS,
    LoopSettings,
    TrainSettings,
    read_config,
)

if TYPE_CHECKING:
    from wan_core.training import Ranks, RunOptions, RunResult, TrainingPlan

_FOLDER = PLACE
_TARGETS_HELP = "Layers, by globs of whole names: 'blocks.*.ffn.0'; repeatable.  [default: attention, ffn of blocks]"
_NO_CONFIG = ("config", "debug", "help")


def _use_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    """Make the file's values the defaults of the command line."""
    if value is not None:
        options = {option.name or "": option for option in ctx.command.params if option.name not in _NO_CONFIG}
        named = {name[2:].replace("-", "_"): key for key, option in options.items() for name in option.opts}
        named.pop("", None)  # of -o
        given = read_config(value, named, also=options)
        read = {named.get(name, name): each for name, each in given.items()}
        found = {name: _as_often(each, options[name], value) for name, each in read.items()}
        ctx.default_map = {**(ctx.default_map or {}), **found}


def _as_often(given: Any, option: click.Parameter, config: Path) -> Any:
    """A config's value of an option: a list for one that may come again, also of one, and only for such a one."""
    if isinstance(given, list) and not option.multiple:
        raise RequestError(f"the config {config} has a list for {option.name}, which takes one value")
    return [given] if isinstance(given, str) and option.multiple else given


def _option(*names: str, help: str, **values: Any) -> click.Option:
    return click.Option(list(names), help=help, show_default=values.get("default") is not None, **values)


_OPTIONS = [
    _option("--config", type=_FOLDER, is_eager=True, expose_value=False, callback=_use_config,
            help="A TOML file of options by name; flags win over it."),
    _option("--model", default="tiny-ti2v", help="Which model to train; 'wan presets' lists them."),
    _option("--ckpt-dir", "ckpt_dir", type=_FOLDER, help="Folder of its weights."),
    *data_options(),
    _option("--cache", type=_FOLDER, help="Folder made by 'wan cache', instead of --data."),
    _option("--output", "-o", type=_FOLDER, help="Folder of checkpoints, log and result. Needed."),
    part_option(),
    _option("--network", multiple=True, help="dit, or a network beside it such as poze's adapter; "
            "repeatable.  [default: all there are]"),
    _option("--expert", type=click.Choice(EXPERTS), help="Of a two-expert model: which.  [default: both]"),
    _option("--steps", type=int, default=1000, help="Optimizer steps."),
    _option("--batch-size", "batch_size", type=int, default=1, help="Videos a step and process."),
    _option("--accumulation", type=int, default=1, help="Batches whose gradients make one step."),
    _option("--optimizer", type=click.Choice(OPTIMIZERS), default="adamw", help="adamw8bit needs bitsandbytes."),
    _option("--lr", type=FINITE, help="Learning rate.  [default: 1e-4, LoRA 1e-3; muon 5e-3 and 1e-2]"),
    _option("--weight-decay", type=FINITE, default=0.0, help="Decoupled weight decay."),
    _option("--warmup", type=int, default=20, help="Steps over which the rate rises."),
    _option("--schedule", type=click.Choice(SCHEDULES), default="linear", help="How the rate falls at the end."),
    _option("--decay-share", type=FINITE, default=0.3, help="Share of the steps over which it falls."),
    _option("--clip", type=FINITE, default=1.0, help="Largest norm of the gradient; 0 does not clip."),
    _option("--ema", type=FINITE,
            help="Decay of averaged weights, which are then validated and saved, e.g. 0.999.  [default: none]"),
    _option("--lora-rank", type=int, help="Train a LoRA of this rank.  [default: train all weights]"),
    _option("--lora-alpha", type=FINITE, help="Its alpha.  [default: the rank]"),
    _option("--lora-targets", multiple=True, help=_TARGETS_HELP),
    _option("--timesteps", type=click.Choice(TIMESTEPS), default="logit-normal", help="How noise levels are drawn."),
    _option("--shift", type=FINITE, help="Shift of the noise levels.  [default: 1; 'shifted': the model's]"),
    _option("--loss-weighting", type=click.Choice(LOSS_WEIGHTINGS), default="none",
            help="How much errors count at each noise level; bell: most in the middle."),
    _option("--clean-frames", type=int, default=0, help="ti2v, mi2v: up to so many leading latent frames are given."),
    _option("--clean-share", type=FINITE, default=0.5, help="Share of the samples with given frames."),
    _option("--caption-dropout", type=FINITE, default=0.1, help="Share of the samples without caption, for guidance."),
    _option("--num-frames", "--frame-num", "num_frames", type=int, help="Frames of a clip.  [default: the model's]"),
    _option("--fps", type=FINITE, help="Frames per second of a clip.  [default: the model's]"),
    _option("--size", type=ParsedType("W*H", parse_size), help="The area of a clip.  [default: the model's]"),
    _option("--held-out", type=int, help="Examples kept for the validation loss.  [default: one in five, at most 16]"),
    _option("--validate-every", type=int, help="Steps between validations.  [default: start and end]"),
    _option("--validation-prompt", multiple=True, help="Sampled at each validation; repeatable."),
    _option("--validation-image", multiple=True, type=_FOLDER,
            help="The image that they start from; repeatable for models that take several."),
    _option("--save-every", type=int, help="Steps between checkpoints.  [default: every minute]"),
    _option("--keep", type=int, default=2, help="Checkpoints kept."),
    _option("--log-every", type=int, default=10, help="Steps between lines of the log."),
    _option("--tensorboard", is_flag=True, help="Log for TensorBoard too."),
    _option("--checkpointing/--no-checkpointing", default=False, help="Less memory, a third more time."),
    _option("--device", help="cpu, cuda, cuda:INDEX or mps.  [default: the best there is]"),
    _option("--dtype", help="float32 or bfloat16.  [default: float32 on the CPU, bfloat16 on GPUs that have it]"),
    _option("--replicas", type=int, default=1, help="torchrun: groups of processes that hold the same weights each."),
    _option("--seed", type=int, default=0, help="Of data order, noise and new weights."),
    _option("--dry-run", is_flag=True, help="Check everything, print plan, parameters and memory; read no weights."),
    _option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    _option("--quiet", is_flag=True, help="No progress."),
]  # fmt: skip


def train_options(*names: str, **defaults: Any) -> list[click.Parameter]:
    """Options of ``wan train`` for a command with an objective of its own, by the names of their values.

    ``defaults`` are those that differ there. Raises KeyError for a name that there is not.
    """
    known = {option.name: option for option in _OPTIONS}
    chosen = [copy(known[name]) for name in names]
    for option in chosen:
        if option.name in defaults:
            option.default, option.show_default = defaults[option.name], defaults[option.name] is not None
            option.help = (option.help or "").partition("  [default: ")[0]
    return [*chosen]


def carry_out_command(values: dict[str, Any], plan_of: Callable[..., TrainingPlan]) -> TrainingPlan | None:
    """A whole command of training from its options: the plan, which ``plan_of(values, world=N)`` makes, and the run.

    Says what came out. Gives the plan of a run that ended by itself, None after a dry run and on all processes but the
    first; one that a signal ended raises click's exit.
    """
    launch = runtime.launched()
    if launch is not None:
        values["device"] = launch.device(values["device"])
    elif values["replicas"] != 1:
        raise RequestError(
            f"--replicas {values['replicas']} divides processes, and torchrun started none; leave it out"
        )
    plan = plan_of(values, world=1 if launch is None else launch.world)
    is_first = launch is None or launch.rank == 0
    if values["dry_run"]:
        if is_first:
            _show(training.describe_plan(plan), values["as_json"])
        return None
    with training.distributed_ranks(launch, plan.device, replicas=values["replicas"]) as ranks:
        result = run_plan(plan, quiet=values["quiet"] or not is_first, ranks=ranks)
    if is_first:
        _report(plan, result, values["as_json"])
        if plan.found is not None:
            report_left_out(plan.found)
    if result.signal is not None:
        raise exit_of(result.signal)
    return plan if is_first else None


def _call(**values: Any) -> None:
    carry_out_command(values, plan_of)


def _report(plan: TrainingPlan, result: RunResult, as_json: bool) -> None:
    if result.signal is not None:
        done = max((each.step for each in result.results.values()), default=0)
        click.echo(f"stopped at step {done}, everything is saved; the same command goes on from there", err=True)
        return
    losses = {name or "model": each.loss if math.isfinite(each.loss) else None for name, each in result.results.items()}
    first, *others = map(str, result.outputs)
    beside = {"beside": ", ".join(others)} if others else {}
    _show({"output": first, **beside, "steps": plan.loop.steps, "loss": losses}, as_json)


train = ErrorReporting(
    "train",
    params=[*_OPTIONS, debug_option()],
    callback=_call,
    help="Finetune a model on videos and images with captions: all weights, or a LoRA with --lora-rank.",
)


def plan_of(values: Mapping[str, Any], *, world: int = 1) -> TrainingPlan:
    """The checked plan of parsed options. Raises what `plan_training` raises."""
    return training.plan_training(*run_settings(values, world=world), progress=progress_unless(values["quiet"]))


def run_settings(values: Mapping[str, Any], *, world: int = 1) -> tuple[RunOptions, TrainSettings, LoopSettings]:
    """What parsed options ask a run for; those that a command lacks are at their defaults. Raises ConfigError."""
    if values["output"] is None:
        raise RequestError("--output FOLDER is needed: where checkpoints, log and result go")
    renamed = {
        "rate": values["lr"],
        "batch": values["batch_size"],
        "lora_targets": values.get("lora_targets") or DEFAULT_TARGETS,
        "warmup_steps": values["warmup"],
        "clip_norm": values["clip"] or None,
        "save_steps": values["save_every"],
        "log_steps": values["log_every"],
        "validate_steps": values["validate_every"],
        "checkpoint_dir": values["ckpt_dir"],
        "data": training.data_folders(values.get("data", ())),
        "validation_prompts": values["validation_prompt"],
        "validation_images": values.get("validation_image", ()),
        "networks": values.get("network", ()),
        "parts": dict(values["parts"]),
        "world": world,
    }
    known = {**values, **renamed}

    def made(kind: type[Any]) -> Any:
        return kind(**{field.name: known[field.name] for field in fields(kind) if field.name in known})

    return made(training.RunOptions), made(TrainSettings), made(LoopSettings)


def run_plan(plan: TrainingPlan, *, quiet: bool, ranks: Ranks | None = None) -> RunResult:
    """Carry out a plan with progress on the terminal."""
    total = 0 if plan.examples is None else len(plan.examples)
    with (
        item_progress("encode", total, quiet=quiet) as encoded,
        training_progress(plan.loop.steps, lambda: runtime.peak_memory(plan.device), quiet=quiet) as step,
    ):
        return training.carry_out(plan, training.Listeners(log=reporter(quiet), encoded=encoded, step=step), ranks)


def _show(values: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    for name, value in values.items():
        click.echo(f"{name:<20} {value}")
