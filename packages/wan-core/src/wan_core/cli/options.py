"""The options that generation commands share, in the original's spelling and in ours."""

import dataclasses
import math
import sys
import typing
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace, UnionType
from typing import TYPE_CHECKING, Any

import click

from wan_core.cli.group import DEBUG_KEY, PLACE, ErrorReporting, num_values, spelled
from wan_core.errors import RequestError
from wan_core.media import parse_size
from wan_core.sampling import SOLVERS
from wan_core.tasks import Experts, GenerationRequest

if TYPE_CHECKING:
    from wan_core.runtime import Processes


class ParsedType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """Text read by one of our own functions; its ``RequestError`` becomes click's message about the option."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.parse(value) if isinstance(value, str) else value
        except RequestError as error:
            self.fail(str(error), param, ctx)


def parse_share(text: str) -> tuple[int, int]:
    """``1/4`` as (0, 4): which share of the work, counted from 0, and of how many. Raises RequestError."""
    number, _, count = text.strip().partition("/")
    is_share = all(part.isascii() and part.isdecimal() and len(part) < 7 for part in (number, count))
    if not is_share or not 1 <= int(number) <= int(count):
        raise RequestError(f"a share of the work is I/N with I from 1 to N, such as 1/4, got {text[:20]!r}")
    return int(number) - 1, int(count)


def parse_offload(text: str) -> bool | str:
    """``blocks``, or a boolean as click reads it. Raises RequestError."""
    if text.strip().lower() == "blocks":
        return "blocks"
    try:
        return bool(click.BOOL.convert(text, None, None))
    except click.BadParameter as error:
        raise RequestError(f"it is True, False or blocks, got {text[:20]!r}") from error


SHARE = ParsedType("I/N", parse_share)


def share_of_work(asked: tuple[int, int] | None, processes: "Processes | None" = None) -> tuple[int, int]:
    """This process's share: that of a `SHARE` option, else torchrun's, else everything.

    Those of ``processes`` that make a video together have one share. Raises RequestError where both say one,
    BackendError as `wan_core.runtime.launched`.
    """
    from wan_core.runtime import Processes, launched

    chosen = Processes(launch=launched()) if processes is None else processes
    if chosen.world == 1:
        return asked or (0, 1)
    if asked is not None:
        raise RequestError("torchrun divides the work already; leave --shard out")
    return chosen.group, chosen.num_groups


def own_device(asked: str | None) -> str | None:
    """The device of this process: what was asked for, or with torchrun where that leaves it open a GPU of its own."""
    from wan_core.runtime import launched

    launch = launched()
    return asked if launch is None else launch.device(asked)


class _FiniteFloat(click.types.FloatParamType):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number


FINITE = _FiniteFloat()
"""A number; nan and infinity are refused by the option's name."""


def parse_guidance(text: str) -> float | Experts[float]:
    """One number, or ``LOW,HIGH`` for the low-noise and the high-noise expert (the original's order).

    Raises ``RequestError`` for anything else.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) == 2:
        return Experts(low=numbers[0], high=numbers[1])
    raise RequestError(f"{text!r} is neither one number nor LOW,HIGH")


class ListOption(click.Option):
    """An option with several values: ``--images a.png b.png`` takes every word up to the next option.

    A :class:`ListCommand` must hold it. Given again, it adds its values; a value that starts with a dash is written
    ``--images=-a.png``.
    """

    def __init__(self, param_decls: Sequence[str], *, type: click.ParamType, help: str) -> None:  # type: ignore[type-arg]
        super().__init__(param_decls, type=type, help=help, multiple=True, metavar=f"{type.name.upper()}...")


class ListCommand(ErrorReporting):
    """A command whose :class:`ListOption` options take several values; our errors leave it as sentences."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, one_value_each(spelled(args, self.get_params(ctx)), self.get_params(ctx), ctx))


