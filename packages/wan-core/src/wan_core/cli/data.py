"""The options of `wan train` and `wan cache` that say what to train on, and the list of what could not be."""

from typing import TYPE_CHECKING, Any

import click

from wan_core.cli.options import ParsedType
from wan_core.training import CLIP_WAYS, parse_clips

if TYPE_CHECKING:
    from wan_core.training import FoundExamples


class _DataType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """A path, or an entry of ``[[datasets]]`` as a config has it; `data_folders` reads both."""

    name = "PATH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value


def data_options() -> list[click.Option]:
    """What to train on, which clips of it, and what to do with the rest."""
    return [
        click.Option(
            ["--data"],
            type=_DataType(),
            multiple=True,
            help="Folder of videos and images with captions, or a TOML file of [[datasets]]; repeatable. Encoded once, "
            "into OUTPUT/cache.",
        ),
        *clip_options(),
    ]


def clip_options() -> list[click.Option]:
    """Which clips are cut from the videos, and what to do with examples that cannot be trained on."""
    return [
        click.Option(
            ["--clips"],
            type=ParsedType("|".join(CLIP_WAYS), parse_clips),
            help="Clips of a video: from the start, one after the other, all of it up to --num-frames, every N frames, "
            "N spread evenly, N drawn by --seed.  [default: head]",
        ),
        click.Option(
            ["--skip-bad"], is_flag=True, help="Leave out what cannot be trained on, with the reasons at the end."
        ),
    ]


def report_left_out(found: "FoundExamples") -> None:
    """List what was left out, if anything, on standard error."""
    if found.bad:
        click.echo(f"left out {len(found.bad)} examples that cannot be trained on:\n{found.report()}", err=True)
