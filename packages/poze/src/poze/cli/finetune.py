"""``poze-finetune``: the seed's flags and defaults, and more."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wan_core import RequestError
from wan_core.cli import FINITE, PLACE, ErrorReporting, debug_option, exit_of, main_of, reporter, version_option
from wan_core.media import parse_size
from wan_core.runtime import launched
from wan_core.sampling import SOLVERS

if TYPE_CHECKING:
    from wan_core.training import Listeners, TrainingPlan

OBJECTIVES = ("rollout", "flow")
_FILE = PLACE
_SAMPLING = ("num_frames", "num_inference_steps", "flow_shift", "guidance_scale", "solver")


def seed_options() -> list[click.Parameter]:
    """The flags of the seed, with its defaults."""
    return [
        click.Option(
            ["--wan-ckpt-dir"], type=_FILE, help="Folder of Wan's weights; without it the tiny model is trained."
        ),
        click.Option(["--wan-config"], default="ti2v-5B", show_default=True, help="The Wan model."),
        click.Option(["--pi3-checkpoint"], type=_FILE, help="Pi3's weights: a file or a folder."),
        click.Option(["--pi3-pretrained-id"], default="yyfz233/Pi3", show_default=True, help="Else: from the hub."),
        click.Option(["--prompt"], help="What the video shows."),
        click.Option(["--image"], type=_FILE, help="The picture it starts from."),
        click.Option(["--gt-video"], type=_FILE, help="The wanted video: [3, F, H, W] in -1..1, or a video file."),
        click.Option(["--gt-points"], type=_FILE, help="The wanted Pi3 points [1, views, h, w, 3]; 2 views or more."),
        click.Option(["--frame-num", "num_frames"], type=int, help="Frames, 4n+1; default: those of --gt-video."),
        click.Option(["--adapter-tokens"], type=int, default=64, show_default=True, help="Guidance tokens."),
        click.Option(["--video-weight"], type=FINITE, default=1.0, show_default=True, help="Weight of the MSE."),
        click.Option(["--point-weight"], type=FINITE, default=1.0, show_default=True, help="Weight of the L1."),
        click.Option(["--lr"], type=FINITE, default=1e-5, show_default=True, help="Learning rate of AdamW."),
        click.Option(["--weight-decay"], type=FINITE, default=0.0, show_default=True, help="Of AdamW."),
        click.Option(["--steps"], type=int, default=10, show_default=True, help="Steps of the optimizer."),
        click.Option(["--log-every"], type=int, default=1, show_default=True, help="Steps between log lines."),
        click.Option(
            ["--save-every"],
            type=int,
            default=0,
            show_default=True,
            help="Steps between weight files; 0: only at the end.",
        ),
        click.Option(["--save-dir"], type=_FILE, default=Path("finetune_outputs"), show_default=True, help="Outputs."),
        click.Option(["--device"], help="cpu, cuda, cuda:INDEX or mps; default: the best there is."),
        click.Option(["--offload-model"], type=bool, default=False, show_default=True, help="Idle parts leave it."),
        click.Option(["--amp"], type=bool, default=True, show_default=True, help="bfloat16 on an accelerator."),
        click.Option(["--max-grad-norm"], type=FINITE, help="Clip gradients to this norm; default: not."),
        click.Option(["--seed"], type=int, help="Of noise and order; default: one is drawn, or the run's own."),
    ]


def further_options() -> list[click.Parameter]:
    """What the seed lacks."""
    return [
        click.Option(
            ["--objective"], type=click.Choice(OBJECTIVES), default="rollout", show_default=True, help="Loss."
        ),
        click.Option(["--train"], default="wan,adapter", show_default=True, help="wan, adapter, lora; with commas."),
        click.Option(["--dataset-root"], type=_FILE, help="Folder of videos and captions, for --objective flow."),
        click.Option(["--dataset-latents"], is_flag=True, help="Take the latents that lie in --dataset-root."),
        click.Option(["--adapter"], type=_FILE, help="Go on from a trained adapter."),
        click.Option(
            ["--context-space"], type=click.Choice(["dit", "text"]), default="dit", help="New adapter; default: dit."
        ),
        click.Option(["--use-pi3"], type=bool, default=True, show_default=True, help="False: without guidance."),
        click.Option(["--align-points"], is_flag=True, help="Compare points after the similarity that fits best."),
        click.Option(["--lora-rank"], type=int, default=16, show_default=True, help="Of --train lora."),
        click.Option(["--lora-alpha"], type=FINITE, help="Of --train lora; default: the rank."),
        click.Option(["--ema", "average"], type=FINITE, help="Decay of averaged weights, such as 0.999."),
        click.Option(["--batch-size"], type=int, default=1, show_default=True, help="Examples a step of flow."),
        click.Option(["--noise-shift"], type=FINITE, default=5.0, show_default=True, help="Of flow's noise levels."),
        click.Option(
            ["--empty-share"], type=FINITE, default=0.1, show_default=True, help="Captions left empty in flow."
        ),
        click.Option(
            ["--size"], metavar="W*H", help="Area as width*height; default: that of --gt-video, else the model's."
        ),
        click.Option(["--sample-steps", "num_inference_steps"], type=int, help="Steps of a rollout."),
        click.Option(["--sample-shift", "flow_shift"], type=FINITE, help="Shift of a rollout's schedule."),
        click.Option(["--sample-guide-scale", "guidance_scale"], type=FINITE, help="Guidance of a rollout."),
        click.Option(["--sample-solver", "solver"], type=click.Choice(list(SOLVERS)), help="Solver of a rollout."),
        click.Option(["--dry-run"], is_flag=True, help="Check everything, read no weights."),
        click.Option(["--quiet"], is_flag=True, help="Say nothing."),
        debug_option(),
        version_option("poze", "poze-finetune"),
    ]


def run(**values: Any) -> None:
    """Check, plan, load, train."""
    from poze.task import GuidedImageToVideo
    from wan_core.training import carry_out, count_parameters, distributed_ranks

    launch = launched()
    if launch is not None:
        values["device"] = launch.device(values["device"])
        if values["seed"] is None:
            raise RequestError("several processes need one --seed, so that they agree on the order of the examples")
    is_first = launch is None or launch.rank == 0
    log = reporter(values.pop("quiet") or not is_first)
    plan = plan_of(values, world=1 if launch is None else launch.world)
    if values["dry_run"]:
        if is_first:
            click.echo(describe(plan))
        return
    if not isinstance(plan.preset.task, GuidedImageToVideo):
        log("note: without guidance, since no adapter is given or trained")
    total, trained = count_parameters(plan)
    log(f"{trained:,} weights are trained, {total - trained:,} stay as they are")
    with distributed_ranks(launch, plan.device) as ranks:
        result = carry_out(plan, listeners(plan, log), ranks)
    for path in result.outputs:
        log(str(path))
    if result.signal is not None:
        done = max(each.step for each in result.results.values())
        log(f"interrupted after step {done}; the same command goes on from there")
        raise exit_of(result.signal)


def listeners(plan: TrainingPlan, log: Callable[[str], None]) -> Listeners:
    """Sentences for everything that happens."""
    from wan_core.training import Listeners

    def step(line: dict[str, Any]) -> None:
        parts = "".join(f", {name} {line[name]:.5g}" for name in ("video", "points") if name in line)
        log(f"step {line['step']}: loss {line['loss']:.5g}{parts} ({line['seconds_per_step']:.2f} s a step)")

    count = len(plan.examples or ())
    return Listeners(log=log, encoded=lambda done: log(f"encoded {done} of {count} examples"), step=step)


def plan_of(values: Mapping[str, Any], *, world: int = 1) -> TrainingPlan:
    """The plan of parsed flags. Raises what `plan_finetuning` raises."""
    from poze.finetune import FinetuneOptions, parse_trained, plan_finetuning
    from wan_core.training import LoopSettings, TrainSettings

    sampling = {name: values[name] for name in _SAMPLING if values[name] is not None}
    if values["size"] is not None:
        sampling["width"], sampling["height"] = parse_size(values["size"])
    chosen = {item.name: values[item.name] for item in fields(FinetuneOptions) if item.name in values}
    options = FinetuneOptions(sampling=sampling, trained=parse_trained(values["train"]), **chosen)
    if options.adapter_tokens < 1:
        raise RequestError(f"--adapter-tokens must be at least 1, got {options.adapter_tokens}")
    seed = seed_of(values["seed"], options.save_dir)
    is_lora = "lora" in options.trained
    if values["lora_alpha"] is not None and not is_lora:
        raise RequestError("--lora-alpha is for --train lora; leave it out, or train a LoRA")
    settings = TrainSettings(
        rate=values["lr"],
        batch=values["batch_size"],
        weight_decay=values["weight_decay"],
        lora_rank=values["lora_rank"] if is_lora else None,
        lora_alpha=values["lora_alpha"] if is_lora else None,
        shift=values["noise_shift"],
        clean_frames=1,  # the first latent frame is the image, as in sampling
        clean_share=1.0,
        caption_dropout=values["empty_share"],
        ema=values["average"],
        held_out=0,
        checkpointing=True,
        seed=seed,
    )
    loop = LoopSettings(
        steps=values["steps"],
        warmup_steps=0,
        schedule="constant",
        clip_norm=values["max_grad_norm"],
        seed=seed,
        save_seconds=600.0,
        log_steps=values["log_every"],
        validate_steps=values["save_every"] or None,
    )
    return plan_finetuning(options, settings, loop, world=world)


def seed_of(asked: int | None, folder: Path) -> int:
    """The seed asked for, else that of the run in the folder, else a new one."""
    if asked is not None:
        return asked
    from poze.finetune import known_seed

    known = known_seed(folder)
    return secrets.randbelow(2**31) if known is None else known


def describe(plan: TrainingPlan) -> str:
    """One line: what would be trained on what."""
    what = "one picture" if plan.examples is None else f"{len(plan.examples)} examples"
    from wan_core.training import describe_trained

    objective = "flow" if plan.objective is None else "rollout"
    trained = describe_trained(plan)
    return f"{objective}: {plan.loop.steps} steps on {what}; trains {trained}; seed {plan.settings.seed}"


finetune = ErrorReporting(
    "poze-finetune",
    params=[*seed_options(), *further_options()],
    callback=run,
    help="Finetune Wan, its LoRA or the adapter: through the sampling chain, or by flow matching on a folder.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


main = main_of(finetune)
