"""``sfu distill``: a causal student learns from a teacher's targets and scores, on the core's trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from selfforcing_unianimate.cli.steps import Steps
from selfforcing_unianimate.distillation.settings import SCORE_TIMES, STAGES, DistillSettings
from selfforcing_unianimate.pose_weights import POSE_PART
from wan_core import RequestError
from wan_core.cli import (
    FINITE,
    PLACE,
    ErrorReporting,
    carry_out_command,
    debug_option,
    reporter,
    run_settings,
    train_options,
    version_option,
)

if TYPE_CHECKING:
    from wan_core.training import TrainingPlan

HELP = (
    "Distil a causal student from what 'sfu make-targets' wrote: regression on the teacher's paths (ode), teacher "
    "forcing, or the student's own videos under scores (dmd, sid) or a critic (gan). The same command again goes on."
)
_RUN = (
    "batch_size",
    "accumulation",
    "optimizer",
    "lr",
    "weight_decay",
    "warmup",
    "schedule",
    "decay_share",
    "clip",
    "ema",
)
_REST = (
    "validate_every", "validation_prompt", "save_every", "keep", "log_every", "tensorboard", "checkpointing", "device",
    "dtype", "replicas", "seed", "dry_run", "as_json", "quiet",
)  # fmt: skip


def _option(*names: str, help: str, **values: Any) -> click.Option:
    return click.Option(list(names), help=help, show_default=values.get("default") is not None, **values)


_BEGIN = [
    _option("--stage", type=click.Choice(STAGES), help="What the student learns by. Needed."),
    _option("--targets", type=PLACE, help="Folder that 'sfu make-targets' wrote. Needed."),
    _option("--teacher", type=PLACE, help="dmd, sid: weights of the network whose scores are real: a file or folder."),
    _option(
        "--critic", type=PLACE, help="dmd, sid, gan: weights that the critic begins with.  [default: the student's]"
    ),
    _option(
        "--pose-weights-path",
        type=PLACE,
        help="UniAnimate's pose encoder, for targets with poses: a .ckpt or .safetensors.",
    ),
    _option("--model", help="The student.  [default: sfu-1.3B; without --ckpt-dir tiny-sfu]"),
]
_OWN = [
    _option("--critic-lr", type=FINITE, help="Learning rate of the critic.  [default: 4e-7; sid 2e-6]"),
    _option("--critic-steps", type=int, default=5, help="Steps of the critic for each of the student."),
    _option("--ema-start", type=int, default=200, help="The step from which weights are averaged."),
    _option(
        "--denoising-steps", type=Steps(), default="1000,750,500,250", help="The student's steps, before the shift."
    ),
    _option("--warp/--no-warp", default=True, help="Shift those steps too, as the noise levels are."),
    _option("--shift", "flow_shift", type=FINITE, default=5.0, help="Shift of the noise levels."),
    _option(
        "--guidance-scale", type=FINITE, default=3.0, help="Of the teacher's scores; counts from 0, so 3 is 4 of infer."
    ),
    _option("--fake-guidance-scale", type=FINITE, default=0.0, help="Of the critic's scores."),
    _option("--pose-dropout", type=FINITE, default=0.05, help="Share of the samples without poses."),
    _option("--pose-in-negative", is_flag=True, help="The negative branch of the teacher sees the poses, too."),
    _option("--context-noise", type=FINITE, default=0.0, help="Timestep at which a finished block is remembered."),
    _option(
        "--same-step/--step-per-block", default=True, help="All blocks of a video end at one step, or each at its own."
    ),
    _option("--last-step-only", is_flag=True, help="Videos always run to the last step."),
    _option("--score-times", type=click.Choice(SCORE_TIMES), default="any", help="Timesteps of the scores."),
    _option("--sid-alpha", type=FINITE, default=1.0, help="Of SiD's loss."),
    _option("--clean-history/--noisy-history", default=True, help="Teacher forcing, or diffusion forcing."),
    _option("--history-noise", type=int, default=0, help="Noise in the clean history, up to so many of 1000 levels."),
    _option("--generator-weight", type=FINITE, default=0.01, help="gan: weight of the student's loss."),
    _option("--critic-weight", type=FINITE, default=0.01, help="gan: weight of the critic's loss."),
    _option("--relativistic", is_flag=True, help="gan: compare real and made videos in pairs."),
    _option("--r1-weight", type=FINITE, default=0.0, help="gan: penalty on slopes at real videos."),
    _option("--r2-weight", type=FINITE, default=0.0, help="gan: the same at the student's."),
    _option("--r-sigma", type=FINITE, default=0.01, help="gan: size of the steps that find slopes."),
]


def make_command() -> click.Command:
    """The ``sfu distill`` command: options of ``wan train`` under the same names, and those of the stages."""
    defaults = {
        "steps": 600,
        "lr": 2e-6,
        "weight_decay": 0.01,
        "warmup": 0,
        "schedule": "constant",
        "clip": 10.0,
        "ema": 0.99,
    }
    return ErrorReporting(
        "distill",
        params=[
            *train_options("config"),
            *_BEGIN,
            *train_options("ckpt_dir", "output", "parts", "steps", *_RUN, **defaults),
            *_OWN,
            *train_options(*_REST),
            debug_option(),
            version_option("selfforcing-unianimate", "sfu distill"),
        ],
        callback=run,
        help=HELP,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run(**values: Any) -> None:
    """Check, plan, train, and look at what was written."""
    for name in ("stage", "targets"):
        if values[name] is None:
            raise RequestError(f"--{name} is needed; see 'sfu distill --help'")
    log = reporter(values["quiet"])
    if values["model"] is None:
        values["model"] = "tiny-sfu" if values["ckpt_dir"] is None else "sfu-1.3B"
        if values["ckpt_dir"] is None:
            log("note: no --ckpt-dir, so the bundled tiny network is the student")
    plan = carry_out_command(values, plan_of)
    if plan is not None:
        from selfforcing_unianimate.distillation.planning import check_student

        student = plan.options.output / plan.options.names.model / plan.preset.part("dit").place
        count = check_student(student, plan.pipeline.components.configs["dit"])
        log(f"{student} is a plain student: {count} tensors, all finite, no LoRA")


def plan_of(values: Mapping[str, Any], *, world: int = 1) -> TrainingPlan:
    """The checked plan of parsed options. Raises what `plan_distillation` raises."""
    from selfforcing_unianimate.distillation.planning import Sources, plan_distillation

    distill = DistillSettings(**{field.name: values[field.name] for field in fields(DistillSettings)})
    parts = values["parts"]
    if values["pose_weights_path"] is not None:
        parts = (*parts, (POSE_PART.name, str(values["pose_weights_path"])))
    options, settings, loop = run_settings(
        {**values, "parts": parts, "held_out": 0, "ema": values["ema"] or None}, world=world
    )
    sources = Sources(targets=values["targets"], teacher=values["teacher"], critic=values["critic"])
    return plan_distillation(options, settings, loop, distill, sources)


distill = make_command()
