"""Speech for a model to hear, and the sound that is written with a video."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from wan_core.errors import CheckpointError, MediaError, RequestError
from wan_core.media import AudioTrack, LatentSpec
from wan_core.models import WAV2VEC2_LARGE_XLSR_53, S2VConfig, Wav2Vec2Config
from wan_core.runtime import Between, Placed
from wan_core.tasks import Components, SpeechToVideo
from wan_core.tasks.speech import SPEECH_RATE, Speech, geometry_of_speaker, load_speech, speech_states

from .networks import build

ENCODER = Wav2Vec2Config(
    dim=16, ffn_dim=8, num_heads=2, num_layers=2, conv_dims=(4,) * 7, position_kernel=4, position_groups=4
)


@pytest.fixture
def stereo(tmp_path: Path) -> Path:
    samples = np.sin(np.arange(44_100) * 2 * np.pi * 440 / 44_100)
    soundfile.write(tmp_path / "a.wav", np.stack([0.5 * samples, np.zeros(44_100)], axis=1), 44_100)
    return tmp_path / "a.wav"


def test_the_model_hears_one_channel_at_its_rate(stereo: Path) -> None:
    speech = load_speech(stereo)
    assert speech.waveform.shape == (SPEECH_RATE,)
    assert float(speech.waveform.abs().max()) == pytest.approx(0.25, abs=0.01)


def test_the_sound_of_the_file_stays_as_it_is(stereo: Path) -> None:
    sound = load_speech(stereo).sound
    assert (sound.samples.shape, sound.sample_rate) == ((2, 44_100), 44_100)
    assert sound.sha256 is not None


def test_aligning_moves_the_written_sound_alone(stereo: Path) -> None:
    plain, aligned = load_speech(stereo), load_speech(stereo, align=-3 / 16)
    assert aligned.sound.samples.equal(plain.sound.samples[:, 8269:])
    assert aligned.waveform.equal(plain.waveform)


def test_a_note_names_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    assert [note.endswith("a.wav is silent") for note in load_speech(tmp_path / "a.wav").notes] == [True]


def test_too_little_speech_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 8000)
    with pytest.raises(MediaError, match=r"at least 0.1 s"):
        load_speech(tmp_path / "a.wav")
    with pytest.raises(RequestError, match="does not exist"):
        load_speech(tmp_path / "b.wav")


def said(seconds: float) -> Speech:
    waveform = torch.randn(int(SPEECH_RATE * seconds), generator=torch.Generator().manual_seed(0))
    return Speech(waveform=waveform, sound=AudioTrack(waveform[None].clamp(-1, 1), SPEECH_RATE))


@pytest.mark.parametrize(("seconds", "clips"), [(0.1, 1), (4.9, 1), (5.2, 2), (10.2, 3)])
def test_sound_fills_clips(seconds: float, clips: int) -> None:
    assert said(seconds).num_clips(80, 16) == clips


def test_each_video_frame_has_states_and_silence_has_zeros() -> None:
    torch.manual_seed(0)
    encoder = build(ENCODER).eval()
    assert ENCODER.num_moments(8000) == WAV2VEC2_LARGE_XLSR_53.num_moments(8000)
    placed = Placed(lambda device: encoder, torch.device("cpu"), between=Between.KEEP)
    components = Components(device=torch.device("cpu"), parts={"audio_encoder": placed})
    with torch.no_grad():
        states = speech_states(said(0.5), components, clip_frames=12, fps=16)
    assert states.shape == (1, 3, 16, 12)
    heard = states.abs().amax(dim=(0, 1, 2)) > 0
    assert heard.tolist() == [True] * 8 + [False] * 4


def test_an_encoder_of_another_pace_is_refused() -> None:
    inputs: Any = SimpleNamespace(speech=said(1.0))
    dit = S2VConfig(dim=24, ffn_dim=8, num_heads=2, audio_dim=ENCODER.dim, audio_layers=ENCODER.states)

    def check(encoder: Wav2Vec2Config) -> None:
        configs, found = {"audio_encoder": encoder, "dit": dit}, {"audio_encoder": "speech"}
        SpeechToVideo().check(inputs, Components(device=torch.device("cpu"), parts={}, configs=configs, found=found))

    check(ENCODER)
    with pytest.raises(CheckpointError, match=r"speech makes 98 states of this sound, 49 are needed"):
        check(replace(ENCODER, conv_strides=(5, 2, 2, 2, 2, 2, 1)))


def test_a_speaker_keeps_the_shape_of_the_picture() -> None:
    geometry = geometry_of_speaker(Image.new("RGB", (1280, 720)), 1024 * 704, LatentSpec(channels=16), 81)
    assert (geometry.width, geometry.height) == (1088, 640)
