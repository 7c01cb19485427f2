"""Signals that come where an exception may be swallowed, and those that come twice."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from wan_core.cli import main_of
from wan_core.errors import Terminated
from wan_core.training.signals import Signals


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_an_import_that_swallows_all_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    ended: list[int] = []
    (tmp_path / "swallowing.py").write_text(
        f"import os\ntry:\n    os.kill(os.getpid(), {int(number)})\nexcept BaseException:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.delitem(sys.modules, "swallowing", raising=False)
    with pytest.raises(SystemExit):
        main_of(click.Command("x", callback=lambda: __import__("swallowing")))()
    assert ended == [128 + number]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


@pytest.mark.parametrize(("first", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_second_signal_in_training_ends_as_the_first_asked(first: int, kind: type[BaseException]) -> None:
    with Signals(is_alone=True):
        os.kill(os.getpid(), first)
        with pytest.raises(kind) as caught:
            os.kill(os.getpid(), signal.SIGINT)
    assert type(caught.value) is kind
