"""``bindweave infer``: subject-to-video; ``wan generate bindweave-14B`` takes the options of a single video too."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bindweave.presets import BINDWEAVE_14B, TINY_BINDWEAVE
from wan_core import RequestError, cli, media
from wan_core.cli import PLACE, SHARE, build_command, processes_of, reporter, share_of_work
from wan_core.presets import Preset

if TYPE_CHECKING:
    from bindweave.batch import SampleBatch

HELP = (
    "Make a video in which the subjects of one to four pictures appear. --ckpt-dir is Wan2.1-I2V-14B-720P (the "
    "official folder or diffusers'), --dit BindWeave's weights: the release, MindSpeed-MM's folder, or native. Many "
    "videos come from a sample JSON, by --samples or by the original's inference_model_s2v.json as --config: those "
    "that are there, made of the same things, are not made again. Without --ckpt-dir the bundled tiny model runs."
)


def run(preset: Preset, values: Mapping[str, Any]) -> None:
    """One video from flags, or those of a sample file."""
    log = reporter(values["quiet"] or not processes_of(values).is_first)
    values, batch = prepared(values, log)
    preset = preset_for(values, log)
    if batch is None:
        cli.run_generate(preset, values)
    else:
        make_samples(preset, values, batch)


def preset_for(values: Mapping[str, Any], log: Callable[[str], None]) -> Preset:
    """The 14B model where weights of it are named, else the bundled tiny one."""
    if values["ckpt_dir"] is not None or values["parts"]:
        return BINDWEAVE_14B
    log("note: no --ckpt-dir, so the bundled tiny-bindweave makes the video; it knows plain shapes alone")
    return TINY_BINDWEAVE


def make_samples(preset: Preset, values: Mapping[str, Any], batch: "SampleBatch") -> None:
    """The videos of a batch that are not there, each written at once. Raises RequestError where samples fail."""

    def write(chunks: Any, path: Path, **options: Any) -> Path:
        written = media.write_video(chunks, path, **options)
        batch.write_manifest()
        return written

    cli.run_generate(preset, values, plan=batch.plan, write=write, is_made=batch.is_made, is_share=True)
    if not values["dry_run"]:
        batch.write_manifest()
    batch.conclude()


def prepared(values: Mapping[str, Any], log: Callable[[str], None]) -> tuple[dict[str, Any], "SampleBatch | None"]:
    """The options with those of ``--config`` where a flag says nothing, and the samples, if they come from a file."""
    values = dict(values)
    places = {name: values.pop(name) for name in ("samples", "base_img_dir", "output_dir")}
    config, dit, shard = values.pop("config"), values.pop("dit"), values.pop("shard")
    parts = {} if config is None else _take_config(config, values, places, log)
    values["parts"] = tuple({**parts, **dict(values["parts"]), **({"dit": str(dit)} if dit else {})}.items())
    if places["samples"] is None:
        if any(places.values()) or shard is not None:
            raise RequestError(
                "--base-img-dir, --output-dir and --shard belong to --samples; name pictures and --output alone"
            )
        return values, None
    from bindweave.batch import MANIFEST, SampleBatch, without_prompt
    from bindweave.ledger import Share
    from bindweave.samples import read_samples

    batch = SampleBatch(
        read_samples(places["samples"]),
        places["base_img_dir"] or Path(),
        places["output_dir"] or Path("outputs"),
        log,
        share=Share(*share_of_work(shard, processes_of(values))),
        any_seed=values["seed"] < 0,
    )
    media.check_own_files([batch.output_dir / MANIFEST], [path for path in (places["samples"], config) if path])
    return without_prompt(values), batch


def _take_config(
    config: Path, values: dict[str, Any], places: dict[str, Any], log: Callable[[str], None]
) -> dict[str, str]:
    """Fill in from the original's config what no flag says; returns where it has the parts of the model."""
    from bindweave.inference_config import read_inference_config

    found = read_inference_config(config)
    for note in found.notes:
        log(f"note: {note}")
    values.update({name: value for name, value in found.values.items() if values[name] is None})
    places.update({name: place or getattr(found, name) for name, place in places.items()})
    if values["ckpt_dir"] is None and "vae" in found.parts:  # a config that names all parts is enough
        values["ckpt_dir"] = found.parts["vae"].parent
    return {name: str(place) for name, place in found.parts.items()}


def make_command(name: str, run: Callable[[Preset, Mapping[str, Any]], None]) -> click.Command:
    """A command that makes videos: the shared options, those of the task, and those of a batch."""
    command = build_command(BINDWEAVE_14B, name=name, run=run)
    command.help = HELP
    command.params += [
        click.Option(["--dit"], type=PLACE, help="BindWeave's weights; the same as --part dit=PLACE."),
        click.Option(["--config"], type=PLACE, help="The original's inference_model_s2v.json; flags go before it."),
        click.Option(["--samples"], type=PLACE, help="A sample JSON: a video for each sample."),
        click.Option(["--base-img-dir"], type=PLACE, help="Folder of the pictures of samples; default: here."),
        click.Option(["--output-dir"], type=PLACE, help="Where ID.mp4 and the manifest go; default: outputs."),
        click.Option(["--shard"], type=SHARE, help="Every N-th sample from the I-th on. Default: torchrun's."),
    ]
    return command


infer = make_command("infer", run)
