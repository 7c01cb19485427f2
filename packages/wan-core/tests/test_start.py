"""Processes that a command starts: one exit status, one sentence, and none of them stays."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from wan_core.errors import BackendError, LostProcessError, WanError
from wan_core.runtime import is_first_to_say, neighbours, start, start_processes

PRELUDE = """
import os, pathlib, signal, sys, time
rank = int(os.environ["RANK"])
pathlib.Path(f"{rank}.pid").write_text(str(os.getpid()))
def others(): return [int(each.read_text()) for each in pathlib.Path().glob("*.pid") if each.name != f"{rank}.pid"]
def meet():
    while len(list(pathlib.Path().glob("*.pid"))) < 2: time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "_TO_FOLLOW", 0.3)
    monkeypatch.setattr(start, "_TO_LEAVE", 5.0)


def run(program: str) -> int:
    """Two processes that run ``program``; both have ended afterwards."""
    try:
        return start_processes(2, [sys.executable, "-c", PRELUDE + program])
    finally:
        for file in Path().glob("*.pid"):
            assert not Path(f"/proc/{file.read_text()}").exists()


def test_each_process_is_told_its_number_and_where_to_meet() -> None:
    assert run("""
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
pathlib.Path(f"{rank}.said").write_text(" ".join(os.environ[name] for name in names))
""") == 0  # fmt: skip
    assert [Path(f"{rank}.said").read_text() for rank in (0, 1)] == ["0 0 2 2 127.0.0.1", "1 1 2 2 127.0.0.1"]
    assert "RANK" not in os.environ


def test_the_status_is_that_of_the_one_that_failed_not_of_those_that_noticed() -> None:
    assert run("meet(); time.sleep(0.1 * rank); sys.exit((5, 3)[rank])") == 3


@pytest.mark.parametrize(
    ("program", "error", "status", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", BackendError, 5, "process 1 of 2 was ended by SIGKILL; it is likely"),
        ("os.abort()", BackendError, 5, "process 1 of 2 was ended by SIGABRT; the others were stopped"),
        ("sys.exit(143)", WanError, 143, "process 1 of 2 was ended by SIGTERM; the others"),
        ("os.kill(os.getpid(), signal.SIGTERM)", WanError, 143, "process 1 of 2 was ended by SIGTERM; the others"),
        ("sys.stderr = None; 1 / 0", WanError, 1, "process 1 of 2 has failed, see above; the others"),
    ],
)
def test_a_process_that_says_nothing_itself_is_named(
    program: str, error: type[WanError], status: int, words: str
) -> None:
    with pytest.raises(error) as found:
        run(f"meet()\nif rank: {program}\ntime.sleep(60)")
    assert words in str(found.value)
    assert found.value.exit_code == status


def test_a_process_that_is_stopped_leaves_with_the_others() -> None:
    assert run("""
meet()
if rank:
    os.kill(os.getpid(), signal.SIGSTOP)
while "T" not in pathlib.Path(f"/proc/{others()[0]}/stat").read_text().rpartition(")")[2]: time.sleep(0.01)
sys.exit(4)
""") == 4  # fmt: skip


def test_a_process_that_does_not_leave_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_TO_LEAVE", 0.3)
    assert run("""
if rank:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pathlib.Path("ready").touch()
    time.sleep(60)
while not pathlib.Path("ready").exists(): time.sleep(0.01)
sys.exit(4)
""") == 4  # fmt: skip


def interrupted_when_ready(program: str) -> int:
    """The status of a run that Ctrl-C reaches when both processes are there."""

    def interrupt() -> None:
        while len(list(Path().glob("*.ready"))) < 2:
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        return run(program)
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


LEAVING = """
def leave(*_): {}
signal.signal(signal.SIGINT, leave)
pathlib.Path(f"{{rank}}.ready").touch()
time.sleep(60)
"""


def test_ctrl_c_reaches_all_and_is_told_here_where_no_process_has_said_so() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted_when_ready(LEAVING.format('pathlib.Path(f"{rank}.left").touch(); os._exit(130)'))
    assert sorted(path.name for path in Path().glob("*.left")) == ["0.left", "1.left"]


def test_an_interruption_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start.Said, "is_first", lambda *_: False)  # one of the processes has told it
    assert interrupted_when_ready(LEAVING.format("os._exit(130)")) == 130


def test_who_only_noticed_leaves_the_word_to_who_knows() -> None:
    from torch.distributed import TCPStore

    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)}
    said = start.Said(server)
    assert is_first_to_say("nobody has said anything", shared, unless_told_in=0)
    assert not is_first_to_say("anything", shared, unless_told_in=0)
    assert is_first_to_say("something else", shared)
    assert not said.is_first()
    assert issubclass(LostProcessError, BackendError)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found in /proc")
def test_a_process_is_found_again_by_its_place() -> None:
    assert not neighbours.is_gone(neighbours.own_place())
    boot = neighbours.own_place().split()[0]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        place = f"{boot} {other.pid} {neighbours._state(other.pid)[1]}"
        neighbours.end_if_here(place.replace(boot, "another-machine"))
        neighbours.end_if_here(f"{boot} {other.pid} 1")  # another one that had its number
        assert other.poll() is None
        assert not neighbours.is_gone(place)
        neighbours.end_if_here(place)
        assert other.wait(20) == -signal.SIGKILL
    assert neighbours.is_gone(place)
    assert neighbours.is_gone(f"{boot} {os.getpid()} 1")
    assert not neighbours.is_gone(place.replace(boot, "another-machine"))
    assert not neighbours.is_gone("")
