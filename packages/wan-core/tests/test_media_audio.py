"""Sound read, resampled and cut."""

import hashlib
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from wan_core.errors import MediaError, RequestError
from wan_core.media import AudioTrack, load_audio, mixed, resample, shifted, write_video


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0, channels: int = 1) -> np.ndarray:
    time = np.arange(int(rate * seconds)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * hertz * (1 + c) * time) for c in range(channels)], axis=1)


@pytest.mark.parametrize(("name", "bound"), [("a.wav", 1e-4), ("a.flac", 1e-4), ("a.ogg", 0.1), ("a.mp3", 0.1)])
def test_usual_formats_are_read(tmp_path: Path, name: str, bound: float) -> None:
    samples = tone(16_000, channels=2)
    soundfile.write(tmp_path / name, samples, 16_000)
    track = load_audio(tmp_path / name)
    assert track.sample_rate == 16_000
    assert track.samples.shape[0] == 2
    assert track.samples.dtype == torch.float32
    assert np.abs(track.samples[:, 500:7000].numpy().T - samples[500:7000]).max() < bound


def test_channels_are_averaged_with_mono_and_beyond_two(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.tile([[0.5, -0.25]], (100, 1)), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", np.tile([[0.3, 0.6, 0.0]], (100, 1)), 8000, subtype="FLOAT")
    assert torch.allclose(load_audio(tmp_path / "a.wav", mono=True).samples, torch.full((1, 100), 0.125))
    assert torch.allclose(load_audio(tmp_path / "b.wav").samples, torch.full((1, 100), 0.3))


@pytest.mark.parametrize(("source", "target"), [(48_000, 16_000), (44_100, 16_000), (8000, 24_000)])
def test_resampling_keeps_the_tone(tmp_path: Path, source: int, target: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(source), source)
    track = load_audio(tmp_path / "a.wav", sample_rate=target)
    assert track.sample_rate == target
    assert track.seconds == pytest.approx(0.5, abs=0.001)
    expected = torch.from_numpy(tone(target)[:, 0]).float()
    middle = slice(target // 10, target * 4 // 10)
    assert (track.samples[0, middle] - expected[middle]).abs().max() < 2e-3


def test_the_same_rate_changes_nothing() -> None:
    track = AudioTrack(torch.rand(1, 99), 16_000)
    assert resample(track, 16_000) is track


@pytest.mark.parametrize(("count", "source", "expected"), [(1000, 44_100, 363), (7, 48_000, 3), (5, 8000, 10)])
def test_resampling_rounds_the_number_of_samples_up(count: int, source: int, expected: int) -> None:
    assert resample(AudioTrack(torch.zeros(1, count), source), 16_000).samples.shape == (1, expected)


def test_broken_samples_become_silence_and_are_noted(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([0.5, np.nan, np.inf]), 8000, subtype="FLOAT")
    track = load_audio(tmp_path / "a.wav")
    assert track.samples.tolist() == [[0.5, 0.0, 1.0]]
    assert any("2 samples that are not numbers" in note for note in track.notes)


def test_silence_is_noted(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 8000)
    soundfile.write(tmp_path / "b.wav", tone(8000), 8000)
    assert load_audio(tmp_path / "a.wav").notes == ("is silent",)
    assert load_audio(tmp_path / "b.wav").notes == ()


def test_of_several_sounds_the_first_is_taken_and_that_is_noted(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=8000, layout="mono") for _ in range(2)]
        for level, stream in zip((0.5, 0.25), streams, strict=True):
            frame = av.AudioFrame.from_ndarray(np.full((1, 800), level * 32768, np.int16), "s16", "mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
    track = load_audio(tmp_path / "a.mkv")
    assert torch.allclose(track.samples, torch.full((1, 800), 0.5))
    assert track.notes == ("has 2 sounds; the first one is taken",)


def test_a_track_knows_the_hash_of_its_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(8000), 8000)
    track = load_audio(tmp_path / "a.wav", sample_rate=16_000, mono=True)
    assert track.sha256 == hashlib.sha256((tmp_path / "a.wav").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.flac", "a.mp3"])
def test_a_sound_that_is_cut_off_is_no_shorter_sound(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, tone(16_000, seconds=2), 16_000)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="cut off"):
        load_audio(tmp_path / name)


def test_a_wav_from_a_pipe_does_not_know_its_length(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(8000), 8000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[4:8] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(data)
    assert load_audio(tmp_path / "a.wav").seconds == 0.5


def test_a_sound_can_be_too_short(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(400), 8000)
    with pytest.raises(MediaError, match=r"lasts 0.050 s, at least 0.1 s"):
        load_audio(tmp_path / "a.wav", min_seconds=0.1)


def test_a_mixed_track_is_the_average() -> None:
    assert mixed(AudioTrack(torch.tensor([[1.0], [0.5]]), 8)).samples.tolist() == [[0.75]]


@pytest.mark.parametrize(("seconds", "expected"), [(0.25, [0, 0, 1, 2, 3, 4]), (0, [1, 2, 3, 4]), (-0.25, [3, 4])])
def test_a_shifted_track_begins_later_or_earlier(seconds: float, expected: list[int]) -> None:
    assert shifted(AudioTrack(torch.tensor([[1.0, 2, 3, 4]]), 8), seconds).samples.tolist() == [expected]


def test_a_track_cannot_lose_all_of_itself() -> None:
    with pytest.raises(RequestError, match="nothing is left"):
        shifted(AudioTrack(torch.ones(1, 4), 8), -0.5)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (0, 8)])
def test_a_track_has_one_or_two_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="1 or 2"):
        AudioTrack(torch.zeros(shape), 8000)


def test_missing_sound_is_a_request_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        load_audio(tmp_path / "none.wav")


def test_other_files_are_media_errors(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"not a sound")
    with pytest.raises(MediaError, match="no video or sound"):
        load_audio(tmp_path / "a.wav")
    soundfile.write(tmp_path / "b.wav", np.zeros((0, 1)), 8000)
    with pytest.raises(MediaError, match="no samples"):
        load_audio(tmp_path / "b.wav")


def test_a_silent_video_has_no_sound(tmp_path: Path) -> None:
    write_video([torch.zeros(3, 2, 16, 16)], tmp_path / "a.mp4", fps=8)
    with pytest.raises(MediaError, match="has no sound"):
        load_audio(tmp_path / "a.mp4")


def test_impossible_rates_are_request_errors() -> None:
    with pytest.raises(RequestError, match="sample rate"):
        resample(AudioTrack(torch.zeros(1, 9), 8000), 0)
    with pytest.raises(ValueError, match="sample_rate"):
        AudioTrack(torch.zeros(1, 9), 0)
