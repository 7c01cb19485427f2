import numpy as np
import pytest

from tools.tiny.detect import detect
from tools.tiny.scores import (
    held_back_clips,
    psnr,
    score_by,
    score_continuations,
    score_vae,
    score_videos,
    write_sheet,
)
from tools.tiny.world import Combination, draw_clip, training_clip


def test_detectors_are_right_on_ground_truth() -> None:
    clips = [training_clip(seed) for seed in range(120)] + held_back_clips(120)
    rates = score_videos([clip.video for clip in clips], clips)
    assert min(rates.values()) >= 99.0, rates


def test_detectors_bear_noise_of_28_db() -> None:
    rng = np.random.default_rng(0)
    clips = held_back_clips(60)
    noisy = [np.clip(c.video + rng.normal(0, 10, c.video.shape), 0, 255).astype(np.uint8) for c in clips]
    assert min(score_videos(noisy, clips).values()) >= 98.0


def test_other_contents_are_not_taken_for_the_described_one() -> None:
    clips = held_back_clips(40)
    rates = score_videos([clip.video for clip in clips[1:] + clips[:1]], clips)
    assert rates["all"] == 0.0


def test_coloured_fragments_are_no_figure() -> None:
    rng = np.random.default_rng(1)
    video = draw_clip(Combination("red", "square", "still", "black"), rng).video.copy()
    video[:, ::4] = (15, 15, 20)
    video[:, :, ::4] = (15, 15, 20)
    seen = detect(video)
    assert (seen.color, seen.shape, seen.motion) == (None, None, None)
    assert seen.background == "black"


@pytest.mark.parametrize("video", [np.zeros((17, 64, 64, 3)), np.full((17, 64, 64, 3), 128)])
def test_an_empty_picture_has_a_background_only(video: np.ndarray) -> None:
    seen = detect(video.astype(np.uint8))
    assert seen.shape is None
    assert seen.background in ("black", "gray")


def test_a_reversed_clip_shows_the_opposite_motion() -> None:
    rng = np.random.default_rng(2)
    for motion, opposite in (("right", "left"), ("up", "down"), ("grow", "shrink"), ("still", "still")):
        clip = draw_clip(Combination("yellow", "cross", motion, "blue"), rng)
        assert detect(clip.video[::-1]).motion == opposite


def test_a_frozen_first_frame_scores_no_motion() -> None:
    clips = [clip for clip in held_back_clips(60) if clip.combination.motion != "still"]
    frozen = [np.repeat(clip.video[:1], 17, axis=0) for clip in clips]
    report = score_continuations(frozen, clips)
    assert report["first_frame_psnr"] == 99.0
    assert report["motion"] == 0.0
    assert report["shape"] >= 99.0


def test_reports_of_a_perfect_and_a_dim_vae() -> None:
    clips = held_back_clips(20)
    assert score_vae(lambda video: video, clips)["psnr"] == 99.0
    dim = score_vae(lambda video: (video * 0.95).astype(np.uint8), clips)
    assert 25 < dim["worst_motion_psnr"] <= dim["psnr"] < 45
    assert psnr(np.zeros(9, np.uint8), np.full(9, 255, np.uint8)) == 0.0


def test_rates_by_motion_and_the_write_sheet(tmp_path) -> None:
    clips = held_back_clips(9)
    videos = [clip.video for clip in clips]
    assert set(score_by(videos, clips, "motion").values()) == {100.0}
    write_sheet(videos, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000
