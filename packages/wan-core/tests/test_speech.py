"""Speech for a model to hear, and the sound that is written with a video."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from wan_core.errors import MediaError, RequestError
from wan_core.tasks.speech import SPEECH_RATE, load_speech


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
