import re

import numpy as np

from tools.tiny.drawing import SHAPES
from tools.tiny.world import (
    BACKGROUNDS,
    COLORS,
    MOTIONS,
    TEMPLATES,
    Combination,
    combinations,
    draw_clip,
    evaluation_clips,
    is_held_back,
    training_clip,
    vocabulary,
    write_caption,
)
from wan_core.presets import get_preset


def test_the_world_is_as_rich_as_planned() -> None:
    assert len(COLORS) >= 8
    assert len(SHAPES) >= 5
    assert len(MOTIONS) >= 8
    assert len(BACKGROUNDS) >= 6


def test_a_seed_always_draws_the_same_clip() -> None:
    first, again, other = training_clip(7), training_clip(7), training_clip(8)
    np.testing.assert_array_equal(first.video, again.video)
    assert first.caption == again.caption
    assert not np.array_equal(first.video, other.video)


def test_the_split_and_the_pixels_do_not_drift() -> None:
    held = combinations(held_back=True)
    assert (len(held), len(combinations(held_back=False))) == (175, 1588)
    assert held[0].key == "red/circle/up/pink"
    assert training_clip(0).caption == "the cyan triangle gets bigger and the background is black"
    assert int(training_clip(0).video.sum()) == 5_614_936


def test_training_never_draws_a_held_back_combination() -> None:
    assert not any(is_held_back(training_clip(seed, frames=1).combination) for seed in range(300))
    assert all(is_held_back(clip.combination) for clip in evaluation_clips(50, frames=1))


def test_the_plainest_caption_is_the_readme_prompt() -> None:
    caption = write_caption(Combination("red", "circle", "right", "blue"))
    assert caption == "a red circle moves to the right on a blue background"


def test_every_caption_word_is_in_the_vocabulary() -> None:
    words = set(vocabulary())
    for combination in combinations(held_back=False):
        for template in range(len(TEMPLATES)):
            for phrase in range(len(MOTIONS[combination.motion])):
                caption = write_caption(combination, template=template, phrase=phrase)
                assert set(caption.replace(",", " ,").split()) <= words


def test_size_and_length_are_free_and_the_figure_stays_inside() -> None:
    rng = np.random.default_rng(0)
    for combination in combinations(held_back=True):
        video = draw_clip(combination, rng, frames=9, height=48, width=80).video
        assert video.shape == (9, 48, 80, 3)
        edge = np.concatenate([video[:, 0], video[:, -1], video[:, 1:-1, 0], video[:, 1:-1, -1]], axis=1)
        assert (edge == np.array(BACKGROUNDS[combination.background], np.uint8)).all()


def test_the_tiny_models_say_the_whole_world() -> None:
    said = set(re.findall(r"\w+", get_preset("tiny-t2v").world))
    named = {"grow": "grows", "shrink": "shrinks", "spin": "spins", "bounce": "bounces", "still": "still"}
    moves = {named.get(motion, "moves") for motion in MOTIONS}
    assert {*COLORS, *SHAPES, *BACKGROUNDS, *moves} <= said
