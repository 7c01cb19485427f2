"""``wan verify``: the manifest names every file that is not as it was, and nothing outside the folder is touched."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from wan_core.cli import wan
from wan_core.errors import CheckpointError
from wan_core.hub import (
    MANIFEST_NAME,
    verify_folder,
    write_manifest,
)

FILES = {"config.json": b"{}", "high/model.safetensors": b"a" * 5000, "google/umt5/tokenizer.json": b"tokens"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "model"


def test_an_unchanged_folder_is_fine_and_the_manifest_is_sorted(folder: Path) -> None:
    entries = write_manifest(folder)
    assert {name: entry.size for name, entry in entries.items()} == {name: len(c) for name, c in FILES.items()}
    assert entries["config.json"].sha256 == hashlib.sha256(b"{}").hexdigest()
    lines = (folder / MANIFEST_NAME).read_text().splitlines()
    names = [line[66:] for line in lines if not line.startswith("#")]
    assert names == sorted(FILES)
    assert verify_folder(folder) == entries
    before = (folder / MANIFEST_NAME).read_bytes()
    write_manifest(folder)
    assert (folder / MANIFEST_NAME).read_bytes() == before


def test_one_error_names_everything_that_differs(folder: Path) -> None:
    (folder / "long.bin").write_bytes(b"123")
    write_manifest(folder)
    (folder / "config.json").unlink()
    (folder / "high/model.safetensors").write_bytes(b"a" * 4999)
    (folder / "google/umt5/tokenizer.json").write_bytes(b"tokenz")
    (folder / "long.bin").write_bytes(b"1234")
    (folder / "high/more.safetensors").write_bytes(b"b")
    result = CliRunner().invoke(wan, ["verify", str(folder)])
    assert result.exit_code == 3
    for part in (
        "1 missing (config.json)",
        "1 extra (high/more.safetensors)",
        "1 short (high/model.safetensors)",
        "2 changed (google/umt5/tokenizer.json, long.bin)",
    ):
        assert part in result.output
    assert result.output.count("Error:") == 1


def test_one_flipped_bit_is_found(folder: Path) -> None:
    write_manifest(folder)
    content = bytearray(FILES["high/model.safetensors"])
    content[-1] ^= 1
    (folder / "high/model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"1 changed \(high/model.safetensors\)"):
        verify_folder(folder)


@pytest.mark.parametrize(
    "name", ["a.part", ".b.0123.part", "c.tmp", "d.incomplete", ".cache/huggingface/e.json", ".git/HEAD", ".DS_Store"]
)
def test_temporary_files_are_ignored(folder: Path, name: str) -> None:
    write_manifest(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    verify_folder(folder)
    assert name not in write_manifest(folder)


def test_without_a_manifest_the_error_names_write(folder: Path) -> None:
    result = CliRunner().invoke(wan, ["verify", str(folder)])
    assert (result.exit_code, "--write" in result.output) == (3, True)
    result = CliRunner().invoke(wan, ["verify", str(folder), "--write"])
    assert result.exit_code == 0, result.output
    assert CliRunner().invoke(wan, ["verify", str(folder)]).exit_code == 0


@pytest.mark.parametrize("target", ["file", "folder", "nowhere"])
def test_links_out_of_the_folder_are_refused(folder: Path, target: str) -> None:
    write_manifest(folder)
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"x")
    (folder / "link").symlink_to({"file": outside / "secret", "folder": outside, "nowhere": outside / "none"}[target])
    for check in (verify_folder, write_manifest):
        with pytest.raises(CheckpointError, match="a link out of its folder"):
            check(folder)


def test_links_inside_and_into_the_blobs_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blob = tmp_path / "models--a--b" / "blobs" / "1"
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1")
    (snapshot / "again.safetensors").symlink_to("model.safetensors")
    assert write_manifest(snapshot)["again.safetensors"].size == 7
    verify_folder(snapshot)


@pytest.mark.parametrize(
    "line",
    [
        f"{'0' * 64}  ../outside",
        f"{'0' * 64}  /etc/hostname",
        f"{'0' * 64}  a/../../b",
        f"\\{'0' * 64}  a\\\\b",
        f"{'0' * 63}  a",
        "no hash at all",
        f"{'0' * 64}  config.json\n{'0' * 64}  config.json",
    ],
)
def test_a_manifest_that_is_damaged_or_points_outside_is_refused(folder: Path, line: str) -> None:
    (folder / MANIFEST_NAME).write_text(line + "\n")
    with pytest.raises(CheckpointError, match="write the manifest again"):
        verify_folder(folder)


def test_a_manifest_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / MANIFEST_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="cannot read"):
        verify_folder(folder)


def test_a_pipe_in_the_folder_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="no regular file"):
        write_manifest(folder)


@pytest.mark.parametrize("make", ["file", "nothing", "empty"])
def test_something_else_than_a_folder_of_files(tmp_path: Path, make: str) -> None:
    path = tmp_path / "x"
    if make == "file":
        path.write_bytes(b"x")
    elif make == "empty":
        path.mkdir()
    result = CliRunner().invoke(wan, ["verify", str(path), "--write"])
    assert (result.exit_code, result.output.count("Error:")) == (3, 1)


def test_sha256sum_reads_the_manifest(folder: Path) -> None:
    (folder / "with space.txt").write_bytes(b"x")
    write_manifest(folder)
    check = ["sha256sum", "--strict", "-c", MANIFEST_NAME]
    assert subprocess.run(check, cwd=folder, capture_output=True, check=False).returncode == 0
    (folder / "config.json").write_bytes(b"[]")
    assert subprocess.run(check, cwd=folder, capture_output=True, check=False).returncode == 1


def test_a_manifest_of_sha256sum_is_read(folder: Path) -> None:
    lines = [f"{hashlib.sha256(content).hexdigest()} *{name}" for name, content in FILES.items()]
    (folder / MANIFEST_NAME).write_text("\n".join(lines) + "\n")
    verify_folder(folder)
    (folder / "config.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"1 changed \(config.json\)"):
        verify_folder(folder)


def test_names_cannot_disturb_a_terminal(folder: Path) -> None:
    write_manifest(folder)
    (folder / "\x1b[31mred").write_bytes(b"x")
    with pytest.raises(CheckpointError) as caught:
        verify_folder(folder)
    assert "\x1b" not in str(caught.value)
    with pytest.raises(CheckpointError, match="rename it"):
        write_manifest(folder)