def one_value_each(
    words: Sequence[str], params: Sequence[click.Parameter], ctx: click.Context | None = None
) -> list[str]:
    """``--images a b`` as ``--images a --images b``, which click can parse, for each :class:`ListOption` of ``params``.

    Words that are the value of another option, or that follow ``--``, stay as they are. Raises click's usage error for
    a list without a value, and for an empty one.
    """
    options = {name: param for param in params if isinstance(param, click.Option) for name in param.opts}
    rest, single = deque(words), list[str]()
    while rest:
        word = rest.popleft()
        name = word.partition("=")[0]
        if isinstance(options.get(name), ListOption):
            values = [word.partition("=")[2]] if "=" in word else []
            values += _take_values(rest)
            if not values or "" in values:
                raise click.BadOptionUsage(
                    name, f"Option {name!r} requires one value or more, none of them empty.", ctx
                )
            single += [part for value in values for part in (name, value)]
        else:
            count = len(rest) if word == "--" else min(num_values(options.get(word)), len(rest))
            single += [word, *(rest.popleft() for _ in range(count))]
    return single


def _take_values(rest: deque[str]) -> list[str]:
    """Remove the words up to the next option, and return them."""
    values = []
    while rest and (rest[0] == "-" or not rest[0].startswith("-")):
        values.append(rest.popleft())
    return values


def part_option() -> click.Option:
    """``--part``, of every command that loads a model."""
    return click.Option(
        ["--part", "parts"],
        type=ParsedType("NAME=PATH", parse_part),
        multiple=True,
        help="Take a part (vae, text_encoder, pi3 of poze, ...) from another file or folder; repeatable.",
    )


def parse_part(text: str) -> tuple[str, str]:
    """Read ``NAME=PATH``. Raises ``RequestError``."""
    name, _, place = text.partition("=")
    if not name or not place:
        raise RequestError(f"a part is NAME=PATH, such as vae=other.safetensors; got {text!r}")
    return name, place


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
        click.Option(["--negative-prompt"], help="What it must not show; '' for nothing."),
        click.Option(
            ["--prompt-file"],
            type=PLACE,
            help="A text file with one prompt a line; a video each.",
        ),
        click.Option(
            ["--size"], type=ParsedType("W*H", parse_size), help="Width*height in pixels; for pictures the area."
        ),
        click.Option(["--frame-num", "--num-frames", "num_frames"], type=int, help="Frames, 4n+1."),
        click.Option(["--fps"], type=int, help="Frames per second of the file."),
        click.Option(["--sample-steps", "num_inference_steps"], type=int, help="Sampling steps."),
        click.Option(["--sample-shift", "flow_shift"], type=FINITE, help="Shift of the schedule."),
        click.Option(["--sample-solver", "solver"], type=click.Choice(list(SOLVERS)), help="How to integrate."),
        click.Option(
            ["--sample-guide-scale", "guidance_scale"],
            type=ParsedType("X|LOW,HIGH", parse_guidance),
            help="Classifier-free guidance; 1 turns it off.",
        ),
        click.Option(["--base-seed", "--seed", "seed"], type=int, default=-1, help="-1 (default) picks one."),
        click.Option(
            ["--num-videos"],
            type=click.IntRange(1, 10_000),
            default=1,
            help="Videos per prompt, with consecutive seeds.",
        ),
    ]


