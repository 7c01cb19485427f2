"""``wan download`` after an interruption: cut connections, killed processes, full disks, damaged caches."""

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from wan_core.hub import verify_folder

from .download_setting import FILES, WEIGHTS, contents, hub, quiet_environment, run
from .small_hub import SmallHub

__all__ = ["hub", "quiet_environment"]  # fixtures

COMMAND = [sys.executable, "-m", "wan_core", "download", "owner/name", "--quiet", "--json", "--from"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ranges", [True, False])
def test_cut_connections_are_gone_on_with(hub: SmallHub, seed: int, ranges: bool) -> None:
    hub.random.seed(seed)
    hub.cut_seed, hub.ranges = seed, ranges
    hub.statuses += [503, 429]
    run("owner/name")
    assert contents(Path("name")) == FILES
    verify_folder("name")


def test_a_hub_that_stays_away_is_given_up(hub: SmallHub) -> None:
    hub.statuses += [500] * 3
    assert "cannot be reached after 3 tries: the server answers with status 500" in run("owner/name", code=3).output
    assert hub.statuses == []
    run("owner/name")


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_list_that_breaks_off_is_asked_for_again(hub: SmallHub, source: str) -> None:
    hub.cut_lists = 2
    run("owner/name", "--from", source)
    assert contents(Path("name")) == FILES


def test_what_a_killed_download_left_goes_and_counts_as_free(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    left = Path("name/.cache/wan-download/.cache/huggingface/download/x.0123.incomplete")
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(200_000))
    usage = shutil.disk_usage(".")._replace(free=150_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    run("owner/name")
    assert not Path("name/.cache/wan-download").exists()
    assert contents(Path("name")) == FILES


def test_two_downloads_of_one_folder_do_not_mix(hub: SmallHub) -> None:
    Path("name/.cache/wan-download").mkdir(parents=True)
    with FileLock("name/.cache/wan-download/.lock"):
        assert "another download is writing into name" in run("owner/name", code=3).output
    run("owner/name")


@pytest.mark.slow
@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_full_disk_is_one_sentence_and_leaves_whole_files(
    hub: SmallHub, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_DOWNLOAD_MAX_RETRIES", "1")
    ended = start(source, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))).communicate()[1]
    assert ended.count("Error:") == 1
    assert "cannot write name/high/model.safetensors" in ended
    assert not Path("name/high/model.safetensors").exists()
    assert Path("name/config.json").exists()
    run("owner/name", "--from", source)
    assert contents(Path("name")) == FILES


def test_bytes_of_another_revision_are_not_gone_on_with(hub: SmallHub) -> None:
    left = Path("name/.cache/wan-download/high/model.safetensors.incomplete")
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(200_000))
    run("owner/name", "--from", "modelscope")
    assert contents(Path("name")) == FILES


def start(source: str, before: Callable[[], object] = lambda: None) -> subprocess.Popen[str]:
    def prepare() -> None:
        # A shell's background job ignores Ctrl-C, and so would its children.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        before()

    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, source], stdout=pipe, stderr=pipe, text=True, preexec_fn=prepare)  # noqa: PLW1509


@pytest.mark.slow
@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_download_keeps_its_whole_files(hub: SmallHub, source: str, end: signal.Signals) -> None:
    """And the file that is under way, too, from ModelScope; from Hugging Face it begins again (docs/download.md)."""
    hub.files = {"a.safetensors": WEIGHTS, "b.safetensors": random.Random(2).randbytes(20_000_000)}
    hub.bytes_per_second = 10_000_000
    process = start(source)
    while hub.sent < 8_000_000 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(end)
    ended = process.communicate(timeout=60)[1]
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[end], ended
    assert ("interrupted; files that are whole stay in name" in ended) == (end != signal.SIGKILL)
    assert not Path("name/b.safetensors").exists()
    kept = sum(path.stat().st_size for path in Path("name/.cache/wan-download").glob("*.incomplete"))
    assert (kept >= 7_000_000) == (source == "modelscope")
    time.sleep(0.3)  # what is on the way to the killed process
    hub.bytes_per_second, hub.sent = 0, 0
    record = json.loads(run("owner/name", "--from", source, "--json").stdout)
    assert {file["name"]: file["state"] for file in record["files"]}["a.safetensors"] == "present"
    assert hub.sent == 20_000_000 - kept
    assert contents(Path("name")) == hub.files
