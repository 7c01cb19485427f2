"""``bindweave infer``: subject-to-video; ``wan generate bindweave-14B`` takes the options of a single video too."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from bindweave.presets import BINDWEAVE_14B
from wan_core import RequestError, cli, media
from wan_core.cli import PLACE, build_command, reporter
from wan_core.presets import Preset

HELP = (
    "Make a video in which the subjects of one to four pictures appear. --ckpt-dir is Wan2.1-I2V-14B-720P (the "
    "official folder or diffusers'), --dit BindWeave's weights: the release, MindSpeed-MM's folder, or native. Many "
    "videos come from a sample JSON, by --samples or by the original's inference_model_s2v.json as --config: those "
    "that are there already are not made again."
)


def run(preset: Preset, values: Mapping[str, Any]) -> None:
    """One video from flags, or those of a sample file."""
    log = reporter(values["quiet"])
    values, batch = prepared(values, log)
    if batch is None:
        cli.run_generate(preset, values)
        return
    from bindweave.batch import SampleBatch

    made = SampleBatch(*batch, log)

    def write(chunks: Any, path: Path, **options: Any) -> Path:
        written = media.write_video(chunks, path, **options)
        made.write_manifest()
        return written

    jobs = made.plan(preset, values, media.check_output)
    if jobs:
        cli.run_generate(preset, values, plan=lambda *_: jobs, write=write)
    elif not values["dry_run"]:
        made.write_manifest()
    made.conclude()


def prepared(values: Mapping[str, Any], log: Any) -> tuple[dict[str, Any], tuple[Path, Path, Path] | None]:
    """The options with those of ``--config`` where a flag says nothing, and what a batch is made of, if it is one."""
    values = dict(values)
    places = {name: values.pop(name) for name in ("samples", "base_img_dir", "output_dir")}
    config, dit = values.pop("config"), values.pop("dit")
    parts: dict[str, str] = {}
    if config is not None:
        from bindweave.inference_config import read_inference_config

        found = read_inference_config(config)
        for note in found.notes:
            log(f"note: {note}")
        values.update({name: value for name, value in found.values.items() if values[name] is None})
        places = {name: place or getattr(found, name) for name, place in places.items()}
        parts.update({name: str(place) for name, place in found.parts.items()})
    values["parts"] = tuple({**parts, **dict(values["parts"]), **({"dit": str(dit)} if dit else {})}.items())
    if places["samples"] is not None:
        from bindweave.batch import without_prompt

        folders = places["base_img_dir"] or Path(), places["output_dir"] or Path("outputs")
        return without_prompt(values), (places["samples"], *folders)
    if any(places.values()):
        raise RequestError("--base-img-dir and --output-dir belong to --samples; name pictures and --output alone")
    return values, None


def make_command() -> click.Command:
    """The ``infer`` command: the shared options, those of the task, and those of a batch."""
    command = build_command(BINDWEAVE_14B, name="infer", run=run)
    command.help = HELP
    command.params += [
        click.Option(["--dit"], type=PLACE, help="BindWeave's weights; the same as --part dit=PLACE."),
        click.Option(["--config"], type=PLACE, help="The original's inference_model_s2v.json; flags go before it."),
        click.Option(["--samples"], type=PLACE, help="A sample JSON: a video for each sample."),
        click.Option(["--base-img-dir"], type=PLACE, help="Folder of the pictures of samples; default: here."),
        click.Option(["--output-dir"], type=PLACE, help="Where ID.mp4 and the manifest go; default: outputs."),
    ]
    return command


infer = make_command()
