"""Bad weights and bad places for them: one clear sentence, the right exit code, no traceback, nothing left behind."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

Run = Callable[..., Result]
Prepare = Callable[[Path], None]

INDEX = "diffusion_pytorch_model.safetensors.index.json"


def nothing(folder: Path) -> None:
    """The good checkpoint as it is."""


def without(name: str) -> Prepare:
    return lambda folder: (folder / "w" / name).unlink()


def cut(name: str) -> Prepare:
    def prepare(folder: Path) -> None:
        path = folder / "w" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return prepare


def replaced(name: str, content: bytes) -> Prepare:
    def prepare(folder: Path) -> None:
        (folder / "w" / name).write_bytes(content)

    return prepare


def changed(name: str, old: str, new: str) -> Prepare:
    def prepare(folder: Path) -> None:
        path = folder / "w" / name
        path.write_text(path.read_text().replace(old, new))

    return prepare


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "w").glob("diffusion_pytorch_model-*.safetensors"))


def mixed_shards(folder: Path) -> None:
    """The second shard is that of another model."""
    shutil.copy(shards(folder)[0], shards(folder)[1])


def missing_shard(folder: Path) -> None:
    shards(folder)[1].unlink()


def shards_without_index(folder: Path) -> None:
    missing_shard(folder)
    (folder / "w" / INDEX).unlink()


def outside_shard(folder: Path) -> None:
    path = folder / "w" / INDEX
    content = json.loads(path.read_text())
    content["weight_map"]["head.head.bias"] = "../secret.safetensors"
    path.write_text(json.dumps(content))


def wider_tensor(folder: Path) -> None:
    for path in shards(folder):
        tensors = load_file(path)
        if "head.head.bias" in tensors:
            save_file(tensors | {"head.head.bias": torch.zeros(7)}, path)


def with_tensor(name: str) -> Prepare:
    def prepare(folder: Path) -> None:
        path = shards(folder)[0]
        save_file(load_file(path) | {name: torch.zeros(7)}, path)
        (folder / "w" / INDEX).unlink()

    return prepare


def two_vaes(folder: Path) -> None:
    shutil.copy(folder / "w" / "Wan2.2_VAE.pth", folder / "w" / "other_vae.pth")


def pickled_code(folder: Path) -> None:
    torch.save({"a": torch.ones(1), "run": Path("x")}, folder / "w" / "Wan2.2_VAE.pth")


def taken(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "mine.txt").write_text("mine")


def taken_file(folder: Path) -> None:
    (folder / "out.safetensors").write_text("mine")


def below_a_file(folder: Path) -> None:
    (folder / "out").write_text("mine")


def unnamed_experts(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / "pair" / name).mkdir(parents=True)
        for path in (folder / "w").iterdir():
            if path.name.startswith(("diffusion", "config")):
                shutil.copy(path, folder / "pair" / name)


def scale_without_weight(folder: Path) -> None:
    (folder / "w" / INDEX).unlink()
    for path in shards(folder):
        path.unlink()
    stored = {f"blocks.0.self_attn.q.{name}": torch.ones(()) for name in ("scale_weight", "bias")}
    save_file(stored, folder / "w" / "fp8.safetensors")


def cut_gguf(folder: Path) -> None:
    (folder / "w.gguf").write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 16)


def text_file(folder: Path) -> None:
    (folder / "w.safetensors").write_text("not weights at all")


def lfs_pointer(folder: Path) -> None:
    (folder / "w.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def web_page(folder: Path) -> None:
    (folder / "w.safetensors").write_text("<!DOCTYPE html><html>404</html>")


def empty_file(folder: Path) -> None:
    (folder / "w.safetensors").touch()


def only_lora(folder: Path) -> None:
    layer = "diffusion_model.blocks.0.self_attn.q"
    tensors = {f"{layer}.lora_A.weight": torch.ones(4, 9), f"{layer}.lora_B.weight": torch.ones(9, 4)}
    save_file(tensors, folder / "lora.safetensors")


def empty_folder(folder: Path) -> None:
    (folder / "none").mkdir()


CONVERT, INSPECT = ["convert", "{tmp}/w", "{tmp}/out"], ["inspect", "{tmp}/w"]

# name: (what is wrong, arguments after `wan`, exit code, words that the message must have); {tmp}/w is a good ti2v-5B.
CASES: dict[str, tuple[Prepare, list[str], int, tuple[str, ...]]] = {
    "inspect nothing": (nothing, ["inspect", "{tmp}/absent"], 3, ("absent", "No such file")),
    "inspect an empty folder": (empty_folder, ["inspect", "{tmp}/none"], 3, ("no weights in", ".safetensors")),
    "inspect text": (text_file, ["inspect", "{tmp}/w.safetensors"], 3, ("no weights that we know", "GGUF")),
    "inspect an empty file": (empty_file, ["inspect", "{tmp}/w.safetensors"], 3, ("empty (0 bytes)",)),
    "inspect an LFS pointer": (lfs_pointer, ["inspect", "{tmp}/w.safetensors"], 3, ("Git LFS pointer", "git lfs pull")),
    "inspect a web page": (web_page, ["inspect", "{tmp}/w.safetensors"], 3, ("web page", "download")),
    "inspect a damaged GGUF": (cut_gguf, ["inspect", "{tmp}/w.gguf"], 3, ("w.gguf", "announces")),
    "inspect a cut shard": (
        cut("diffusion_pytorch_model-00002-of-00003.safetensors"), INSPECT, 3, ("00002", "cut off")),
    "inspect a missing shard": (missing_shard, INSPECT, 3, ("3 shards and 1 are missing", "00002")),
    "inspect a cut pickle": (cut("Wan2.2_VAE.pth"), INSPECT, 3, ("Wan2.2_VAE.pth", "cut off")),
    "inspect a pickle with code": (pickled_code, INSPECT, 3, ("could run code", "not loaded")),
    "inspect without a path": (nothing, ["inspect"], 2, ("Missing argument",)),
    "convert nothing": (nothing, ["convert", "{tmp}/absent", "{tmp}/out"], 3, ("absent", "No such file")),
    "convert an empty folder": (empty_folder, ["convert", "{tmp}/none", "{tmp}/out"], 3, ("no weights in",)),
    "convert without an output": (nothing, ["convert", "{tmp}/w"], 2, ("Missing argument 'OUT'",)),
    "unknown dtype": (nothing, [*CONVERT, "--dtype", "int3"], 2, ("int3", "bfloat16")),
    "unknown layout": (nothing, [*CONVERT, "--to", "onnx"], 2, ("onnx", "diffusers")),
    "shards of no size": (nothing, [*CONVERT, "--shard-size", "0GB"], 2, ("0GB", "5GB")),
    "shards of an unknown unit": (nothing, [*CONVERT, "--shard-size", "3 potatoes"], 2, ("potatoes", "500MB")),
    "output inside the source": (nothing, ["convert", "{tmp}/w", "{tmp}/w/new"], 2, ("part of the source", "outside")),
    "output is the source": (nothing, ["convert", "{tmp}/w", "{tmp}/w", "--overwrite"], 2, ("part of the source",)),
    "source inside the output": (
        nothing, ["convert", "{tmp}/w/Wan2.2_VAE.pth", "{tmp}/w", "--overwrite"], 2, ("part of the source",)),
    "output is taken": (taken, CONVERT, 2, ("exists already", "--overwrite")),
    "output file is taken": (
        taken_file, ["convert", "{tmp}/w/Wan2.2_VAE.pth", "{tmp}/out.safetensors"], 2, ("exists already",)),
    "output below a file": (below_a_file, ["convert", "{tmp}/w", "{tmp}/out/new"], 4, ("out/new", "no folder")),
    "a file for a whole model": (nothing, ["convert", "{tmp}/w", "{tmp}/o.safetensors"], 2, ("3 networks", "folder")),
    "a folder for a single file": (
        nothing, ["convert", "{tmp}/w/Wan2.2_VAE.pth", "{tmp}/out", "--to", "single"], 2, (".safetensors",)),
    "a missing shard": (missing_shard, CONVERT, 3, ("3 shards and 1 are missing", "00002")),
    "shards without index": (shards_without_index, CONVERT, 3, ("lacks shards 2 of 3",)),
    "shards of two models": (mixed_shards, CONVERT, 3, ("in two shards", "different models")),
    "a shard elsewhere": (outside_shard, CONVERT, 3, ("../secret.safetensors", "refused")),
    "an index that is no JSON": (replaced(INDEX, b"{"), CONVERT, 3, (INDEX, "no JSON")),
    "a cut shard": (cut("diffusion_pytorch_model-00001-of-00003.safetensors"), CONVERT, 3, ("00001", "cut off")),
    "a cut pickle": (cut("models_t5_umt5-xxl-enc-bf16.pth"), CONVERT, 3, ("models_t5", "cut off")),
    "a pickle with code": (pickled_code, CONVERT, 3, ("could run code", "safetensors")),
    "a tensor of another shape": (wider_tensor, CONVERT, 3, ("of another shape", "head.head.bias [7]")),
    "a network with more tensors": (with_tensor("tail.norm"), CONVERT, 3, ("unexpected: tail.norm",)),
    "a model nearly ours": (with_tensor("face_adapter.norm"), CONVERT, 3, ("is Wan-Animate, which needs pose and",)),
    "the config of another model": (changed("config.json", '"dim": 64', '"dim": 128'), CONVERT, 3, ("dim is 128",)),
    "a config with absurd dims": (changed("config.json", '"dim": 64', '"dim": 1e18'), CONVERT, 3, ("config.json",)),
    "a config that is no JSON": (replaced("config.json", b"["), CONVERT, 3, ("config.json", "no JSON")),
    "two VAEs": (two_vaes, CONVERT, 3, ("the VAE 2 times", "other_vae.pth")),
    "two transformers without names": (
        unnamed_experts, ["convert", "{tmp}/pair", "{tmp}/out"], 3, ("high-noise expert", "'high' and 'low'")),
    "a LoRA alone": (only_lora, ["convert", "{tmp}/lora.safetensors", "{tmp}/out"], 3, ("no network",)),
    "a LoRA that is not there": (nothing, [*CONVERT, "--lora", "{tmp}/none.safetensors"], 2, ("none.safetensors",)),
    "a LoRA for another width": (
        only_lora, [*CONVERT, "--lora", "{tmp}/lora.safetensors"], 3, ("lora.safetensors",)),
    "scales without weights": (
        scale_without_weight, ["convert", "{tmp}/w/fp8.safetensors", "{tmp}/o.safetensors"], 3,
        ("1 scales have no weight", "fetch it again")),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, checkpoint: Callable[[str], Path]) -> Path:
    shutil.copytree(checkpoint("ti2v-5B"), tmp_path / "w")
    return tmp_path


def check(result: Result, exit_code: int, words: tuple[str, ...]) -> None:
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    for word in words:
        assert word in " ".join(result.output.split()), result.output


@pytest.mark.parametrize("name", CASES)
def test_bad_weights_are_one_clear_sentence(name: str, run: Run, folder: Path) -> None:
    prepare, arguments, exit_code, words = CASES[name]
    prepare(folder)
    before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
    result = run(*(word.format(tmp=folder) for word in arguments))
    check(result, exit_code, words)
    assert {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")} == before


def test_a_full_disk_leaves_nothing(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    before = sorted(folder.rglob("*"))
    check(run("convert", folder / "w", folder / "out"), 4, ("the disk is full", "free some space"))
    assert sorted(folder.rglob("*")) == before


def test_a_full_disk_keeps_what_was_to_be_replaced(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken(folder)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    check(run("convert", folder / "w", folder / "out", "--overwrite"), 4, ("the disk is full",))
    assert [path.name for path in (folder / "out").iterdir()] == ["mine.txt"]


def test_too_small_a_disk_is_told_before_anything_is_written(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    check(run("convert", folder / "w", folder / "out"), 4, ("needs", "1000 bytes are free"))
    assert not (folder / "out").exists()


def test_a_read_only_place_is_told(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refused)
    check(run("convert", folder / "w", folder / "out"), 4, ("permission denied", "folder that you may write to"))
    assert not (folder / "out").exists()


def test_an_interruption_leaves_nothing(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    before = sorted(folder.rglob("*"))
    result = run("convert", folder / "w", folder / "out")
    assert result.exit_code == 130, result.output
    assert sorted(folder.rglob("*")) == before
