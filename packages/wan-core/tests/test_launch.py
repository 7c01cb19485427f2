"""What the first process of a run makes reaches all of them, and so does its failure."""

import os
import socket
import subprocess
import sys
from datetime import timedelta

import pytest

from wan_core.errors import BackendError
from wan_core.runtime import Launch, made_by_first

WORKER = """
import os
from wan_core.errors import CheckpointError, WanError
from wan_core.runtime import launched, made_by_first

class Own(CheckpointError):
    pass

def fail():
    raise Own("no weights")

for name, together in (("one", None), ("two", 2), ("three", 1)):
    print(made_by_first(launched(), name, lambda: f"{name} by {os.environ['RANK']}", together=together))
try:
    made_by_first(launched(), "four", fail)
except WanError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def printed() -> list[list[str]]:
    """The lines that each of two processes prints."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    return [process.communicate(timeout=600)[0].splitlines() for process in started]


def test_texts_of_the_first_process_reach_all(printed: list[list[str]]) -> None:
    assert [lines[:2] for lines in printed] == [["one by 0", "two by 0"]] * 2
    assert [lines[2] for lines in printed] == ["three by 0", "three by 1"], "of groups of one, each is the first"


def test_a_failure_of_the_first_process_reaches_all(printed: list[list[str]]) -> None:
    assert [lines[3:] for lines in printed] == [["CheckpointError no weights"]] * 2


def test_alone_it_is_made_here() -> None:
    assert made_by_first(None, "text", lambda: "made") == "made"


def test_processes_that_cannot_meet_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_core.runtime.launch._PATIENCE", timedelta(seconds=1))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(BackendError, match="process 1 of 2 cannot reach the others"):
        made_by_first(Launch(1, 2, 1), "text", lambda: "made")


def test_a_place_to_meet_that_cannot_be_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "none")
    with pytest.raises(BackendError, match=r"process 0 of 2 cannot reach the others: .*'none'"):
        made_by_first(Launch(0, 2, 0), "text", lambda: "made")
