"""``wan cache``: videos and captions to the latents and text states that training reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wan_core.cli.data import clip_options, report_left_out
from wan_core.cli.group import PLACE, ErrorReporting
from wan_core.cli.options import FINITE, ParsedType, debug_option, part_option
from wan_core.cli.progress import item_progress, progress_unless, reporter
from wan_core.files import check_place
from wan_core.media import FrameSize, parse_size
from wan_core.presets import get_preset

if TYPE_CHECKING:
    from wan_core.training import ClipRule

_FOLDER = PLACE


@click.command("cache", cls=ErrorReporting)
@click.argument("data", type=_FOLDER)
@click.argument("out", type=_FOLDER)
@click.option("--model", default="tiny-ti2v", show_default=True, help="The model to train later.")
@click.option("--ckpt-dir", "ckpt_dir", type=_FOLDER, help="Folder of its weights.")
@click.option(
    "--num-frames", "--frame-num", "num_frames", type=int, help="Frames of a clip, 4n+1.  [default: the model's]"
)
@click.option("--fps", type=FINITE, help="Frames per second of a clip.  [default: the model's]")
@click.option("--size", type=ParsedType("W*H", parse_size), help="The area of a clip.  [default: the model's]")
@click.option("--pictures", is_flag=True, help="ti2v, mi2v: single pictures too, for training with several.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the clips of --clips random:N.")
@click.option("--shard-size", type=click.IntRange(1), default=16, show_default=True, help="Examples in a file.")
@click.option("--device", help="cpu, cuda, cuda:INDEX or mps.  [default: the best there is]")
@click.option("--dtype", help="float32 or bfloat16.  [default: float32 on the CPU, else bfloat16]")
@click.option("--quiet", is_flag=True, help="No progress.")
def cache(
    data: Path,
    out: Path,
    model: str,
    ckpt_dir: Path | None,
    parts: Sequence[tuple[str, Path]],
    num_frames: int | None,
    fps: float | None,
    size: FrameSize | None,
    pictures: bool,
    clips: ClipRule | None,
    skip_bad: bool,
    seed: int,
    shard_size: int,
    device: str | None,
    dtype: str | None,
    quiet: bool,
) -> None:
    """Encode the videos and images with captions in DATA into the folder OUT, once, for 'wan train --cache OUT'.

    Called again it goes on where it stopped, and makes damaged files anew.
    """
    from wan_core.loading import RuntimeOptions, load_pipeline
    from wan_core.training import (
        Cache,
        ExampleEncoder,
        check_apart,
        clip_settings,
        data_folders,
        describe_cache,
        examples_of,
        look_into,
        lost_words,
        machine,
        reading_notes,
        write_cache,
    )

    preset = get_preset(model)
    chosen, precision = machine(device, dtype)
    settings = clip_settings(preset, num_frames=num_frames, fps=fps, size=size)
    found = look_into(data_folders([data]), clips, preset.task.example_files)
    shown = progress_unless(quiet)
    found = examples_of(found, preset, settings, where=str(data), seed=seed, skip_bad=skip_bad, progress=shown)
    examples = found.examples
    check_apart(out, [data])
    check_place(out, is_folder=True)
    runtime = RuntimeOptions(device=str(chosen), dtype=str(precision).removeprefix("torch."), parts=dict(parts))
    pipeline = load_pipeline(preset, ckpt_dir, runtime)
    for note in [*reading_notes(examples), *lost_words(pipeline, examples)]:
        reporter(quiet)(note)
    made_with = describe_cache(pipeline, settings, examples, each_image=pictures)
    encode = ExampleEncoder(pipeline, settings, each_image=pictures)
    with encode.ready(), item_progress("encode", len(examples), quiet=quiet) as report:
        write_cache(out, len(examples), lambda n: encode(examples[n]), made_with, shard_size=shard_size, report=report)
    made = Cache(out, expected=made_with)
    made.verify()
    click.echo(f"{out}: {len(made)} examples")
    report_left_out(found)


cache.params += [*clip_options(), part_option(), debug_option()]
