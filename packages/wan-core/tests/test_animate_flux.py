"""Edited poses: what is asked for by what the video shows, and a tiny FLUX.1 Kontext in a folder of its own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.animate_models import small_flux, write_flux
from wan_core.animate import flux
from wan_core.animate.flux import PoseEditor, check_editor, standard_pose
from wan_core.animate.keypoints import LEFT_ANKLE, LEFT_WRIST, RIGHT_ELBOW, RIGHT_KNEE, PosePoints
from wan_core.errors import CheckpointError


def someone(*seen: int, place: float = 0.5, score: float = 0.8) -> PosePoints:
    body = np.full((20, 3), 0.3)
    body[list(seen)] = (place, place, score)
    hand = np.zeros((21, 3))
    return PosePoints(body=body, left_hand=hand, right_hand=hand, face=np.zeros((69, 3)), width=8, height=8)


def test_legs_in_any_frame_ask_for_a_standing_person() -> None:
    for leg in (RIGHT_KNEE, LEFT_ANKLE):
        prompt = standard_pose([someone(), someone(leg), someone(LEFT_WRIST)], is_wide=False)
        assert "both feet" in prompt
        assert "straight down" in prompt


def test_arms_alone_ask_for_hands() -> None:
    for arm in (RIGHT_ELBOW, LEFT_WRIST):
        prompt = standard_pose([someone(), someone(arm)], is_wide=True)
        assert "Both hands are in the picture" in prompt
        assert "feet" not in prompt
        assert "T-pose" in prompt


@pytest.mark.parametrize(
    "person",
    [someone(), someone(RIGHT_KNEE, score=0.74), someone(LEFT_ANKLE, place=1.01), someone(RIGHT_ELBOW, place=1.2)],
)
def test_what_is_unsure_or_outside_is_not_seen(person: PosePoints) -> None:
    assert standard_pose([person], is_wide=True) == standard_pose([person], is_wide=False)
    assert "face the camera" in standard_pose([person], is_wide=False)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "lacks model_index.json"), ("{", "is damaged"), ("[]", "is a None, not a FluxKontext")]
)
def test_a_folder_without_the_pipeline_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(CheckpointError, match=said):
        check_editor(tmp_path)


@pytest.fixture(scope="module")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux(tmp_path_factory.mktemp("flux"))


@pytest.mark.slow
def test_a_picture_is_edited_by_its_seed(tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flux, "NUM_STEPS", 1)
    check_editor(tiny_flux)
    editor = PoseEditor(tiny_flux, torch.device("cpu"), torch.float32)
    monkeypatch.setattr(type(editor._pipeline), "__call__", small_flux(type(editor._pipeline).__call__))
    picture = Image.new("RGB", (48, 32), (200, 30, 30))
    first, again, other = (np.asarray(editor.edit(picture, "stand", seed)) for seed in (1, 1, 2))
    assert first.shape[1] / first.shape[0] == pytest.approx(1.5, abs=0.1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
