"""The bundled teacher and student of stick persons: pictures, poses and skeletons of small tokens."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from selfforcing_unianimate.presets import TINY_SFU, TINY_UNIANIMATE
from selfforcing_unianimate.teacher import PoseRequest
from wan_core import RequestError
from wan_core.checkpoints import read_weights
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.media import read_video
from wan_core.pipeline import Pipeline
from wan_core.tasks import Clip

POSE = Path(__file__).parents[3] / "tests/data/person.npz"
FEW = {"pose": POSE, "num_frames": 5, "num_inference_steps": 1, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def teacher() -> Pipeline:
    return load_pipeline(TINY_UNIANIMATE, options=RuntimeOptions(device="cpu", dtype="float32", offload=False))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 64), (200, 30, 60)).save(tmp_path / "who.png")
    return tmp_path / "who.png"


def test_skeletons_are_as_large_as_the_tokens_want_them_and_no_picture_is_zero(teacher: Pipeline) -> None:
    inputs = teacher.check(teacher.plan(PoseRequest(prompt="p", **FEW)))
    assert inputs.skeletons.frames.shape == (3, 5, 128, 128)  # type: ignore[attr-defined]
    made = teacher.preset.task.condition(inputs, teacher.components, Clip())
    assert made.positive.add_condition.shape == (1, 2, 64, 128)
    assert made.positive.channel_concat.shape == (1, 28, 2, 8, 8)
    assert not made.positive.channel_concat.any()


def test_a_picture_is_seen_and_needs_a_skeleton_of_its_own_or_none(teacher: Pipeline, picture: Path) -> None:
    with pytest.raises(RequestError, match="pose_only"):
        teacher.plan(PoseRequest(prompt="p", image=picture, **FEW))
    plain = PoseRequest(prompt="p", seed=1, **FEW)
    shown = replace(plain, image=picture, pose_mode="pose_only")
    videos = [teacher.generate(each).frames for each in (plain, shown)]
    assert not torch.allclose(*videos, atol=1e-3)


def test_both_videos_have_one_height_where_skeletons_are_larger(teacher: Pipeline, picture: Path) -> None:
    both = picture.with_name("both.mp4")
    wanted = PoseRequest(prompt="p", image=picture, pose_mode="pose_only", side_by_side=both, **FEW)
    teacher.generate(wanted)
    assert read_video(both).frames.shape == (5, 3, 64, 192)


def test_persons_are_no_unknown_word_and_dogs_are(teacher: Pipeline) -> None:
    plain, dog = (
        teacher.prompt_notes(teacher.plan(PoseRequest(prompt=f"a green {who} moves on a black background", **FEW)))
        for who in ("person", "dog")
    )
    assert plain == []
    assert "tiny-unianimate has no word for 'dog'; it draws a person" in dog[0]


def test_a_second_video_needs_the_picture() -> None:
    with pytest.raises(RequestError, match="--image"):
        PoseRequest(prompt="p", side_by_side=Path("both.mp4"), **FEW).validate()


@pytest.mark.parametrize("preset", [TINY_SFU, TINY_UNIANIMATE])
def test_files_tell_how_they_were_made_and_how_good_they_are(preset: object) -> None:
    path = Path(preset.part("dit").file)  # type: ignore[attr-defined]
    metadata = read_weights(path).metadata
    assert "tools/tiny/distill.py" in metadata["recipe"]
    assert '"pck_0.1"' in metadata["scores"]
    assert not any("lora" in name for name in read_weights(path))
