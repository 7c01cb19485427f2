"""Progress on standard error: steps, time per step, time left."""

from collections.abc import Callable, Iterable
from typing import Any

import click
from tqdm import tqdm


def show_progress(steps: Iterable[Any], phase: str) -> Iterable[Any]:
    """Wrap ``steps``: a bar on a terminal, otherwise a line now and then; time per step and time left in both."""
    bar: Iterable[Any] = tqdm(
        steps, desc=phase, unit="step", dynamic_ncols=True, mininterval=0.2, smoothing=0.1, leave=True, ascii=True
    )
    return bar


def reporter(quiet: bool) -> Callable[[str], None]:
    """A function that says what happens, on standard error."""

    def say(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    return say
