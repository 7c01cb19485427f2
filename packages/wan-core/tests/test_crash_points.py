"""A process that dies before its k-th file operation: what lies there is the old or the new, whole, at every k."""

import os
from pathlib import Path

import pytest
import torch

from tests.crash_points import MOST, content, crash_everywhere, dies_at
from wan_core import drafts
from wan_core.checkpoints import MemorySource, write_file
from wan_core.drafts import Draft, merged_folder, replaced_file, whole_folder
from wan_core.media import write_video
from wan_core.training import write_cache


def frames(value: float, count: int = 3) -> object:
    return iter([torch.full((3, count, 16, 16), value)])


def old_files(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"old")
    (folder / "beside.txt").write_bytes(b"beside")


def old_set(folder: Path) -> None:
    (folder / "set/in").mkdir(parents=True)
    for name in ("0000.png", "0001.png", "notes.txt", "in/kept.txt", "in/both.bin"):
        (folder / "set" / name).write_bytes(b"old " + name.encode())


def write_one(folder: Path) -> None:
    with replaced_file(folder / "a.bin") as draft:
        draft.write_bytes(b"new")


def write_set(folder: Path) -> None:
    with merged_folder(folder / "set") as draft:
        (draft / "in").mkdir()
        for name in ("0000.png", "0001.png", "0002.png", "in/both.bin"):
            (draft / name).write_bytes(b"new " + name.encode())


def write_whole(folder: Path) -> None:
    with whole_folder(folder / "set", overwrite=True) as draft:
        (draft / "other.bin").write_bytes(b"new")


@pytest.mark.parametrize(
    ("prepare", "work", "least"), [(old_files, write_one, 3), (old_set, write_set, 8), (old_set, write_whole, 4)]
)
def test_drafts_are_the_old_or_the_new(tmp_path: Path, prepare, work, least: int) -> None:
    assert crash_everywhere(tmp_path, prepare, work) >= least


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "set/%04d.png", "none/%04d.png"])
def test_videos_are_the_old_or_the_new(tmp_path: Path, name: str) -> None:
    def prepare(folder: Path) -> None:
        if not name.startswith("none"):
            write_video(frames(-1.0), folder / name, fps=8)
        (folder / "beside.txt").write_bytes(b"beside")

    assert crash_everywhere(tmp_path, prepare, lambda folder: write_video(frames(1.0), folder / name, fps=8)) >= 4


def test_weights_are_the_old_or_the_new(tmp_path: Path) -> None:
    def write(folder: Path, value: float) -> None:
        write_file(MemorySource({"a": torch.full((4,), value)}), folder / "a.safetensors", metadata={})

    assert crash_everywhere(tmp_path, lambda folder: write(folder, 0.0), lambda folder: write(folder, 1.0)) >= 3


