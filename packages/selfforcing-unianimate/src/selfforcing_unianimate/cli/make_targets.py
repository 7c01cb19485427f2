"""``sfu make-targets``: the teacher's videos as latents and states, for a student to learn from."""

import json
from collections.abc import Mapping
from typing import Any

import click

from selfforcing_unianimate.cli.merge_lora import refuse_twice
from selfforcing_unianimate.cli.steps import Steps
from selfforcing_unianimate.cli.teacher import pose_weights
from selfforcing_unianimate.teacher import PoseRequest, PoseToVideo
from selfforcing_unianimate.teacher_preset import UNIANIMATE_14B
from wan_core import RequestError, cli
from wan_core.cli import PLACE, build_command, main_of, progress_unless, reporter, version_option
from wan_core.files import check_place, gigabytes, plain_text
from wan_core.presets import Preset, get_preset

HELP = (
    "Let the teacher make the videos of a list and keep what a student learns from: finished latents, the latents "
    "before the steps that the student will take, text, picture and poses. LIST is a .csv, .jsonl or .json with the "
    "columns prompt, image, pose and, if wanted, seed; OUT a new folder, or one that goes on where it stopped. Several "
    "processes may work in it: --shard 1/4 and so on, or torchrun."
)
_LEFT_OUT = ("prompt", "prompt_file", "num_videos", "image", "pose", "side_by_side", "output", "no_metadata", "seed")
_STORED = ("float32", "bfloat16")


def run(preset: Preset, values: Mapping[str, Any]) -> None:
    """Check everything, then make the targets, or say what would be made."""
    from selfforcing_unianimate.distillation.target_making import TargetOptions, make_targets, plan_targets
    from selfforcing_unianimate.distillation.targets import Targets
    from selfforcing_unianimate.distillation.wanted import read_wanted
    from wan_core import loading, runtime, training

    log, folder = reporter(values["quiet"]), values["out"]
    preset = teacher_of(values["model"])
    wanted = read_wanted(values["table"], first_seed=values["seed"], has_poses=values["pose_mode"] != "off")
    launch = runtime.launched()
    part = cli.share_of_work(values["shard"])
    values = {**values, "device": values["device"] if launch is None else launch.device(values["device"])}
    check_place(folder, is_folder=True)
    if values["ckpt_dir"] is not None:
        refuse_twice(values["ckpt_dir"], [lora.path for lora in values["loras"]])
    found = pose_weights(values)
    values = values if found is None else {**values, "pose_weights_path": found}
    chosen = cli.runtime_of(preset, values)
    pipeline = loading.load_pipeline(preset, values["ckpt_dir"], chosen)
    options = TargetOptions(
        steps=values["student_steps"],
        shift=values["student_shift"],
        stored=runtime.resolve_dtype(values["stored"], runtime.resolve_device("cpu")),
        shared=_shared(values),
    )
    shown = progress_unless(values["quiet"])
    plan = plan_targets(pipeline, wanted, options, chosen.loras, shown)
    training.check_cache(folder, len(wanted), plan.settings, shard_size=values["shard_size"])
    for note in pipeline.notes:
        log(note)
    mine = sum(map(len, training.shards_of(len(wanted), values["shard_size"], part)))
    if values["dry_run"]:
        _show(plan, mine, values)
        return
    make_targets(plan, folder, shard_size=values["shard_size"], part=part, progress=shown)
    log(f"{plain_text(folder)}: {mine} of {len(wanted)} targets")
    if part[1] == 1:
        Targets(folder, expected=plan.settings).cache.verify()


def teacher_of(name: str) -> Preset:
    """The preset of a teacher. Raises RequestError for another model."""
    preset = get_preset(name)
    if not isinstance(preset.task, PoseToVideo):
        raise RequestError(f"{preset.name} is no teacher that moves a picture by poses, as {UNIANIMATE_14B.name} is")
    return preset


def _shared(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that every request has."""
    names = [name for name in PoseRequest.__dataclass_fields__ if name in values and name != "seed"]
    size = values["size"]
    sides = {} if size is None else {"width": size[0], "height": size[1]}
    return {**{name: values[name] for name in names}, **sides}


def _show(plan: Any, mine: int, values: Mapping[str, Any]) -> None:
    sizes, count = plan.example_bytes(), len(plan.requests)
    rows = {
        "model": plan.pipeline.preset.name,
        "examples": count,
        "of this process": mine,
        "shards": -(-count // values["shard_size"]),
        "evaluations": plan.evaluations() * mine,
        "timesteps": plan.settings["timesteps"],
        "states before": plan.settings["seen"],
        "bytes of one": sizes,
        "in all": gigabytes(sum(sizes.values()) * count),
        "output": str(values["out"]),
    }
    if values["as_json"]:
        click.echo(json.dumps(rows, indent=2))
        return
    for name, value in rows.items():
        click.echo(f"{name:<20} {value}")


def make_command() -> click.Command:
    """The ``sfu make-targets`` command: the teacher's options but for what the list says."""
    command = build_command(UNIANIMATE_14B, name="make-targets", run=run)
    command.help = HELP
    kept = [param for param in command.params if param.name not in _LEFT_OUT]
    command.params = [param for param in kept if "prompt_extend" not in str(param.name)]  # the list has the prompts
    command.params[:0] = [
        click.Argument(["table"], metavar="LIST", type=PLACE),
        click.Argument(["out"], metavar="OUT", type=PLACE),
    ]
    command.params += [
        click.Option(["--model"], default=UNIANIMATE_14B.name, show_default=True, help="The teacher."),
        click.Option(["--seed"], type=click.IntRange(0), default=0, show_default=True, help="Of the first line."),
        click.Option(
            ["--student-steps"],
            type=Steps(),
            default="1000,750,500,250",
            show_default=True,
            help="The student's times before its shift.",
        ),
        click.Option(["--student-shift"], type=cli.FINITE, default=5.0, show_default=True, help="The student's shift."),
        click.Option(
            ["--stored"], type=click.Choice(_STORED), default="float32", show_default=True, help="Latents in the files."
        ),
        click.Option(["--shard"], type=cli.SHARE, help="Make a part of the shards, such as 1/4.  [default: all]"),
        click.Option(
            ["--shard-size"], type=click.IntRange(1), default=4, show_default=True, help="Examples in a file."
        ),
        version_option("selfforcing-unianimate", "sfu make-targets"),
    ]
    return command


make_targets = make_command()
main = main_of(make_targets)
