"""Drafts: what takes its place whole, and what stays behind when a process is killed, interrupted or out of space."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wan_core.drafts import merged_folder, replaced_file, whole_folder, write_text
from wan_core.errors import MediaError
from wan_core.files import check_place, check_space, folder_files

# Writes half of a draft, says so, and waits to be killed or told to go on.
HALF = """
import signal, sys
from pathlib import Path
from wan_core.drafts import {name}
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it would be ignored
with {name}(Path(sys.argv[1]){more}) as draft:
    place = draft / "new" if draft.is_dir() else draft
    place.write_text(sys.argv[2])
    print("half", flush=True)
    sys.stdin.readline()
"""


def half_written(target: Path, text: str, name: str = "replaced_file", more: str = "") -> subprocess.Popen[str]:
    """A process in the middle of writing ``target``."""
    command = [sys.executable, "-c", HALF.format(name=name, more=more), str(target), text]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    return process


def test_a_killed_write_leaves_the_old_file_and_the_next_run_removes_the_draft(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with half_written(target, "new") as process:
        process.send_signal(signal.SIGKILL)
    assert target.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2
    write_text(target, "newer")
    assert target.read_text() == "newer"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(("name", "more"), [("whole_folder", ", overwrite=True"), ("merged_folder", "")])
def test_a_killed_folder_leaves_the_old_one(tmp_path: Path, name: str, more: str) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with half_written(target, "new", name, more) as process:
        process.send_signal(signal.SIGKILL)
    assert (target / "old").read_text() == "old"
    assert not (target / "new").exists()
    with merged_folder(target), whole_folder(target, overwrite=True) as draft:
        (draft / "newer").write_text("newer")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(target) == ["newer"]


def test_a_folder_put_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    with half_written(tmp_path / "a.txt", "new") as process:
        process.send_signal(signal.SIGKILL)
    [draft] = os.listdir(tmp_path)
    aside = tmp_path / draft.replace("a.txt", "out").replace(".part", ".old")
    aside.mkdir()
    (aside / "old").write_text("old")
    write_text(tmp_path / "b.txt", "b")
    assert sorted(os.listdir(tmp_path)) == ["b.txt", "out"]
    assert (tmp_path / "out" / "old").read_text() == "old"


def test_of_two_processes_the_last_one_wins(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with half_written(target, "first" * 1000) as first, half_written(target, "second" * 1000) as second:
        write_text(target, "third")
        assert target.read_text() == "third"
        second.communicate("go on\n")
        assert target.read_text() == "second" * 1000
        first.communicate("go on\n")
    assert first.returncode == second.returncode == 0
    assert target.read_text() == "first" * 1000
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    with half_written(tmp_path / "new" / "below" / "a.txt", "half") as process:
        process.send_signal(signal.SIGINT)
    assert list(tmp_path.iterdir()) == []


def test_two_drafts_of_one_process_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with replaced_file("a") as first:
        first.write_text("first")
        with replaced_file(tmp_path / "a") as second:
            second.write_text("second")
    assert Path("a").read_text() == "first"
    assert os.listdir(tmp_path) == ["a"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MediaError, match="the disk is full; free some space"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_names_of_any_length_and_foreign_drafts(tmp_path: Path) -> None:
    foreign = tmp_path / ".a.00000000-1-00000000.part"  # of another machine
    foreign.write_text("theirs")
    write_text(tmp_path / ("n" * 255), "text")
    assert sorted(os.listdir(tmp_path)) == sorted([foreign.name, "n" * 255])


def test_a_check_makes_nothing(tmp_path: Path) -> None:
    check_place(tmp_path / "new" / "a.ply")
    check_place(tmp_path / "new", is_folder=True)
    check_space(tmp_path / "new" / "a", 1)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MediaError, match="GB are free there; free some space"):
        check_space(tmp_path / "a", 10**18)
    (tmp_path / "file").write_text("")
    with pytest.raises(MediaError, match="file is no folder"):
        check_place(tmp_path / "file" / "a.ply")
    with pytest.raises(MediaError, match="it is a file; name a folder"):
        check_place(tmp_path / "file", is_folder=True)
    with pytest.raises(MediaError, match="a folder of that name"):
        check_place(tmp_path)


def test_the_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("frame10.png", "Frame2.PNG", "._frame2.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in folder_files(tmp_path, (".png",))] == ["Frame2.PNG", "frame10.png"]
    with pytest.raises(MediaError, match="cannot be read"):
        folder_files(tmp_path / "none", (".png",))
