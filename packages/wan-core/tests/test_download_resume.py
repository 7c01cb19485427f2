"""``wan download`` goes on where it stopped: cut connections, killed processes, full disks, damaged parts."""

import errno
import fcntl
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from wan_core.hub import (
    download_files,
    fetch,
    open_hub,
    plan_download,
    verify_folder,
)

from .download_setting import FILES, WEIGHTS, contents, hub, quiet_environment, run
from .small_hub import SmallHub

__all__ = ["hub", "quiet_environment"]  # fixtures


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ranges", [True, False])
def test_cut_connections_are_gone_on_with(hub: SmallHub, seed: int, ranges: bool) -> None:
    hub.random.seed(seed)
    hub.cut_seed, hub.ranges = seed, ranges
    hub.statuses += [503, 429]
    record = json.loads(run("owner/name", "--json").stdout)
    assert contents(Path("name")) == FILES
    assert record["received"] == sum(len(content) for content in FILES.values())
    verify_folder("name")


def test_a_hub_that_stays_away_is_given_up_and_its_bytes_stay(hub: SmallHub) -> None:
    hub.statuses += [500] * fetch.ATTEMPTS
    assert "cannot be reached" in run("owner/name", code=3).output
    assert hub.statuses == []
    plan = plan_download(open_hub("huggingface"), "owner/name", Path("name"))
    part = fetch.part_of(plan.folder, next(file for file in plan.files if file.size == len(WEIGHTS)))
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS[:250_000])
    record = json.loads(run("owner/name", "--json").stdout)
    assert {file["name"]: file["received"] for file in record["files"]}["high/model.safetensors"] == 50_000
    assert contents(Path("name")) == FILES


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_list_that_breaks_off_is_asked_for_again(hub: SmallHub, source: str) -> None:
    hub.cut_lists = 3
    run("owner/name", "--from", source)
    assert contents(Path("name")) == FILES


@pytest.mark.parametrize("seed", range(20))
def test_whatever_a_killed_process_left_is_gone_on_with_or_dropped(hub: SmallHub, seed: int) -> None:
    """A part cut anywhere, with a tail that never reached the disk, or longer than the file."""
    draw = random.Random(seed)
    plan = plan_download(open_hub("huggingface"), "owner/name", Path("name"))
    file = next(file for file in plan.files if file.size == len(WEIGHTS))
    part = fetch.part_of(plan.folder, file)
    part.parent.mkdir(parents=True)
    keep, zeros = draw.randrange(len(WEIGHTS) + 1), draw.choice([0, 0, 1, 4096, len(WEIGHTS)])
    part.write_bytes(WEIGHTS[:keep] + b"\0" * zeros)
    hub.cut_seed = seed
    steps: list[int] = []

    @contextmanager
    def progress(total: int, done: int) -> Iterator[Callable[[int], object]]:
        yield steps.append

    fetched = download_files(plan_download(open_hub("huggingface"), "owner/name", Path("name")), progress)
    assert contents(Path("name")) == FILES
    assert sum(steps) == sum(file.size for file in fetched)
    if not zeros:
        assert next(one for one in fetched if one.name == file.name).received == len(WEIGHTS) - keep


def test_a_full_disk_is_one_sentence_and_keeps_the_part(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    written = fetch.FileIO.write

    def write(part: Any, piece: Any) -> int:
        if part.tell() + len(piece) > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(part, piece)

    monkeypatch.setattr(fetch, "_PIECE_BYTES", 10_000)
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_write_all", write)
        assert "the disk is full" in run("owner/name", code=4).output
    kept = sum(path.stat().st_size for path in Path("name").rglob(".*.part"))
    assert kept >= 90_000
    fetched = json.loads(run("owner/name", "--json").stdout)["files"]
    assert {one["name"]: one["received"] for one in fetched}["high/model.safetensors"] == len(WEIGHTS) - kept


def test_two_downloads_of_one_file_do_not_mix(hub: SmallHub) -> None:
    plan = plan_download(open_hub("huggingface"), "owner/name", Path("name"), include=["config.json"])
    part = fetch.part_of(plan.folder, plan.files[0])
    part.parent.mkdir()
    with part.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another download is writing" in run("owner/name", code=3).output
    run("owner/name")


def test_the_part_of_a_longer_name_is_left_alone(hub: SmallHub) -> None:
    hub.files["config.json.more"] = b"m" * 50
    plan = plan_download(open_hub("huggingface"), "owner/name", Path("name"), include=["config.json.more"])
    part = fetch.part_of(plan.folder, plan.files[0])
    part.parent.mkdir()
    part.write_bytes(b"m" * 49)
    run("owner/name", "--include", "config.json")
    assert part.exists()


def test_a_damaged_part_is_fetched_again(hub: SmallHub) -> None:
    plan = plan_download(open_hub("huggingface"), "owner/name", Path("name"))
    file = next(file for file in plan.files if file.size == len(WEIGHTS))
    part = fetch.part_of(plan.folder, file)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\0" * 200_000)
    part.with_name(f".{Path(file.name).name}.{'0' * 16}.part").write_bytes(b"of another revision")
    run("owner/name")
    assert contents(Path("name")) == FILES


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_download_keeps_its_bytes(hub: SmallHub, end: signal.Signals) -> None:
    hub.files = {"model.safetensors": random.Random(2).randbytes(20_000_000)}
    hub.bytes_per_second = 10_000_000
    command = [sys.executable, "-m", "wan_core", "download", "owner/name", "--quiet"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell's background job ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    while hub.sent < 8_000_000 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(end)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[end], said
    assert ("interrupted; what has arrived stays" in said) == (end != signal.SIGKILL)
    assert not Path("name/model.safetensors").exists()
    kept = sum(path.stat().st_size for path in Path("name").glob(".*.part"))
    assert kept >= 0.95 * min(hub.sent, 8_000_000)
    hub.bytes_per_second = 0
    record = json.loads(run("owner/name", "--json").stdout)
    assert record["received"] == 20_000_000 - kept
    assert contents(Path("name")) == hub.files
