"""Commands that die before each of their file operations: converting, merging, training, preparing, a COLMAP scene."""

import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pi3.exports import write_colmap
from pi3.scene import Scene
from selfforcing_unianimate.cli import sfu
from selfforcing_unianimate.distillation.targets import COMMAND, VERSION
from tests.animate_models import HEIGHT, WIDTH, person, write_frames, write_models
from tests.crash_points import MOST, content, crash_everywhere, dies_at
from tools.tiny.clips import write_clips
from wan_core.animate import persons, prepare, tracking
from wan_core.animate.face import crop_face
from wan_core.animate.sam2 import Prompt, chunks
from wan_core.cli import wan
from wan_core.training import CheckpointFolder, write_cache

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


@dataclass(frozen=True)
class Training:
    """A command that trains, but for its output and its steps; what it leaves, and at which file operations it dies."""

    command: click.Group
    words: Sequence[object]
    result: str
    every: int = 1

    def start(self, folder: Path, steps: int) -> None:
        words = [*self.words, "--save-every", 1, "--keep", 1, "--quiet", "--output", folder, "--steps", steps]
        self.command.main([str(word) for word in words], standalone_mode=False)


def lora_on_clips(folder: Path) -> Training:
    data = write_clips(folder, 2)
    words = ["train", "--model", "tiny-t2v", "--data", data, "--lora-rank", 1, "--num-frames", 5, "--size", "32*32"]
    return Training(wan, [*words, "--held-out", 0], "lora.safetensors")


def student_under_scores(folder: Path) -> Training:
    """Distillation, of which every seventh point is enough: it takes a second to come to one."""

    def encode(number: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(number)
        shapes = {"latents": (24, 2, 2, 3), "channels": (28, 2, 2, 3), "context": (3, 96), "empty": (1, 96)}
        made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return {**made, "states": made["latents"][None]}

    settings = {"made_by": COMMAND, "version": VERSION, "timesteps": [1000.0], "seen": [1000.0]}
    write_cache(folder, 2, encode, {**settings, "prompts": ["a", "b"], "seeds": [0, 1]})
    words = ["distill", "--stage", "dmd", "--targets", folder, "--teacher", TINY / "t2v", "--critic-steps", 1]
    return Training(
        sfu, [*words, "--denoising-steps", 1000], "model/student/diffusion_pytorch_model.safetensors", every=7
    )


def training_dies_everywhere(place: Path, make: Callable[[Path], Training]) -> None:
    training = make(place / "data")
    begun = place / "begun"
    training.start(begun, 1)

    def work(folder: Path) -> None:
        training.start(folder, 3)

    whole = shutil.copytree(begun, place / "whole")
    work(whole)
    for number in range(0, MOST, training.every):
        folder = shutil.copytree(begun, place / str(number))
        died = dies_at(lambda folder=folder: work(folder), number)
        checkpoints = CheckpointFolder(folder / "checkpoints")
        steps = checkpoints.steps()
        assert steps
        for step in steps:
            assert set(load_file(checkpoints.path(step) / "model.safetensors"))
        if died:
            work(folder)
        assert (folder / training.result).read_bytes() == (whole / training.result).read_bytes(), number
        found, wanted = (load_file(each / "checkpoints/step-00000003/training.safetensors") for each in (folder, whole))
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert not [path for path in folder.rglob(".*") if path.suffix in {".part", ".old"}]
        shutil.rmtree(folder)
        if not died:
            return
    raise AssertionError("there is no end")


@pytest.mark.slow
@pytest.mark.parametrize("make", [lora_on_clips, student_under_scores])
def test_training_goes_on_from_every_point_and_never_has_fewer_checkpoints(
    tmp_path: Path, make: Callable[[Path], Training]
) -> None:
    # Who has simulated a GPU has threads of autograd for it, and cannot fork and train any more.
    fresh = multiprocessing.get_context("spawn").Process(target=training_dies_everywhere, args=(tmp_path, make))
    fresh.start()
    fresh.join()
    assert fresh.exitcode == 0


class Boxes:
    """In place of SAM 2: the box of each prompt's points."""

    def masks(self, frames: Iterable[np.ndarray], length: int, prompts: Mapping[int, Prompt]) -> Iterator[np.ndarray]:
        (left, top), (right, bottom) = prompts[0].points.min(axis=0), prompts[0].points.max(axis=0)
        for frame in frames:
            mask = np.zeros(frame.shape[:2], dtype=np.uint8)
            mask[top:bottom, left:right] = 1
            yield mask


@pytest.mark.slow
def test_a_prepared_folder_holds_the_old_or_the_new_of_each_file_and_goes_on_from_every_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = write_models(tmp_path / "models")
    (models / "sam2").mkdir()
    (models / "sam2/sam2_hiera_large.pt").write_bytes(b"weights")
    video = write_frames(tmp_path / "video.mp4", [person(30, 40), person(32, 41)])
    Image.fromarray(person(36, 34)).save(tmp_path / "image.png")
    monkeypatch.setattr(prepare, "check_sam2", lambda place: None)
    monkeypatch.setattr(prepare.Preparation, "_tracker", lambda self: Boxes())
    monkeypatch.setattr(prepare, "crop_face", partial(crop_face, side=64))
    monkeypatch.setattr(persons, "PART", 1)
    monkeypatch.setattr(tracking, "chunks", lambda count: [chunks(1)[0], range(1, 2)])
    words = ["--ckpt_path", models, "--video_path", video, "--refer_path", tmp_path / "image.png", "--fps", -1]
    words += ["--resolution_area", WIDTH, HEIGHT, "--replace_flag", "--quiet", "--device", "cpu"]

    def work(folder: Path, *more: object) -> None:
        command("prepare-animate", *words, "--save_path", folder, *more)

    begun = tmp_path / "begun"
    work(begun, "--iterations", 0)  # another mask and scene, which are replaced
    whole = shutil.copytree(begun, tmp_path / "whole")
    work(whole, "--overwrite")
    old, new = content(begun), content(whole)
    assert {name for name in new if old[name] != new[name]} == {"src_bg.mp4", "src_mask.mp4"}
    for number in range(MOST):
        folder = tmp_path / str(number)
        if number % 2:  # from nothing, or from another folder
            shutil.copytree(begun, folder)
        died = dies_at(lambda folder=folder: work(folder, "--overwrite"), number)
        found = content(folder)
        assert all(found[name] in (old[name], new[name]) for name in found), number
        if died:
            work(folder, "--overwrite")
        assert content(folder) == new, number
        assert not list(folder.glob(".*"))
        shutil.rmtree(folder)
        if not died and not number % 2:
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
