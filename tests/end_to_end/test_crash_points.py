"""Commands that die before each of their file operations: converting, merging, training, a scene for COLMAP."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pi3.exports import write_colmap
from pi3.scene import Scene
from tests.crash_points import MOST, content, crash_everywhere, dies_at
from tools.tiny.clips import write_clips
from wan_core.cli import wan
from wan_core.training import CheckpointFolder

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "packages/wan-core/src/wan_core/weights/tiny"
WARM = ROOT / "tests/data/tiny_warm.safetensors"


def command(*words: object) -> None:
    wan.main([str(word) for word in words], standalone_mode=False)


def stale(folder: Path) -> None:
    """A model and a file that were there before."""
    (folder / "out").mkdir()
    (folder / "out/config.json").write_text("{}")
    (folder / "out/diffusion_pytorch_model.safetensors").write_bytes(b"old")
    (folder / "out.safetensors").write_bytes(b"old")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["convert", TINY / "t2v", "out", "--to", "diffusers", "--overwrite"],
        ["convert", TINY / "vae.safetensors", "out.safetensors", "--overwrite"],
        ["merge-lora", TINY / "t2v", "out", "--lora", WARM, "--overwrite"],
    ],
)
def test_converted_and_merged_models_are_the_old_or_the_new(tmp_path: Path, words: list[object]) -> None:
    def work(folder: Path) -> None:
        command(*(folder / word if isinstance(word, str) and word.startswith("out") else word for word in words))

    assert crash_everywhere(tmp_path, stale, work) >= 3


@pytest.mark.slow
def test_training_goes_on_from_every_point_and_never_has_fewer_checkpoints(tmp_path: Path) -> None:
    data = write_clips(tmp_path / "data", 2)
    words = ["train", "--model", "tiny-t2v", "--data", data, "--lora-rank", 1, "--num-frames", 5, "--size", "32*32",
             "--save-every", 1, "--keep", 1, "--held-out", 0, "--quiet"]  # fmt: skip
    begun = tmp_path / "begun"
    command(*words, "--output", begun, "--steps", 1)

    def work(folder: Path) -> None:
        command(*words, "--output", folder, "--steps", 3)

    whole = shutil.copytree(begun, tmp_path / "whole")
    work(whole)
    for number in range(MOST):
        folder = shutil.copytree(begun, tmp_path / str(number))
        died = dies_at(lambda folder=folder: work(folder), number)
        checkpoints = CheckpointFolder(folder / "checkpoints")
        steps = checkpoints.steps()
        assert steps
        for step in steps:
            assert set(load_file(checkpoints.path(step) / "model.safetensors"))
        if died:
            work(folder)
        assert (folder / "lora.safetensors").read_bytes() == (whole / "lora.safetensors").read_bytes(), number
        found, wanted = (load_file(each / "checkpoints/step-00000003/training.safetensors") for each in (folder, whole))
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert not [path for path in folder.rglob(".*") if path.suffix in {".part", ".old"}]
        shutil.rmtree(folder)
        if not died:
            return
    raise AssertionError("there is no end")


def scene(count: int, level: int) -> Scene:
    shape = (count, 4, 6)
    points = np.ones((*shape, 3), np.float32)
    return Scene(
        images=np.full((*shape, 3), level, np.uint8), points=points, local_points=points,
        confidence=np.ones(shape, np.float32), keep=np.ones(shape, bool),
        poses=np.tile(np.eye(4, dtype=np.float32), (count, 1, 1)),
        intrinsics=np.tile(np.eye(3, dtype=np.float32), (count, 1, 1)), names=tuple(f"{n:04d}" for n in range(count)),
    )  # fmt: skip


@pytest.mark.parametrize("counts", [(2, 3), (3, 2)])
def test_a_scene_for_colmap_is_the_old_or_the_new(tmp_path: Path, counts: tuple[int, int]) -> None:
    def prepare(folder: Path) -> None:
        write_colmap(scene(counts[0], 10), folder / "colmap")
        (folder / "colmap/notes.txt").write_text("kept")

    assert crash_everywhere(tmp_path, prepare, lambda folder: write_colmap(scene(counts[1], 90), folder / "colmap")) > 8
    names = content(tmp_path / "whole")
    assert sum(name.startswith("colmap/images/") for name in names) == counts[1]
    assert "colmap/notes.txt" in names
