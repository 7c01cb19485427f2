"""``wan generate s2v-14B`` on a tiny checkpoint in the real layout: the seed's command, its sound, clips, bad input."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import Result
from PIL import Image

import wan_core.loading
from wan_core.media import load_audio, read_provenance, read_video, write_video
from wan_core.pipeline import Pipeline
from wan_core.presets import get_preset
from wan_core.tasks.s2v import PROMPT

Run = Callable[..., Result]
RATE = 16_000
FAST = ["--sample_steps", 2, "--base_seed", 3, "--infer_frames", 8]


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.7 s: a low tone, then a high one."""
    path = tmp_path_factory.mktemp("sounds") / "talk.wav"
    seconds = np.arange(int(0.7 * RATE)) / RATE
    soundfile.write(path, 0.4 * np.sin(2 * np.pi * np.where(seconds < 0.35, 300, 900) * seconds), RATE)
    return path


@pytest.fixture
def speak(
    run: Run, checkpoint: Callable[[str], Path], picture: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Run the task with its picture and sound, quickly: a clip sees five frames of the past."""
    monkeypatch.setattr(get_preset("s2v-14B").task, "motion_frames", 5)

    def invoke(*more: object) -> Result:
        words = ["--task", "s2v-14B", "--ckpt_dir", checkpoint("s2v-14B"), "--image", picture, "--audio", sound]
        return run("generate", *words, *FAST, *more)

    return invoke


def test_the_seeds_command_line_makes_a_video_with_its_sound(
    run: Run, checkpoint: Callable[[str], Path], picture: Path, sound: Path, tmp_path: Path
) -> None:
    result = run(
        "generate", "--task", "s2v-14B", "--size", "1024*704", "--ckpt_dir", checkpoint("s2v-14B"),
        "--offload_model", "True", "--convert_model_dtype", "--prompt", "Your prompt", "--image", picture,
        "--audio", sound, "--sample_steps", 1, "--infer_frames", 16, "--save_file", "v.mp4",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    video = read_video("v.mp4")
    assert video.fps == 16
    assert video.frames.shape == (12, 3, 64, 128)  # 0.7 s: it ends with the sound
    track = load_audio("v.mp4", sample_rate=RATE, mono=True)
    assert track.seconds == pytest.approx(0.7, abs=0.08)
    for part, tone in ((slice(1600, 4800), 300), (slice(6400, 9600), 900)):
        spectrum = np.abs(np.fft.rfft(track.samples[0, part].numpy()))
        assert abs(spectrum.argmax() * RATE / 3200 - tone) <= 10
    record = read_provenance("v.mp4")
    assert record.settings["audio"] == "talk.wav"
    assert record.record["sound_sha256"] == load_audio(sound).sha256


def test_a_plan_tells_clips_and_reads_no_weights(speak: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wan_core.loading, "load_model", None)
    result = speak("--dry-run", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)[0]
    assert (plan["clips"], plan["num_frames"], plan["latent_shape"]) == (2, 13, [1, 16, 2, 8, 16])
    assert plan["prompt"] == PROMPT
    assert (plan["num_inference_steps"], plan["flow_shift"], plan["guidance_scale"]) == (2, 3.0, 4.5)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_after_its_finished_clips(speak: Run, clips: list[int], tmp_path: Path) -> None:
    stopped = speak("--save_file", "v.mp4")
    assert stopped.exit_code == 130, stopped.output
    assert "--seed 3" in stopped.output
    (folder,) = tmp_path.iterdir()  # no half-written video
    assert [path.name for path in folder.iterdir()] == ["0000.safetensors"]
    again = speak("--save_file", "v.mp4")
    assert again.exit_code == 0, again.output
    assert "1 of 2 clips are there" in again.output
    assert len(clips) == 3  # of two clips one was made before, one was tried, one is made now
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
    assert speak("--save_file", "whole.mp4").exit_code == 0
    assert torch.equal(read_video("v.mp4").frames, read_video("whole.mp4").frames)


@pytest.mark.slow
def test_clips_of_other_settings_are_not_taken(speak: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(self: Pipeline, latents: torch.Tensor, conditioning: Any) -> Iterator[torch.Tensor]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "decode", stop)
        assert speak("--save_file", "v.mp4").exit_code == 130
    other = speak("--save_file", "v.mp4", "--prompt", "another one")
    assert other.exit_code == 0, other.output
    assert "are there from a run" not in other.output


@pytest.mark.slow
def test_poses_a_picture_to_start_from_and_an_aligned_sound(speak: Run, tmp_path: Path) -> None:
    poses = torch.rand(3, 6, 40, 60, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_video(iter([poses]), tmp_path / "poses.mp4", fps=25)
    assert speak("--save_file", "plain.mp4", "--num_clip", 1).exit_code == 0
    posed = speak("--save_file", "posed.mp4", "--num_clip", 1, "--pose_video", tmp_path / "poses.mp4")
    assert posed.exit_code == 0, posed.output
    assert "1.28 times as fast" in posed.output
    assert "the rest is made without poses" in posed.output
    assert not torch.equal(read_video("plain.mp4").frames, read_video("posed.mp4").frames)
    begun = speak("--save_file", "begun.mp4", "--num_clip", 1, "--start_from_ref")
    assert begun.exit_code == 0, begun.output
    assert (len(read_video("plain.mp4").frames), len(read_video("begun.mp4").frames)) == (5, 8)
    assert speak("--save_file", "aligned.mp4", "--num_clip", 2, "--align_audio").exit_code == 0
    assert load_audio("aligned.mp4").seconds == pytest.approx(0.7 - 3 / 16, abs=0.08)


def test_weights_of_speech_to_video_are_no_text_to_video(run: Run, checkpoint: Callable[[str], Path]) -> None:
    result = run("generate", "t2v-1.3B", "--ckpt-dir", checkpoint("s2v-14B"), "--prompt", "p")
    assert result.exit_code == 3, result.output
    assert "Wan S2V" in result.output


# name: (more arguments, exit code, words that the message must have). {tmp} is a folder of odd files.
BAD: dict[str, tuple[list[object], int, tuple[str, ...]]] = {
    "empty prompt": (["--prompt", ""], 2, ("prompt is empty",)),
    "no clips": (["--num_clip", 0], 2, ("num_clip", "0")),
    "negative clips": (["--num_clip", -1], 2, ("num_clip", "-1")),
    "clip not 4n": (["--infer_frames", 10], 2, ("multiple of 4", "10", "8 is the nearest below")),
    "clip of no frames": (["--infer_frames", 0], 2, ("from 4 to 120", "0")),
    "clip beyond the reference": (["--infer_frames", 124], 2, ("120", "124")),
    "frames": (["--frame_num", 81], 2, ("--num-clip", "--frame-num")),
    "another rate": (["--fps", 25], 2, ("16 frames per second", "25")),
    "speech from text": (["--enable_tts"], 2, ("CosyVoice2", "--audio")),
    "text to speak": (["--tts_text", "hello"], 2, ("CosyVoice2", "--audio")),
    "missing sound": (["--audio", "{tmp}/none.wav"], 2, ("none.wav",)),
    "sound that is none": (["--audio", "{tmp}/text.txt"], 4, ("text.txt",)),
    "missing picture": (["--image", "{tmp}/none.png"], 2, ("none.png",)),
    "picture that is none": (["--image", "{tmp}/text.txt"], 4, ("text.txt",)),
    "endless picture": (["--image", "{tmp}/long.png", "--size", "64*64"], 2, ("20000x2", "crop")),
    "missing poses": (["--pose_video", "{tmp}/none.mp4"], 2, ("none.mp4",)),
    "poses that are none": (["--pose_video", "{tmp}/text.txt"], 4, ("text.txt",)),
    "output over the sound": (["--save_file", "{tmp}/sound.mp4", "--audio", "{tmp}/sound.mp4"], 2, ("sound.mp4",)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_sentence(
    name: str, speak: Run, tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("no media\n" * 50)
    Image.new("RGB", (20_000, 2)).save(tmp_path / "long.png")
    track = load_audio(sound)
    write_video(iter([torch.zeros(3, 4, 16, 16)]), tmp_path / "sound.mp4", fps=16, audio=track)
    monkeypatch.setattr(wan_core.loading, "load_model", None)
    more, exit_code, words = BAD[name]
    before = sorted(tmp_path.rglob("*"))
    result = speak(*(str(word).format(tmp=tmp_path) for word in more))
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    for word in words:
        assert word in " ".join(result.output.split()), result.output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("missing", "given"), [("--audio", "--image"), ("--image", "--audio")])
def test_picture_and_sound_are_both_needed(
    missing: str, given: str, run: Run, checkpoint: Callable[[str], Path], picture: Path, sound: Path
) -> None:
    file = picture if given == "--image" else sound
    result = run("generate", "s2v-14B", "--ckpt-dir", checkpoint("s2v-14B"), given, file)
    assert result.exit_code == 2
    assert missing in result.output