def runtime_options() -> list[click.Option]:
    """Where and how it computes."""
    return [
        click.Option(["--ckpt-dir"], type=PLACE, help="Folder of the weights."),
        part_option(),
        click.Option(["--device"], help="cpu, cuda, cuda:INDEX or mps; default: the best there is."),
        click.Option(["--dtype"], help="float32, bfloat16 or float16; default: float32 on the CPU, else bfloat16."),
        click.Option(
            ["--offload-model", "offload"],
            type=ParsedType("BOOLEAN|blocks", parse_offload),
            default=None,
            help="True: parts leave the device after use; blocks: the network's blocks, too; False: all stay. Default: "
            "what fits into free memory stays.",
        ),
        click.Option(["--t5-cpu", "t5_cpu"], is_flag=True, help="Run the text encoder on the CPU."),
        click.Option(
            ["--convert-model-dtype", "convert_model_dtype"],
            is_flag=True,
            help="The original's flag for 16-bit weights; ours are 16-bit wherever --dtype is.",
        ),
        click.Option(
            ["--cfg"],
            type=click.Choice(["sequential", "batched"]),
            default="sequential",
            help="Guidance branches one after the other, or as a batch of two.",
        ),
        click.Option(
            ["--tea-cache"],
            type=FINITE,
            metavar="THRESHOLD",
            help="Leave blocks out in steps that change little, such as 0.1; more is less exact. Default: never.",
        ),
        click.Option(
            ["--attention"],
            default="auto",
            help="Attention kernel: auto (the best that works here), sdpa, cudnn, flash2, flash3 or flash4.",
        ),
        click.Option(
            ["--vae-dtype"],
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            help="Dtype of the video autoencoder; auto: float32 on the CPU and on every GPU, as the original.",
        ),
        click.Option(
            ["--vae-tiling"],
            type=click.Choice(["auto", "on", "off", "encode", "decode"]),
            default="auto",
            help="Encode and decode in overlapping tiles: less memory, about the same video; processes that share it "
            "decode together. auto: where it would not fit otherwise; encode, decode: there alone.",
        ),
        click.Option(["--noise-device"], default="cpu", help="Where noise is drawn; the original: cuda."),
        click.Option(
            ["--mmap/--no-mmap"], default=None, help="Map weight files or read them; default: by file system."
        ),
        *process_options(),
    ]


def process_options() -> list[click.Option]:
    """How several processes share the work; torchrun, or ``--nproc``, starts them."""
    return [
        click.Option(
            ["--nproc"],
            type=click.IntRange(1),
            help="Start so many processes on this machine, as torchrun does, a GPU for each.",
        ),
        click.Option(
            ["--ulysses-size"],
            type=click.IntRange(1),
            help="How many processes share the tokens of one video; others make videos of their own. Default: 1, and "
            "with --dit-fsdp or --t5-fsdp all.",
        ),
        click.Option(["--cfg-parallel"], is_flag=True, help="Each branch of guidance in processes of its own."),
        click.Option(["--dit-fsdp"], is_flag=True, help="Divide the network's weights among a video's processes."),
        click.Option(["--t5-fsdp"], is_flag=True, help="Divide the text encoder's weights among them, too."),
    ]


def output_options() -> list[click.Option]:
    """What comes out."""
    return [
        click.Option(
            ["--save-file", "--output", "-o", "output"],
            type=PLACE,
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
    return [
        _task_option(field, _type_of(field.name, request_type))
        for field in dataclasses.fields(request_type)
        if "option" in field.metadata
    ]


def _type_of(name: str, request_type: type[GenerationRequest]) -> Any:
    """The type of one field: those of others may be imported for type checkers only."""
    home = next(each for each in request_type.__mro__ if name in vars(each).get("__annotations__", ()))
    field = SimpleNamespace(__annotations__={name: home.__annotations__[name]})
    return typing.get_type_hints(field, vars(sys.modules[home.__module__]))[name]


def _task_option(field: "dataclasses.Field[Any]", hint: Any) -> click.Option:
    names, text = [*field.metadata["option"], field.name], field.metadata["help"]
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    kind = kinds[0] if isinstance(hint, UnionType) and len(kinds) == 1 else hint
    if "parse" in field.metadata:
        parsed = ParsedType(field.metadata["metavar"], field.metadata["parse"])
        return click.Option(names, type=parsed, default=None, help=text)
    if kind is bool:
        return click.Option(names, is_flag=True, help=text)
    if typing.get_origin(kind) is tuple and typing.get_args(kind)[1:] == (...,):
        return ListOption(names, type=_click_type(typing.get_args(kind)[0]), help=text)
    default = None if field.default is dataclasses.MISSING else field.default
    return click.Option(names, type=_click_type(kind), default=default, help=text)


def _click_type(kind: Any) -> Any:
    return PLACE if kind is Path else click.types.convert_type(kind)
