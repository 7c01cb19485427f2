"""``wan generate TASK``: the commands and their help, without what carries them out."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from wan_core.cli.extending import check_unused, extend_options, plan_extension
from wan_core.cli.group import ErrorReporting
from wan_core.cli.jobs import Job, plan_jobs
from wan_core.cli.loras import lora_options
from wan_core.cli.options import ListCommand, output_options, request_options, runtime_options, task_options
from wan_core.cli.processes import start_if_asked
from wan_core.cli.progress import reporter
from wan_core.errors import RequestError
from wan_core.media import check_output, parse_size
from wan_core.presets import Preset, get_preset, list_presets

_SEVERAL = "i2v-14B"
EPILOG = (
    "Without TASK the bundled tiny model runs: tiny-t2v, or tiny-ti2v with --image. "
    "'wan generate TASK --help' lists the options of a task; '--task TASK' works too."
)


class GenerateGroup(ErrorReporting, click.Group):
    """One command per preset, built when it is called; the task is the first word or ``--task``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list_presets()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        return build_command(get_preset(cmd_name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Tasks"):
            formatter.write_dl([(name, get_preset(name).summary) for name in list_presets()])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options that all tasks share, then the tasks."""
        shared = {
            "What to make": request_options(),
            "Prompt extension": extend_options(),
            "How to run": [*runtime_options(), *lora_options()],
            "What comes out": output_options(),
        }
        for title, options in shared.items():
            with formatter.section(title):
                formatter.write_dl([row for option in options if (row := option.get_help_record(ctx))])
        super().format_options(ctx, formatter)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _by_size(_task_first(args)))


def _by_size(words: list[str]) -> list[str]:
    """The original calls two image models i2v-14B: the size, 1280*720 if none is given, tells which one is meant."""
    if words[0] != _SEVERAL:
        return words
    joined = "=".join(words)
    found = re.search(r"--size=([^=]+)", joined)
    size = parse_size(found[1]) if found else None
    names = [name for name in list_presets() if name.startswith(f"{_SEVERAL}-")]
    fitting = [name for name in names if size in get_preset(name).sizes]
    return [*(fitting or names[-1:]), *words[1:]]


def _task_first(args: Sequence[str]) -> list[str]:
    """Move ``--task NAME`` to the front; put the tiny task there when none is named."""
    rest = list(args)
    for index, word in enumerate(rest):
        if word == "--task" and index + 1 < len(rest):
            return [rest[index + 1], *rest[:index], *rest[index + 2 :]]
        if word.startswith("--task="):
            return [word.removeprefix("--task="), *rest[:index], *rest[index + 1 :]]
    if rest and not rest[0].startswith("-"):
        return rest
    if not rest or {"-h", "--help"} & set(rest):
        return ["--help"]
    if any(word.split("=")[0].replace("_", "-") == "--ckpt-dir" for word in rest):
        raise RequestError(
            f"--ckpt-dir needs a task; name it first: wan generate TASK, one of {', '.join(list_presets())}"
        )
    has_image = any(word.split("=")[0] == "--image" for word in rest)
    return ["tiny-ti2v" if has_image else "tiny-t2v", *rest]


generate = GenerateGroup(
    "generate",
    help="Make a video from a prompt, and from pictures.",
    epilog=EPILOG,
    options_metavar="[TASK] [OPTIONS]",
    subcommand_metavar="",
)


def build_command(
    preset: Preset, name: str | None = None, run: Callable[[Preset, Mapping[str, Any]], None] | None = None
) -> click.Command:
    """The click command of one preset: the shared options and those of its request.

    A project's own script gives it another ``name``, and a ``run`` that calls :func:`run_generate`.
    """

    def call(**values: Any) -> None:
        start_if_asked(values)
        (run or run_generate)(preset, values)

    return ListCommand(
        name or preset.name,
        params=[
            *request_options(),
            *task_options(preset.task.request_type),
            *extend_options(),
            *runtime_options(),
            *lora_options(),
            *output_options(),
        ],
        callback=call,
        help=f"{preset.summary}.",
    )


def run_generate(
    preset: Preset,
    values: Mapping[str, Any],
    *,
    check: Callable[..., object] = check_output,
    plan: Callable[..., list[Job]] = plan_jobs,
    **further: Any,
) -> None:
    """Check every request and output, then make the videos. ``values`` are the parsed options.

    ``plan`` takes what ``plan_jobs`` does and returns the videos to make; ``write=`` gives frames another way out than
    ``media.write_video``, whose arguments it takes, and ``check`` takes what ``media.check_output`` does; ``is_made=``
    tells from an output and its wanted record whether it is there already; with ``is_share=True`` the plan is only what
    this process, of several, makes.
    """
    check_unused(values)
    jobs = plan(preset, values, check)
    extender = plan_extension(values, jobs, reporter(values["quiet"]))
    from wan_core.cli.making import make_videos  # a request that is wrong costs no torch

    make_videos(preset, values, jobs, extender, **further)