def test_a_cache_goes_on_from_every_point(tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        write_cache(folder, 3, lambda number: {"a": torch.full((2,), float(number))}, {"x": 1}, shard_size=2)

    work(tmp_path / "whole")
    new = content(tmp_path / "whole")
    for number in range(MOST):
        folder = tmp_path / f"{number}"
        died = dies_at(lambda folder=folder: work(folder), number)
        assert content(folder).items() <= new.items() or "cache.json" in content(folder)
        if not died:
            break
        work(folder)
        assert content(folder) == new
    assert number >= 8


@pytest.mark.parametrize("name", ["_can_be_exchanged", pytest.param("os.link", marks=pytest.mark.slow)])
def test_where_folders_cannot_be_exchanged_sets_are_never_mixed(tmp_path, monkeypatch, name: str) -> None:
    def refuse(*_: object, **__: object) -> bool:
        if name == "os.link":
            raise OSError("a disk without links")
        return False

    monkeypatch.setattr(f"wan_core.drafts.{name}", refuse)
    old_set(tmp_path)
    before = os.stat(tmp_path / "set").st_ino
    for number in range(MOST):
        folder = tmp_path / f"{number}"
        old_set(folder)
        died = dies_at(lambda folder=folder: write_set(folder), number)
        found = {data[:3] for place, data in content(folder).items() if place.endswith(("png", "both.bin"))}
        assert found in ({b"old"}, {b"new"}, set()), f"mixed at {number}"
        is_finished = found != {b"old"} or bool(list((folder / "set").glob(".*.set")))
        write_one(folder / "set")  # any next write into the folder completes the set
        assert {path.read_bytes()[:3] for path in (folder / "set").glob("*.png")} == {b"new" if is_finished else b"old"}
        write_set(folder)
        assert content(folder)["set/0002.png"] == b"new 0002.png"
        assert not list(folder.rglob(".*"))
        if not died:
            break
    assert number > 12
    write_set(tmp_path)
    assert os.stat(tmp_path / "set").st_ino == before
    assert (tmp_path / "set/in/kept.txt").read_bytes() == b"old in/kept.txt"


def test_the_working_folder_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old_set(tmp_path)
    monkeypatch.chdir(tmp_path / "set")
    before = os.stat(".").st_ino
    write_set(tmp_path)
    assert os.stat(tmp_path / "set").st_ino == before == os.stat(".").st_ino
    assert Path("0000.png").read_bytes() == b"new 0000.png"


@pytest.mark.parametrize("is_exchanged", [True, False])
def test_what_others_write_into_a_folder_while_it_is_replaced_stays(tmp_path, monkeypatch, is_exchanged: bool) -> None:
    def meanwhile(one: Path, other: Path) -> bool:
        (tmp_path / "set/late.mp4").write_bytes(b"late")
        (tmp_path / "set/notes.new").write_bytes(b"changed")
        os.replace(tmp_path / "set/notes.new", tmp_path / "set/notes.txt")
        return is_exchanged and exchange(one, other)

    exchange = drafts._exchange
    monkeypatch.setattr("wan_core.drafts._exchange", meanwhile)
    old_set(tmp_path)
    write_set(tmp_path)
    found = content(tmp_path)
    assert (found["set/late.mp4"], found["set/notes.txt"]) == (b"late", b"changed")
    assert found["set/0000.png"] == b"new 0000.png"
    assert os.listdir(tmp_path) == ["set"]


def test_two_hosts_of_one_name_are_two_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = drafts._machine.__wrapped__
    here = machine()
    monkeypatch.setattr("pathlib.Path.read_text", lambda path: "another start")
    assert machine() != here


def test_a_draft_in_a_folder_that_is_being_replaced_is_awaited(tmp_path: Path, monkeypatch) -> None:
    with replaced_file(tmp_path / "a") as draft:
        draft.write_bytes(b"new")
        draft.rename(tmp_path / "brought")
        monkeypatch.setattr("time.sleep", lambda seconds: (tmp_path / "brought").rename(draft))
    assert content(tmp_path) == {"a": b"new"}


@pytest.mark.parametrize("write", [write_set, write_whole])
def test_a_folder_that_is_a_link_is_written_where_it_leads(tmp_path: Path, write) -> None:
    old_set(tmp_path)
    (tmp_path / "set").rename(tmp_path / "elsewhere")
    (tmp_path / "set").symlink_to("elsewhere")
    write(tmp_path)
    assert (tmp_path / "set").is_symlink()
    assert any(data.startswith(b"new") for data in content(tmp_path / "elsewhere").values())
    (tmp_path / "set").unlink()
    (tmp_path / "set").symlink_to("none")
    write(tmp_path)
    assert (tmp_path / "none").is_dir()
    assert (tmp_path / "set").is_symlink()


def test_links_and_rights_of_a_folder_survive_an_exchange(tmp_path: Path) -> None:
    old_set(tmp_path)
    (tmp_path / "set/link").symlink_to("notes.txt")
    (tmp_path / "set").chmod(0o750)
    write_set(tmp_path)
    assert (tmp_path / "set").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "set/link").readlink() == Path("notes.txt")
    assert (tmp_path / "set/in/kept.txt").read_bytes() == b"old in/kept.txt"


def test_a_disk_without_exchange_puts_the_old_folder_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_core.drafts._exchange", lambda one, other: False)
    old_set(tmp_path)
    write_set(tmp_path)
    assert (tmp_path / "set/0002.png").read_bytes() == b"new 0002.png"
    assert (tmp_path / "set/notes.txt").read_bytes() == b"old notes.txt"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_draft_inside_of_the_root_of_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old_set(tmp_path)
    monkeypatch.setattr("wan_core.drafts._can_be_exchanged", lambda folder: False)
    with Draft(tmp_path / "set", merge=True) as draft:
        assert draft.path.parent == tmp_path / "set"
        (draft.path / "0000.png").write_bytes(b"new")
        draft.commit()
    assert (tmp_path / "set/0000.png").read_bytes() == b"new"
