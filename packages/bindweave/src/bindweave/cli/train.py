"""``bindweave train``: subjects are learned, by the core's trainer under the options of ``wan train``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wan_core import RequestError
from wan_core.cli import (
    PLACE,
    ErrorReporting,
    carry_out_command,
    debug_option,
    progress_unless,
    reporter,
    run_settings,
    train_options,
)

if TYPE_CHECKING:
    from wan_core.training import TrainingPlan

HELP = (
    "Finetune BindWeave, or teach Wan2.1-I2V-14B to be one, on clips with captions, pictures of their subjects and the "
    "states that 'bindweave extract CLIPS' writes beside them: all weights, or a LoRA with --lora-rank. The same "
    "command again goes on."
)
_DATA = ("data", "clips", "skip_bad", "cache", "output", "parts", "network")
_RUN = (
    "steps", "batch_size", "accumulation", "optimizer", "lr", "weight_decay", "warmup", "schedule", "decay_share",
    "clip", "ema", "lora_rank", "lora_alpha", "lora_targets", "timesteps", "shift", "loss_weighting", "caption_dropout",
    "num_frames", "fps", "size", "held_out", "validate_every",
)  # fmt: skip
_REST = (
    "save_every", "keep", "log_every", "tensorboard", "checkpointing", "device", "dtype", "replicas", "seed", "dry_run",
    "as_json", "quiet",
)  # fmt: skip
# BindWeave's own training.
_DEFAULTS = {
    "model": None,
    "steps": 5000,
    "lr": None,
    "weight_decay": 5e-3,
    "warmup": 0,
    "schedule": "constant",
    "timesteps": "shifted",
    "shift": 5.0,
    "loss_weighting": "bell",
    "save_every": 1000,
    "checkpointing": True,
}


def _option(*names: str, help: str, **values: Any) -> click.Option:
    return click.Option(list(names), help=help, **values)


def make_command() -> click.Command:
    """The ``bindweave train`` command: options of ``wan train`` with BindWeave's defaults, and its own."""
    own = [
        _option("--dit", type=PLACE, help="BindWeave's weights, or plain Wan's; the same as --part dit=PLACE."),
        _option("--connector", type=PLACE, help="A connector to go on from; the same as --part connector=PLACE."),
        _option("--validation-samples", type=PLACE, help="A sample JSON with states: made at each validation."),
        _option("--base-img-dir", type=PLACE, help="Folder of its pictures; default: here."),
    ]
    return ErrorReporting(
        "train",
        params=[
            *train_options("config", "model", "ckpt_dir", **_DEFAULTS),
            *own,
            *train_options(*_DATA, *_RUN, *_REST, **_DEFAULTS),
            debug_option(),
        ],
        callback=run,
        help=HELP,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run(**values: Any) -> None:
    """Check, plan and train."""
    if values["model"] is None:
        is_tiny = values["ckpt_dir"] is None and values["dit"] is None
        values["model"] = "tiny-bindweave" if is_tiny else "bindweave-14B"
        if is_tiny:
            reporter(values["quiet"])("note: no --ckpt-dir, so the bundled tiny BindWeave is trained")
    carry_out_command(values, plan_of)


def plan_of(values: Mapping[str, Any], *, world: int = 1) -> TrainingPlan:
    """The checked plan of parsed options. Raises what `plan_subject_training` raises."""
    from bindweave.training_plan import ValidationSamples, plan_subject_training

    named = {"dit": values["dit"], "connector": values["connector"]}
    parts = (*values["parts"], *((name, str(place)) for name, place in named.items() if place is not None))
    options, settings, loop = run_settings({**values, "parts": parts, "validation_prompt": ()}, world=world)
    root, file = values["base_img_dir"], values["validation_samples"]
    if file is None and root is not None:
        raise RequestError("--base-img-dir belongs to --validation-samples; give both, or none")
    samples = None if file is None else ValidationSamples(path=file, image_root=root or Path())
    return plan_subject_training(options, settings, loop, samples, progress=progress_unless(values["quiet"]))


train = make_command()
