"""``sfu infer``: causal video, block by block; ``wan generate sfu-1.3B`` takes the same options but ``--stream``."""

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from selfforcing_unianimate.presets import SFU_1_3B, TINY_SFU
from wan_core import RequestError, cli, media
from wan_core.cli import build_command, reporter
from wan_core.presets import Preset

if TYPE_CHECKING:
    from torch import Tensor

HELP = (
    "Make a video block by block, of any length. Wan2.1 1.3B in --ckpt-dir runs with the weights of Self-Forcing as "
    "--part dit=FILE; without --ckpt-dir the bundled tiny network runs, which knows stick persons. --stream hands out "
    "frames as they are made."
)


def run(preset: Preset, values: Mapping[str, Any]) -> None:
    """Run the 1.3B model when its weights are named, else the tiny one; frames go to a file or a stream."""
    log, target = reporter(values["quiet"]), values["stream"]
    if values["ckpt_dir"] is None and not values["dry_run"]:
        log("note: no --ckpt-dir, so the bundled tiny network makes this video: a stick person whom --pose moves")
        if values["pose"] is None:
            log("note: without --pose it draws little more than parts of a person")
        preset = TINY_SFU
    elif values["ckpt_dir"] is None:
        log("note: this is the plan of sfu-1.3B; without --ckpt-dir and --dry-run the bundled tiny network runs")
    elif "dit" not in dict(values["parts"]):
        log(
            f"note: without --part dit=FILE the network in {values['ckpt_dir']} makes the video; Wan2.1's own is not "
            "causal, Self-Forcing's is: 'sfu download --only student'"
        )
    if target is not None:
        if values["num_videos"] > 1 or values["prompt_file"] is not None:
            raise RequestError("a stream is one video; give one --prompt and no --num-videos")
        if values["output"] is not None:
            raise RequestError("give --stream or --output, not both")
        if target == "-" and values["as_json"]:
            raise RequestError("standard output takes the frames of --stream - or --json, not both")
        media.check_stream(target)
        values = {**values, "output": Path(target)}

    def write(chunks: "Iterable[Tensor]", path: Path, **options: Any) -> Path:
        frames = timed(chunks, log)
        return media.write_video(frames, path, **options) if target is None else streamed(frames, target, log, options)

    def check(path: Path, **facts: Any) -> object:
        is_file = target is None or not (target == "-" or media.is_pipe(target))
        return media.check_output(path, **facts) if is_file else path

    cli.run_generate(preset, values, check=check, write=write)


def streamed(frames: "Iterator[Tensor]", target: str, log: Any, options: Mapping[str, Any]) -> Path:
    """Hand frames out as they come, and say in which form."""
    kind = "raw RGB frames" if target == "-" else "H.264 in mp4 fragments"
    log(f"streaming {kind} at {options['fps']} frames a second to {'standard output' if target == '-' else target}")
    try:
        return media.write_stream(frames, target, **options)
    except KeyboardInterrupt as interrupt:
        interrupt.args = (f"what was streamed to {media.plain_text(target)} stays and can be played",)
        raise


def timed(chunks: "Iterable[Tensor]", log: Any) -> "Iterator[Tensor]":
    """The same chunks; tells how long the first took, reading of weights included, and how fast the others came."""
    started, first, count = time.monotonic(), 0.0, 0
    for chunk in chunks:
        if not first:
            first = time.monotonic()
            log(f"first frame of {chunk.shape[3]}x{chunk.shape[2]} after {first - started:.1f} s")
        else:
            count += chunk.shape[1]
        yield chunk
    if count:
        log(f"then {count / (time.monotonic() - first):.1f} frames a second")


def make_command() -> click.Command:
    """The ``infer`` command: the shared options, those of causal video, and ``--stream``."""
    command = build_command(SFU_1_3B, name="infer", run=run)
    command.help = HELP
    command.params.append(
        click.Option(
            ["--stream"],
            metavar="TARGET",
            help="Write frames as they are made: to an .mp4 or a pipe in fragments, to - as raw RGB.",
        )
    )
    return command


infer = make_command()
