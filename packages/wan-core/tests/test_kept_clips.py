"""Clips that are kept beside a video until it is whole."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wan_core.kept_clips import KeptClips
from wan_core.media import Provenance
from wan_core.tasks import Clip, Components, GenerationRequest, Outline, TaskInputs, TextToVideo

from .tiny_model import Model, small

SHAPE = (1, 2, 3, 4, 5)


@pytest.fixture
def kept(tmp_path: Path) -> KeptClips:
    return KeptClips(tmp_path / "v.mp4", "0123456789abcdef")


def test_what_is_kept_comes_back_as_it_was(kept: KeptClips) -> None:
    latents = torch.randn(SHAPE)
    assert kept.get(0) is None
    kept.put(0, latents)
    kept.put(1, latents + 1)
    found = kept.get(0)
    assert found is not None
    assert torch.equal(found, latents)
    assert kept.count == 2


class InTwo(TextToVideo):
    """A video of two clips of one shape."""

    def num_clips(self, inputs: TaskInputs[Any]) -> int:
        return 2

    def outline(self, inputs: TaskInputs[Any], components: Components, clip: Clip) -> Outline:
        return Outline(latent_shape=(1, *inputs.geometry.latent_shape))


def made_with(kept: KeptClips) -> tuple[Tensor, Model]:
    """The frames of both clips, and the model that made them."""
    model = Model("tiny-t2v")
    model.pipeline.preset = replace(model.preset, task=InTwo())
    inputs = model.pipeline.plan(GenerationRequest(**small()))
    return torch.cat(list(model.pipeline.stream(inputs, kept=kept)), dim=1), model


def test_a_clip_that_is_kept_is_neither_conditioned_nor_denoised(kept: KeptClips) -> None:
    frames, first = made_with(kept)
    assert "dit" in first.log
    again, second = made_with(kept)
    assert torch.equal(again, frames)
    assert (second.log, second.text.asked) == ([], [])


@pytest.mark.parametrize("damage", ["cut off", "of another shape"])
def test_a_damaged_clip_and_one_of_another_shape_are_made_again(kept: KeptClips, damage: str) -> None:
    frames, _ = made_with(kept)
    file = kept.folder / "0001.safetensors"
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:40])
        assert kept.get(1) is None
    else:
        kept.put(1, torch.randn(SHAPE))
    again, model = made_with(kept)
    assert torch.equal(again, frames)
    assert model.log == ["dit"]


def test_nothing_stays_when_the_video_is_whole(kept: KeptClips, tmp_path: Path) -> None:
    kept.remove()  # of a run that kept nothing
    kept.put(0, torch.randn(SHAPE))
    kept.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_is_of_what_decides_on_the_video() -> None:
    def fingerprint(seed: int, device: str) -> str:
        return Provenance(preset="p", settings={"seed": seed}, record={"device": device}).fingerprint()

    assert fingerprint(1, "cpu") == fingerprint(1, "cuda")
    assert fingerprint(1, "cpu") != fingerprint(2, "cpu")
