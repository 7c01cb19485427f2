"""``sfu teacher``: the bidirectional 14B model under poses. ``wan generate unianimate-14B`` takes the same options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from selfforcing_unianimate.cli.merge_lora import record_of, refuse_twice
from selfforcing_unianimate.pose_weights import POSE_ENCODER, POSE_PART
from selfforcing_unianimate.presets import TINY_UNIANIMATE
from selfforcing_unianimate.teacher_preset import UNIANIMATE_14B
from wan_core import cli
from wan_core.cli import build_command, main_of, reporter, version_option
from wan_core.presets import Preset

DEFAULT_PROMPT = "a person is dancing"

HELP = (
    "Move who is in a picture by poses, with Wan2.1 I2V-14B and UniAnimate: 50 steps of two evaluations. UniAnimate's "
    ".ckpt is given as --lora, for the LoRA in it and for its pose encoder, or --ckpt-dir is what 'sfu merge-lora' "
    "wrote. Videos longer than 81 frames are made in overlapping windows. Without any weights the bundled tiny teacher "
    "of stick persons runs."
)


def run(preset: Preset, values: Mapping[str, Any]) -> None:
    """Find the pose encoder and the LoRA, then make the videos."""
    log = reporter(values["quiet"])
    if not (values["dry_run"] or values["ckpt_dir"] or values["loras"] or values["parts"]):
        log("note: no --ckpt-dir, so the bundled tiny teacher makes this video: a stick person whom --pose moves")
        cli.run_generate(TINY_UNIANIMATE, values)
        return
    found = pose_weights(values)
    if found is not None:
        log(f"note: the pose encoder is that of {found}")
    if values["ckpt_dir"] is not None and not values["loras"] and not is_merged(values["ckpt_dir"]):
        log("note: no --lora is given, and nothing says that UniAnimate's is merged: without it poses have no meaning")
    if values["ckpt_dir"] is not None:
        refuse_twice(values["ckpt_dir"], [lora.path for lora in values["loras"]])
    cli.run_generate(preset, values if found is None else {**values, "pose_weights_path": found})


def pose_weights(values: Mapping[str, Any]) -> Path | None:
    """A LoRA file that has the pose encoder beside it, where no option names another place and the folder has none."""
    folder, named = values["ckpt_dir"], dict(values["parts"])
    if values["pose_weights_path"] is not None or POSE_PART.name in named or values["pose_mode"] == "off":
        return None
    from wan_core.checkpoints import CheckpointLayout, find_weights

    if folder is not None and (not folder.is_dir() or CheckpointLayout(folder).has(POSE_PART)):
        return None
    return next((lora.path for lora in values["loras"] if find_weights(lora.path).of(POSE_ENCODER.name)), None)


def is_merged(folder: Path) -> bool:
    """Whether a folder has the record of a merge."""
    return record_of(folder).is_file()


def make_command() -> click.Command:
    """The ``sfu teacher`` command."""
    command = build_command(UNIANIMATE_14B, name="teacher", run=run)
    command.help = HELP
    for param in command.params:
        if param.name == "prompt":
            param.default = DEFAULT_PROMPT
    command.params.append(version_option("selfforcing-unianimate", "sfu teacher"))
    return command


teacher = make_command()
main = main_of(teacher)
