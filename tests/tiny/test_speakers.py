"""The speaker world and its judge: sounds that are held back, mouths that follow them, colours that are named."""

from itertools import islice

import numpy as np
import pytest

from tools.tiny.speaker_judge import BARS, correlation, judge
from tools.tiny.speakers import (
    EVALUATION_SECONDS,
    FPS,
    RATE,
    draw_voice,
    evaluation_speeches,
    faces,
    loudness,
    openings,
    picture_of,
    render,
    training_speech,
)


def test_a_seed_draws_the_same_speech() -> None:
    one, other = training_speech(3), training_speech(3)
    assert one.face == other.face
    assert np.array_equal(one.waveform, other.waveform)


def test_held_back_sounds_and_looks_are_never_trained_on() -> None:
    held = list(evaluation_speeches())
    assert len(held) == 50
    assert not {speech.face for speech in held} & set(faces(held_back=False))
    trained = [training_speech(seed).waveform[:1000] for seed in range(8)]
    assert all(not np.array_equal(speech.waveform[:1000], other) for speech in held for other in trained)
    assert all(len(speech.waveform) == EVALUATION_SECONDS * RATE for speech in held)


def test_a_voice_stays_within_full_scale_and_pauses() -> None:
    voice = draw_voice(np.random.default_rng(5), 5.0)
    loud = loudness(voice, 5 * FPS)
    assert np.abs(voice).max() <= 1
    assert loud.max() > 1.4
    assert loud.min() < 0.2


def test_loudness_is_that_around_a_frame_by_that_of_the_whole() -> None:
    waveform = np.zeros(RATE, np.float32)
    waveform[RATE // 2 - 500 : RATE // 2 + 500] = 0.5
    loud = loudness(waveform, FPS)
    assert loud[FPS // 2] == pytest.approx((1000 / RATE) ** -0.5, rel=1e-4)
    assert loud[[0, 6, 10]].max() == 0


def test_loudness_of_a_louder_recording_is_the_same() -> None:
    voice = draw_voice(np.random.default_rng(6), 1.0)
    assert np.allclose(loudness(voice, FPS), loudness(0.25 * voice, FPS), rtol=1e-4)


def test_behind_the_end_of_a_sound_the_mouth_is_shut() -> None:
    assert openings(draw_voice(np.random.default_rng(7), 1.0), 2 * FPS)[FPS + 1 :].max() == 0


@pytest.mark.parametrize("held_back", [True, False])
def test_the_judge_names_the_colours_of_every_drawn_face(held_back: bool) -> None:
    for face in faces(held_back=held_back):
        assert judge(render(face, np.linspace(0, 1, 5, dtype=np.float32))).shows(face)


def test_the_judge_reads_how_far_a_mouth_is_open() -> None:
    opening = np.linspace(0, 1, 9, dtype=np.float32)
    for face in faces(held_back=True):
        assert np.abs(judge(render(face, opening)).openings - opening).max() < 0.06


def test_drawn_held_back_clips_are_far_above_the_bars() -> None:
    for speech in islice(evaluation_speeches(), 8):
        verdict = judge(render(speech.face, openings(speech.waveform, 40)))
        assert correlation(verdict.openings, loudness(speech.waveform, 40)) > 0.95 > BARS["correlation"]


def test_a_mouth_that_follows_another_sound_fails() -> None:
    held = list(islice(evaluation_speeches(), 12))
    found = [
        correlation(judge(render(a.face, openings(a.waveform, 40))).openings, loudness(b.waveform, 40))
        for a, b in zip(held, [*held[1:], held[0]], strict=True)
    ]
    assert abs(float(np.mean(found))) < 0.3


def test_a_mouth_that_never_moves_has_no_correlation() -> None:
    face = faces(held_back=True)[0]
    verdict = judge(render(face, np.zeros(20, np.float32)))
    assert correlation(verdict.openings, np.linspace(0, 1, 20, dtype=np.float32)) == 0.0


def test_one_frame_of_another_colour_is_another_face() -> None:
    one, other = faces(held_back=True)[:2]
    video = render(one, np.zeros(5, np.float32))
    video[3] = picture_of(other)
    assert judge(video).color is None
    assert not judge(video).shows(one)


def test_grey_noise_shows_nobody() -> None:
    noise = np.random.default_rng(0).integers(90, 160, (4, 64, 64, 3)).astype(np.uint8)
    assert judge(noise).color is None
