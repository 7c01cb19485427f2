"""The options that generation commands share, in the original's spelling and in ours."""

import dataclasses
import typing
from pathlib import Path
from types import UnionType
from typing import Any

import click

from wan_core.cli.group import DEBUG_KEY
from wan_core.errors import RequestError
from wan_core.media import parse_size
from wan_core.sampling import SOLVERS
from wan_core.tasks import Experts, GenerationRequest


class SizeType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """``1280*720`` or ``1280x720``: width and height in pixels."""

    name = "W*H"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        try:
            size: tuple[int, int] = value if isinstance(value, tuple) else parse_size(value)
        except RequestError as error:
            self.fail(str(error), param, ctx)
        return size


class GuidanceType(click.ParamType):  # type: ignore[type-arg]
    """One number, or ``LOW,HIGH`` for the low-noise and the high-noise expert (the original's order)."""

    name = "X|LOW,HIGH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | Experts[float]:
        if isinstance(value, float | Experts):
            return value
        try:
            numbers = [float(part) for part in str(value).split(",")]
        except ValueError:
            numbers = []
        if len(numbers) == 1:
            return numbers[0]
        if len(numbers) == 2:
            return Experts(low=numbers[0], high=numbers[1])
        raise click.BadParameter(f"{value!r} is neither one number nor LOW,HIGH", ctx, param)


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[DEBUG_KEY] = True


def debug_option() -> click.Option:
    """``--debug``: show the traceback of an error."""
    return click.Option(
        ["--debug"], is_flag=True, is_eager=True, expose_value=False, callback=_set_debug, help="Show tracebacks."
    )


def request_options() -> list[click.Option]:
    """What to make."""
    return [
        click.Option(["--prompt"], help="What the video shows."),
        click.Option(["--negative-prompt", "--negative_prompt"], help="What it must not show; '' for nothing."),
        click.Option(
            ["--prompt-file", "--prompt_file"],
            type=click.Path(path_type=Path),
            help="A text file with one prompt a line; a video each.",
        ),
        click.Option(["--size"], type=SizeType(), help="Width*height in pixels; for pictures the area."),
        click.Option(["--frame-num", "--frame_num", "--num-frames", "num_frames"], type=int, help="Frames, 4n+1."),
        click.Option(["--fps"], type=int, help="Frames per second of the file."),
        click.Option(["--sample-steps", "--sample_steps", "num_inference_steps"], type=int, help="Sampling steps."),
        click.Option(["--sample-shift", "--sample_shift", "flow_shift"], type=float, help="Shift of the schedule."),
        click.Option(
            ["--sample-solver", "--sample_solver", "solver"], type=click.Choice(list(SOLVERS)), help="How to integrate."
        ),
        click.Option(
            ["--sample-guide-scale", "--sample_guide_scale", "guidance_scale"],
            type=GuidanceType(),
            help="Classifier-free guidance; 1 turns it off.",
        ),
        click.Option(
            ["--base-seed", "--base_seed", "--seed", "seed"], type=int, default=-1, help="-1 (default) picks one."
        ),
        click.Option(
            ["--num-videos", "--num_videos"],
            type=click.IntRange(1, 10_000),
            default=1,
            help="Videos per prompt, with consecutive seeds.",
        ),
    ]


def runtime_options() -> list[click.Option]:
    """Where and how it computes."""
    return [
        click.Option(["--ckpt-dir", "--ckpt_dir"], type=click.Path(path_type=Path), help="Folder of the weights."),
        click.Option(["--device"], help="cpu, cuda, cuda:INDEX or mps; default: the best there is."),
        click.Option(["--dtype"], help="float32, bfloat16 or float16; default: float32 on the CPU, else bfloat16."),
        click.Option(
            ["--offload-model", "--offload_model", "offload"],
            type=bool,
            default=None,
            help="True: each part leaves the device after use (default). False: all stay.",
        ),
        click.Option(["--t5-cpu", "--t5_cpu", "t5_cpu"], is_flag=True, help="Run the text encoder on the CPU."),
        click.Option(
            ["--convert-model-dtype", "--convert_model_dtype", "convert_model_dtype"],
            is_flag=True,
            help="The original's flag for 16-bit weights; ours are 16-bit wherever --dtype is.",
        ),
        click.Option(
            ["--cfg"],
            type=click.Choice(["sequential", "batched"]),
            default="sequential",
            help="Guidance branches one after the other, or as a batch of two.",
        ),
        click.Option(["--attention"], default="auto", help="Attention backend: auto, sdpa or a flash-attn version."),
        click.Option(
            ["--noise-device", "--noise_device"], default="cpu", help="Where noise is drawn; the original: cuda."
        ),
        click.Option(
            ["--mmap/--no-mmap"], default=None, help="Map weight files or read them; default: by file system."
        ),
    ]


def output_options() -> list[click.Option]:
    """What comes out."""
    return [
        click.Option(
            ["--save-file", "--save_file", "--output", "-o", "output"],
            type=click.Path(path_type=Path),
            help=".mp4, .gif, .webp or frames/%04d.png; default: a name made of model, size, prompt and seed.",
        ),
        click.Option(["--no-metadata"], is_flag=True, help="Do not record the settings in the file."),
        click.Option(["--dry-run"], is_flag=True, help="Check everything and print the plan; read no weights."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON."),
        click.Option(["--quiet"], is_flag=True, help="No progress."),
        debug_option(),
    ]


def task_options(request_type: type[GenerationRequest]) -> list[click.Option]:
    """The options of a task's own request fields: those whose metadata names an ``option``."""
    hints = typing.get_type_hints(request_type)
    return [
        click.Option(
            [*field.metadata["option"], field.name],
            type=_click_type(hints[field.name]),
            default=None,
            help=field.metadata["help"],
        )
        for field in dataclasses.fields(request_type)
        if "option" in field.metadata
    ]


def _click_type(hint: Any) -> Any:
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    kind = kinds[0] if isinstance(hint, UnionType) and len(kinds) == 1 else hint
    if kind is Path:
        return click.Path(path_type=Path)
    return click.types.convert_type(kind)
