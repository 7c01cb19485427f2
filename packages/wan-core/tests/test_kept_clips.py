"""Clips that are kept beside a video until it is whole."""

from pathlib import Path

import pytest
import torch

from wan_core.kept_clips import KeptClips
from wan_core.media import Provenance

SHAPE = (1, 2, 3, 4, 5)


@pytest.fixture
def kept(tmp_path: Path) -> KeptClips:
    return KeptClips(tmp_path / "v.mp4", "0123456789abcdef")


def test_what_is_kept_comes_back_as_it_was(kept: KeptClips) -> None:
    latents = torch.randn(SHAPE)
    assert kept.get(0, SHAPE) is None
    kept.put(0, latents)
    kept.put(1, latents + 1)
    found = kept.get(0, SHAPE)
    assert found is not None
    assert torch.equal(found, latents)
    assert kept.count == 2


def test_a_damaged_clip_and_one_of_another_shape_are_made_again(kept: KeptClips) -> None:
    kept.put(0, torch.randn(SHAPE))
    assert kept.get(0, (1, 2, 3, 4, 6)) is None
    file = kept.folder / "0000.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    assert kept.get(0, SHAPE) is None


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
