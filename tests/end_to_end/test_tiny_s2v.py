"""``wan generate tiny-s2v``: the bundled face speaks to a sound, its colours stay, and the sound is in the file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

from tools.tiny.speaker_judge import BARS, correlation, judge
from tools.tiny.speakers import FPS, RATE, faces, loudness
from wan_core.media import load_audio, read_video

DATA = Path(__file__).resolve().parents[1] / "data"
DROPPED = 3  # frames that the task leaves out at the start
Run = Callable[..., Result]


@pytest.fixture
def speak(run: Run) -> Run:
    """Run the tiny model on the sample of tests/data."""

    def invoke(*more: object) -> Result:
        return run("generate", "tiny-s2v", "--image", DATA / "face.png", "--audio", DATA / "syllables.ogg", *more)

    return invoke


@pytest.mark.slow
def test_the_bundled_face_speaks_to_the_sample(speak: Run) -> None:
    result = speak("--output", "v.mp4")
    assert result.exit_code == 0, result.output
    assert "has no word" not in result.output
    video, track = read_video("v.mp4"), load_audio("v.mp4", sample_rate=RATE, mono=True)
    assert (video.fps, len(video.frames)) == (FPS, 40)  # 2.5 s: it ends with the sound
    sound = load_audio(DATA / "syllables.ogg")
    assert abs(track.seconds - sound.seconds) < 0.01
    # As much of the picture as the sound is heard in: the first frame shows the sound of the fourth.
    shown = video.frames[: 40 - DROPPED].permute(0, 2, 3, 1).numpy()
    verdict = judge(shown)
    assert verdict.shows(faces(held_back=True)[2])
    loud = loudness(sound.samples[0].numpy(), 40)[DROPPED:]
    assert correlation(verdict.openings, loud) > BARS["correlation"]
    heard = torch.nn.functional.cosine_similarity(track.samples[0, :39_000], sound.samples[0, :39_000], dim=0)
    assert float(heard) > 0.95


def test_aligned_sound_begins_where_the_picture_does(speak: Run) -> None:
    result = speak("--align-audio", "--sample_steps", 1, "--num-clip", 1, "--output", "v.mp4")
    assert result.exit_code == 0, result.output
    track = load_audio("v.mp4", sample_rate=RATE, mono=True).samples[0, :8000].numpy()
    sound = load_audio(DATA / "syllables.ogg").samples[0].numpy()
    begin = DROPPED * RATE // FPS
    assert np.corrcoef(track, sound[begin : begin + 8000])[0, 1] > 0.9


def test_clips_are_as_long_as_the_model_was_trained_on(speak: Run) -> None:
    result = speak("--dry-run", "--output", "v.mp4")
    assert result.exit_code == 0, result.output
    assert "[1, 24, 4, 8, 8]" in result.output
    assert not Path("v.mp4").exists()
