"""The world of subjects and its judge."""

import numpy as np

from tools.tiny.subjects import (
    COLORS,
    EVALUATION_SEEDS,
    PAIR_SEEDS,
    TEXTURES,
    draw_scene,
    evaluation_scenes,
    looks,
    subjects_in,
    training_scene,
)
from tools.tiny.subjects_detect import judge, see
from tools.tiny.world import SHAPES


def test_a_number_is_always_the_same_scene() -> None:
    first, again, other = training_scene(4), training_scene(4), training_scene(5)
    assert np.array_equal(first.video, again.video)
    assert first.prompt == again.prompt
    assert not np.array_equal(first.video, other.video)
    assert len(first.subjects) == len(first.pictures) == subjects_in(4)


def test_held_back_looks_are_never_trained_and_every_shape_and_texture_has_some() -> None:
    for texture in TEXTURES:
        held, trained = set(looks(texture, held_back=True)), set(looks(texture, held_back=False))
        assert not held & trained
        assert {look.shape for look in held} == {look.shape for look in trained}
    seen = {subject.look for seed in range(100) for subject in training_scene(seed).subjects}
    assert not any(look in looks(look.texture, held_back=True) for look in seen)
    assert len(EVALUATION_SEEDS) == 100
    assert not set(EVALUATION_SEEDS) & set(PAIR_SEEDS)


def test_a_prompt_says_nothing_of_looks() -> None:
    for seed in range(40):
        scene = training_scene(seed)
        words = set(scene.prompt.replace(",", " ").split()) - ({scene.background} if scene.is_named else set())
        assert not words & {*COLORS, *SHAPES, *TEXTURES}


def test_the_judge_is_right_on_drawn_clips_of_one_two_and_three_subjects() -> None:
    for count, seeds in ((1, range(1000, 1020)), (2, range(1000, 1012)), (3, range(1000, 1004))):
        for scene in evaluation_scenes(seeds, count):
            assert set(judge(scene.video, scene).values()) == {1.0}, scene.subjects


def test_another_look_another_motion_or_a_subject_too_few_is_wrong() -> None:
    one, other = (draw_scene(np.random.default_rng(seed), 2, held_back=False) for seed in (1, 3))
    assert not {subject.look for subject in one.subjects} & {subject.look for subject in other.subjects}
    assert judge(other.video, one)["looks"] == 0
    backwards = judge(one.video[::-1], one)
    assert backwards["look"] == 1
    still = [subject.motion == "still" for subject in one.subjects]
    assert backwards["motions"] == np.mean(still)
    halved = one.video.copy()
    halved[:, :, :32] = halved[:, :1, :1]
    assert judge(halved, one)["look"] == 0


def test_an_empty_clip_and_noise_show_nothing() -> None:
    assert see(np.full((5, 64, 64, 3), 15, np.uint8), 1) == []
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    assert all(seen.look is None for seen in see(noise, 1))
