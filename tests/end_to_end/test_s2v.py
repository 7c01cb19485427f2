"""``wan generate s2v-14B`` on a tiny checkpoint in the real layout: the seed's command, its sound, clips, bad input."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import Result

import wan_core.loading
from wan_core.media import load_audio, read_provenance, read_video
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
def speak(run: Run, checkpoint: Callable[[str], Path], picture: Path, sound: Path) -> Run:
    """Run the task with its picture and sound, quickly."""

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
