"""The group class of all our commands: lazy subcommands, errors as one sentence with an exit code."""

import errno
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from wan_core.errors import BackendError, LostProcessError, MediaError, Terminated, WanError
from wan_core.files import plain_text
from wan_core.lazy import load

DEBUG_KEY = "wan_core.debug"
_LIKELY = 0.8
_INTERRUPTED = "interrupted; nothing half-written was left behind"
_ENDING = (signal.SIGTERM, signal.SIGINT)
_OUTPUT_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)

# Read when torch's OpenMP is loaded, so before torch. Waiting threads that spin instead of sleeping make a small model
# five times as slow on a machine that has other work (83 s against 17 s for the first example of the README).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


class _Place(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; name a file or a folder, . for this one", param, ctx)
        return super().convert(value, param, ctx)


PLACE = _Place(path_type=Path)
"""A file or a folder; an empty name, such as that of a variable that is not set, is not this folder but refused."""


@dataclass(frozen=True)
class LazyCommand:
    """A subcommand by address (``module:attribute``) and the line that the group's help shows."""

    address: str
    help: str

    def load(self) -> click.Command:
        command: click.Command = load(self.address)
        return command


def exit_of(number: int) -> click.exceptions.Exit:
    """How a command ends that a signal has stopped: with 128 and its number, so 130 on Ctrl-C and 143 on SIGTERM."""
    return click.exceptions.Exit(128 + number)


class ReportedError(click.ClickException):
    """A :class:`WanError` as click prints it: ``Error: sentence``, with the error's exit code.

    A name in it may be a stranger's; nothing in it reaches the terminal that could command it.
    """

    def __init__(self, error: WanError) -> None:
        said = f"{error.process}: {error}" if error.process else str(error)
        super().__init__("\n".join(plain_text(line) for line in said.split("\n")))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click declares a class variable, and reads it so


class ErrorReporting(click.Command):
    """Turns our errors into a sentence and an exit code; ``--debug`` lets the traceback through.

    Options are found under both spellings, ``--a-b`` and ``--a_b``, and the help under ``-h``, too.
    """

    def __init__(self, *args: Any, **values: Any) -> None:
        super().__init__(*args, **{"context_settings": {"help_option_names": ["-h", "--help"]}, **values})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, spelled(args, self.get_params(ctx)))
        except click.NoSuchOption as error:
            near = [each for each in error.possibilities or () if _resembles(error.option_name, each)]
            raise click.NoSuchOption(error.option_name, error.message, near, error.ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except WanError as error:
            if ctx.meta.get(DEBUG_KEY):
                raise
            if not _is_ours_to_report(error):
                raise click.exceptions.Exit(error.exit_code) from error
            raise ReportedError(error) from error
        except KeyboardInterrupt as interrupt:
            said = f": {interrupt}" if str(interrupt) else ""
            if _is_ours_to_say():
                click.echo(_INTERRUPTED.replace(";", f"{said};"), err=True)
            raise exit_of(signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT) from interrupt
        except (MemoryError, RuntimeError) as error:
            if ctx.meta.get(DEBUG_KEY) or not _is_out_of_memory(error):
                raise
            raise ReportedError(
                BackendError(
                    "out of memory; use a smaller --size or --frame-num, --offload_model True, or --dtype bfloat16"
                )
            ) from error


def _resembles(given: str, option: str) -> bool:
    """Whether an option is likely what was meant, not only one that ends alike."""
    return SequenceMatcher(None, given.replace("_", "-"), option).ratio() > _LIKELY


def spelled(words: Sequence[str], params: Sequence[click.Parameter]) -> list[str]:
    """The words of a command line with each option of ``params`` under its own spelling; values stay as they are."""
    named = [param for param in params if isinstance(param, click.Option)]
    options = {name: option for option in named for name in (*option.opts, *option.secondary_opts)}
    left, found = deque(words), list[str]()
    while left:
        word = left.popleft()
        if word == "--":
            return [*found, word, *left]
        name, equals, value = word.partition("=")
        if name.startswith("--") and name not in options:
            other = f"--{name[2:].replace('_', '-')}"
            if other in options:
                name = other
        found.append(f"{name}{equals}{value}" if name.startswith("--") else word)
        count = 0 if equals else num_values(options.get(name))
        found += [left.popleft() for _ in range(min(count, len(left)))]
    return found


def num_values(option: click.Option | None) -> int:
    """How many words after its name belong to an option."""
    return 0 if option is None or option.is_flag or option.count else option.nargs


def _has_launcher() -> bool:
    """Whether this is one of the processes of a run, which are started and watched together."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _is_ours_to_report(error: WanError) -> bool:
    """Whether no other process that was started with this one has told the same.

    Who has only noticed that another one ended leaves it to those who may know why.
    """
    if not _has_launcher():
        return True  # torch need not be imported to say so
    from wan_core.runtime import is_first_to_say

    return is_first_to_say(str(error), unless_told_in=1.0 if isinstance(error, LostProcessError) else None)


def _is_ours_to_say() -> bool:
    """Whether an interruption is to be told: of several processes by one, and not where one of them has failed."""
    if not _has_launcher():
        return True
    from wan_core.runtime import INTERRUPTED, is_first_to_say

    return is_first_to_say(INTERRUPTED, unless_told_in=0.0)


def _is_out_of_memory(error: BaseException) -> bool:
    # By name: torch may not be imported, and its CPU allocator raises a plain RuntimeError.
    text = str(error)
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text
    )


class LazyGroup(ErrorReporting, click.Group):
    """A group whose subcommands are a table of addresses, imported when they are called."""

    def __init__(self, name: str, commands: Mapping[str, LazyCommand], *, help: str, package: str) -> None:
        super().__init__(name, help=help)
        self._lazy = dict(commands)
        self.params.append(version_option(package, name))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = self._lazy.get(cmd_name)
        return None if lazy is None else lazy.load()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in self._lazy.items()])


def version_option(package: str, program: str) -> click.Option:
    """``--version``, read from the installed package when asked for."""

    def show(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            click.echo(f"{program} {version(package)}")
            ctx.exit()

    return click.Option(
        ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=show, help="Show the version and exit."
    )


def main_of(command: click.Command) -> Callable[[], None]:
    """The entry point of a command: SIGTERM ends it as Ctrl-C does, output that nobody takes with a sentence."""

    def main() -> None:
        for number in _ENDING:
            signal.signal(number, _stop)
        try:
            try:
                command.main(prog_name=command.name)
            finally:
                for number in _ENDING:  # a second one ends the interpreter's own end at once
                    signal.signal(number, signal.SIG_DFL)
                if sys.stdout is not None:
                    sys.stdout.flush()
        except OSError as error:
            if error.errno not in _OUTPUT_TROUBLE or error.filename is not None:
                raise
            with suppress(OSError):
                click.echo(f"Error: cannot write to standard output: {error.strerror}", err=True)
            _leave(MediaError.exit_code)

    return main


def _stop(number: int, frame: FrameType | None) -> None:
    """End by an exception, which modules that are being imported may swallow: at once, where nothing is written.

    Of a run of several processes the launcher tells it then; a terminal interrupts them all, and the launcher once
    more: what is being put away meanwhile is not disturbed.
    """
    drafts = sys.modules.get("wan_core.drafts")
    if _is_importing(frame) and (drafts is None or not drafts.is_writing()):
        if not _has_launcher():
            with suppress(OSError):
                os.write(2, f"{_INTERRUPTED}\n".encode())
        os._exit(128 + number)
    if _has_launcher():
        for each in _ENDING:
            signal.signal(each, signal.SIG_IGN)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _leave(code: int) -> NoReturn:
    """End without another try to write what is left in the buffers."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)
