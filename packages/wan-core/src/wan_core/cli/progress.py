"""Progress on standard error: steps or bytes, speed, time left."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import click
from tqdm import tqdm

from wan_core.files import plain_text


def show_progress(steps: Iterable[Any], phase: str) -> Iterable[Any]:
    """Wrap ``steps``: a bar on a terminal, otherwise a line now and then; time per step and time left in both."""
    bar: Iterable[Any] = tqdm(
        steps, desc=phase, unit="step", dynamic_ncols=True, mininterval=0.2, smoothing=0.1, leave=True, ascii=True
    )
    return bar


def progress_unless(quiet: bool) -> Callable[[Iterable[Any], str], Iterable[Any]]:
    """:func:`show_progress`, or with ``quiet`` nothing."""
    return (lambda steps, phase: steps) if quiet else show_progress


def byte_progress(phase: str, *, quiet: bool) -> Callable[[int, int], AbstractContextManager[Callable[[int], object]]]:
    """Progress by bytes for :mod:`wan_core.checkpoints`: share, bytes, speed, time left; nothing when ``quiet``."""

    @contextmanager
    def progress(total: int, done: int) -> Iterator[Callable[[int], object]]:
        with tqdm(
            total=total, initial=done, desc=phase, unit="B", unit_scale=True, dynamic_ncols=True, mininterval=0.2,
            ascii=True, disable=quiet,
        ) as bar:  # fmt: skip
            yield bar.update

    return progress


def reporter(quiet: bool) -> Callable[[str], None]:
    """A function that says what happens, on standard error."""

    def log(text: str) -> None:
        if not quiet:
            click.echo("\n".join(plain_text(line) for line in text.split("\n")), err=True)

    return log


@contextmanager
def training_progress(
    total: int, memory: Callable[[], int], *, quiet: bool
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A listener for the log lines of a run of ``total`` steps: loss, speed, memory and time left.

    ``memory`` tells the bytes in use. Steps done before the first line of a run that goes on are not part of its speed.
    """
    bar: Any = None
    with ExitStack() as shown:

        def report(line: dict[str, Any]) -> None:
            nonlocal bar
            if "validation_loss" in line and not quiet:
                tqdm.write(f"step {line['step']}: validation loss {line['validation_loss']:.4f}", file=sys.stderr)
            losses = [value for name, value in line.items() if name == "loss" or name.endswith("_loss")]
            if "rate" not in line or not losses:
                return
            if bar is None or line["step"] < bar.n:  # the second expert begins anew
                shown.close()
                first = max(0, line["step"] - line["steps"])
                bar = shown.enter_context(_bar("train", "step", total, quiet=quiet, initial=first))
            bar.set_postfix_str(f"loss {losses[0]:.4f}, {memory() / 2**30:.2f} GiB", refresh=False)
            bar.update(line["step"] - bar.n)

        yield report


@contextmanager
def item_progress(phase: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A listener for the number of items that are done; nothing is shown until the first."""
    bar: Any = None
    with ExitStack() as shown:

        def report(done: int) -> None:
            nonlocal bar
            if bar is None:
                bar = shown.enter_context(_bar(phase, "clip", total, quiet=quiet))
            bar.update(done - bar.n)
            if done >= total:
                bar.close()

        yield report


def _bar(phase: str, unit: str, total: int, *, quiet: bool, initial: int = 0) -> Any:
    return tqdm(total=total, initial=initial, desc=phase, unit=unit, dynamic_ncols=True, ascii=True, disable=quiet)
