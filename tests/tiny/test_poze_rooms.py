"""The 3D-guided tiny model: its clips, its metrics, and that what is bundled is what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from pi3 import load_pi3
from poze import TINY_POZE
from poze.presets import WEIGHTS
from tools.tiny.poze_evaluation import score_clip, shown_interval
from tools.tiny.room_clips import EVALUATION_SEEDS, MOVES, TRAINING_SEEDS, RoomClip, opposite, room_clip
from tools.tiny.rooms import EVALUATION_SEEDS as PI3_EVALUATION_SEEDS
from tools.tiny.scores import psnr
from tools.tiny.vae_stage import to_pixels, to_video
from wan_core.loading import load_pipeline

FILES = ("dit/model.safetensors", "vae.safetensors", "adapter.safetensors")


@pytest.fixture(scope="module")
def clip() -> RoomClip:
    """A clip of neither training nor evaluation."""
    return room_clip(9_700_000)


def test_a_seed_always_gives_the_same_clip(clip: RoomClip) -> None:
    again = room_clip(9_700_000)
    assert np.array_equal(again.video, clip.video)
    assert np.array_equal(again.poses, clip.poses)


def test_training_never_sees_what_is_judged() -> None:
    assert not set(TRAINING_SEEDS) & set(EVALUATION_SEEDS)
    assert not set(TRAINING_SEEDS) & set(PI3_EVALUATION_SEEDS)
    assert len(EVALUATION_SEEDS) >= 50


def test_a_clip_read_backwards_is_the_opposite_move(clip: RoomClip) -> None:
    back = opposite(clip)
    assert back.move != clip.move
    assert opposite(back).move == clip.move
    assert np.array_equal(back.video[0], clip.video[-1])
    assert set(MOVES) == {opposite(room_clip(seed, smooth=1)).move for seed in range(6)}


def test_the_metrics_prefer_the_true_move(clip: RoomClip) -> None:
    pi3 = load_pi3()
    true, wrong = score_clip(clip.video, clip, pi3), score_clip(opposite(clip).video, clip, pi3)
    assert all(true[name] < wrong[name] for name in ("point_error", "reprojection", "warp"))
    assert true["psnr"] > wrong["psnr"]


def test_an_interval_is_shown_around_its_mean() -> None:
    assert shown_interval([3.0] * 5) == "3.000 [3.000, 3.000]"
    assert shown_interval([1.0, 2.0, 3.0, 4.0]).startswith("2.500 [1.")


def test_the_bundled_weights_are_small_and_tell_their_scores() -> None:
    assert sum(Path(WEIGHTS / name).stat().st_size for name in FILES) <= 3_000_000
    for name in FILES:
        with safe_open(WEIGHTS / name, "pt") as file:
            metadata = file.metadata()
        assert "poze_train.py" in metadata["recipe"]
        assert json.loads(metadata["scores"])


def test_the_bundled_decoder_shows_rooms(clip: RoomClip) -> None:
    pipeline = load_pipeline(TINY_POZE)
    with torch.inference_mode(), pipeline.components.vae.active() as vae:
        decoded = vae.decode(vae.encode(to_pixels([clip.video[:5]])))
    assert psnr(to_video(decoded[0]), clip.video[:5]) > 20
