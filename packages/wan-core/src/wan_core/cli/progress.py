"""Progress on standard error: steps or bytes, speed, time left."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import click
from tqdm import tqdm


def show_progress(steps: Iterable[Any], phase: str) -> Iterable[Any]:
    """Wrap ``steps``: a bar on a terminal, otherwise a line now and then; time per step and time left in both."""
    bar: Iterable[Any] = tqdm(
        steps, desc=phase, unit="step", dynamic_ncols=True, mininterval=0.2, smoothing=0.1, leave=True, ascii=True
    )
    return bar


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

    def say(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    return say
