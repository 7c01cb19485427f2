"""The stages of the tiny speech-to-video model, and that what is bundled is what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tools.tiny.speaker_judge import BARS
from tools.tiny.speaker_stages import (
    CLIP,
    HISTORY,
    PRESET,
    PROMPT,
    STRIDE,
    HearStage,
    SpeakStage,
    caption_of,
    heard,
    new_speaker,
    state_loudness,
)
from tools.tiny.speaker_train import new_encoder
from tools.tiny.speakers import RATE, Face, draw_voice, loudness
from wan_core.checkpoints import read_weights

FACE = Face("red", "gray")


def speak_stage(batch: int = 2) -> SpeakStage:
    torch.manual_seed(0)
    videos = [{"latents": torch.randn(24, 17, 8, 8)} for _ in range(3)]
    texts = {text: torch.zeros(24, 96) for text in ("", PROMPT, caption_of(FACE))}
    return SpeakStage(
        dit=new_speaker(),
        videos=videos,  # type: ignore[arg-type]  # a list reads as a cache does
        states=torch.randn(3, 3, 32, 64),
        looks=[FACE] * 3,
        texts=texts,
        grey=torch.zeros(24, 2, 8, 8),
        batch=batch,
    )


def test_a_clip_and_its_history_are_those_of_the_preset() -> None:
    assert (CLIP, STRIDE, HISTORY) == (16, 4, (17, 5))


def test_the_loudness_of_states_lies_between_that_of_frames() -> None:
    voice = draw_voice(np.random.default_rng(1), 1.0)
    found, frames = state_loudness(voice, 49), loudness(voice, 18)
    assert found.shape == (49,)
    assert float(found[0]) == pytest.approx(float(frames[0] + (frames[1] - frames[0]) * 200 / 1000), rel=1e-5)


def test_what_is_heard_covers_the_frames_and_ends_in_zeros() -> None:
    states = heard(new_encoder().eval(), draw_voice(np.random.default_rng(1), 1.0), 64)
    assert states.shape == (3, 32, 64)
    assert states[..., :15].abs().amax(dim=(0, 1)).min() > 0
    assert not states[..., 20:].any()


def test_hearing_is_a_loss_that_can_be_followed() -> None:
    stage = HearStage(new_encoder(), batch=1)
    loss = stage.loss(0, 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(weight.grad is not None for weight in stage.encoder.feature_extractor.parameters())


def test_a_still_history_looks_to_a_new_speaker_as_video_does() -> None:
    dit = new_speaker()
    still = torch.randn(1, 24, 1, 1, 1).expand(-1, -1, 16, 8, 8)
    patch = dit.patch_embedding(still)[0, :, 0, 0, 0]
    for projection in (dit.frame_packer.proj, dit.frame_packer.proj_2x, dit.frame_packer.proj_4x):
        assert torch.allclose(projection(still)[0, :, 0, 0, 0], patch, atol=1e-4)


def test_steps_see_beginnings_and_continuations() -> None:
    stage, seen = speak_stage(), set()
    stage.dit.register_forward_pre_hook(lambda module, inputs: seen.add(inputs[2].motion_latents is None))
    losses = [stage.loss(step, 0) for step in range(6)]
    assert seen == {True, False}
    assert torch.isfinite(torch.stack(losses)).all()


def test_a_step_is_always_the_same() -> None:
    stage = speak_stage()
    torch.manual_seed(1)
    first = stage.loss(4, 0)
    torch.manual_seed(1)
    assert torch.equal(first, stage.loss(4, 0))


def test_the_bundled_networks_are_small_and_tell_their_scores() -> None:
    paths = [Path(PRESET.part(name).file) / "model.safetensors" for name in ("dit", "audio_encoder")]
    assert sum(path.stat().st_size for path in paths) < 3_000_000
    for path in paths:
        scores = json.loads(read_weights(path).metadata["scores"])["tiny-s2v"]
        assert scores["correlation"] >= BARS["correlation"]
        assert scores["colours"] >= BARS["colours"]


def test_a_voice_has_the_rate_that_the_encoder_hears() -> None:
    assert len(draw_voice(np.random.default_rng(0), 0.5)) == RATE // 2
