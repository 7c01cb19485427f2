"""The seed's command lines on tiny checkpoints in the real layout, and the bundled models."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

from wan_core.media import read_video

Run = Callable[..., Result]
FAST = ["--frame_num", 5, "--sample_steps", 2, "--base_seed", 3]


def read_frames(path: Path) -> tuple[int, int, int]:
    """(frames, height, width) of a video file."""
    video = read_video(path)
    return video.frames.shape[0], video.frames.shape[2], video.frames.shape[3]


SEED_LINES = {
    "t2v-A14B": ["--size", "64*48", "--offload_model", "True", "--convert_model_dtype"],
    "i2v-A14B": ["--size", "64*48", "--offload_model", "True", "--convert_model_dtype", "--image", "PICTURE"],
    "ti2v-5B": ["--size", "64*96", "--offload_model", "True", "--convert_model_dtype", "--t5_cpu"],
    "t2v-1.3B": ["--size", "64*48", "--offload_model", "False"],
    "t2v-14B": ["--size", "64*48"],
    "i2v-14B-480P": ["--size", "64*48", "--image", "PICTURE"],
    "i2v-14B-720P": ["--size", "64*48", "--image", "PICTURE"],
    "flf2v-14B": ["--size", "64*48", "--first_frame", "PICTURE", "--last_frame", "PICTURE"],
}


@pytest.mark.parametrize("task", SEED_LINES)
def test_the_original_command_line_makes_a_video(
    task: str, run: Run, checkpoint: Callable[[str], Path], picture: Path, tmp_path: Path
) -> None:
    options = [picture if word == "PICTURE" else word for word in SEED_LINES[task]]
    out = tmp_path / "out" / "video.mp4"
    result = run(
        "generate", "--task", task, "--ckpt_dir", checkpoint(task), *options, *FAST,
        "--prompt", "Your prompt here", "--save_file", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    frames, height, width = read_frames(out)
    assert frames == 5
    assert (height, width) == ((96, 64) if task == "ti2v-5B" else (48, 64)) or picture in options


def test_ti2v_keeps_its_picture_as_first_frame(
    run: Run, checkpoint: Callable[[str], Path], picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "video.mp4"
    result = run(
        "generate", "ti2v-5B", "--ckpt-dir", checkpoint("ti2v-5B"), "--size", "96x64", "--image", picture, *FAST,
        "--prompt", "p", "--output", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert read_frames(out) == (5, 64, 96)


@pytest.mark.parametrize("task", ["tiny-t2v", "tiny-ti2v", "tiny-i2v", "tiny-moe"])
def test_bundled_models_need_no_folder(task: str, run: Run, picture: Path, tmp_path: Path) -> None:
    image = ["--image", picture] if task in {"tiny-ti2v", "tiny-i2v"} else []
    result = run("generate", task, *image, "--prompt", "a red circle grows", *FAST, "--output", tmp_path / "v.mp4")
    assert result.exit_code == 0, result.output
    assert read_frames(tmp_path / "v.mp4")[0] == 5


def test_without_a_task_the_tiny_model_runs(run: Run, tmp_path: Path) -> None:
    result = run("generate", "--prompt", "a red circle grows", *FAST, "--json", "--output", "v.mp4")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["preset"] == "tiny-t2v"


def test_without_a_task_but_with_a_picture_tiny_ti2v_runs(run: Run, picture: Path) -> None:
    result = run("generate", "--image", picture, "--prompt", "it grows", *FAST, "--json", "--output", "v.mp4")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["preset"] == "tiny-ti2v"


def test_the_same_seed_makes_the_same_frames(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        result = run("generate", "--prompt", "a red circle", *FAST, "--output", tmp_path / name / "%04d.png")
        assert result.exit_code == 0, result.output
    first = [path.read_bytes() for path in sorted((tmp_path / "a").glob("*.png"))]
    assert first == [path.read_bytes() for path in sorted((tmp_path / "b").glob("*.png"))]
    assert len(first) == 5


def test_batched_guidance_equals_sequential(run: Run, tmp_path: Path) -> None:
    for name in ("sequential", "batched"):
        result = run("generate", "--prompt", "a ring", *FAST, "--cfg", name, "--output", tmp_path / name / "%04d.png")
        assert result.exit_code == 0, result.output
    for path in sorted((tmp_path / "sequential").glob("*.png")):
        from PIL import Image, ImageChops

        difference = ImageChops.difference(Image.open(path), Image.open(tmp_path / "batched" / path.name))
        assert max(high for _, high in difference.getextrema()) <= 1


def test_a_prompt_file_makes_a_video_a_line_and_seed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n\na blue square\n")
    result = run("generate", "--prompt-file", "prompts.txt", "--num-videos", 2, *FAST, "--json", "--output", "v.mp4")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["seed"] for row in rows] == [3, 4, 3, 4]
    assert len({row["path"] for row in rows}) == 4
    assert all(Path(row["path"]).is_file() for row in rows)


def test_dry_run_reads_no_weights(run: Run, tmp_path: Path) -> None:
    words = ["generate", "t2v-A14B", "--prompt", "p", "--output", tmp_path / "a.mp4", "--dry-run"]
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)[0]
    assert plan["tokens"] == 75_600
    assert plan["latent_shape"] == [1, 16, 21, 90, 160]
    assert plan["num_inference_steps"] == 40
    assert plan["guidance_scale"] == {"high": 4.0, "low": 3.0}
    assert "needs its weights" in plan["missing"]
    refused = run(*words, "--ckpt-dir", tmp_path / "not-there")
    assert refused.exit_code == 3
    assert "not-there does not exist" in refused.output
    assert plan["memory"]["dit (high noise)"] == plan["memory"]["dit (low noise)"] == "57.2 GB"
    assert list(plan["device_peak"]) == ["text", "denoise high", "denoise low", "decode"]
    assert plan["placement"].startswith("dit high, dit low and text encoder go off the device after use; about ")
    assert not list(tmp_path.glob("*.mp4"))


def test_show_prints_the_command_that_makes_it_again(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "v.mp4"
    assert run("generate", "--prompt", "a 'red' circle; rm -rf", *FAST, "--output", out).exit_code == 0
    shown = run("show", out)
    assert shown.exit_code == 0, shown.output
    assert "wan generate" in shown.output
    assert str(tmp_path) not in shown.output
    command = run("show", out, "--json")
    assert json.loads(command.stdout)["settings"]["seed"] == 3


def test_no_metadata_leaves_no_record(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "v.mp4"
    assert run("generate", "--prompt", "secret words", *FAST, "--no-metadata", "--output", out).exit_code == 0
    assert b"secret words" not in out.read_bytes()


@pytest.mark.parametrize("name", ["v.gif", "v.webp", "frames/%04d.png"])
def test_other_outputs(name: str, run: Run, tmp_path: Path) -> None:
    result = run("generate", "--prompt", "a red circle", *FAST, "--output", tmp_path / name)
    assert result.exit_code == 0, result.output
    assert list(tmp_path.rglob("*.gif")) + list(tmp_path.rglob("*.webp")) + list(tmp_path.rglob("*.png"))


def test_the_groups_help_shows_what_all_tasks_share(run: Run) -> None:
    text = run("generate", "--help").output
    assert all(word in text for word in ("--prompt", "--ckpt-dir", "--part", "--lora", "--output", "tiny-t2v"))
    assert "--first-frame" not in text


@pytest.mark.parametrize("spelling", ["--sample-steps", "--sample_steps"])
def test_an_option_has_both_spellings_and_its_value_neither(run: Run, spelling: str) -> None:
    words = ["generate", "tiny-t2v", "--prompt", "--sample_steps", spelling, 3, "--frame-num", 5, "--dry-run", "--json"]
    (plan,) = json.loads(run(*words).stdout)
    assert (plan["prompt"], plan["num_inference_steps"]) == ("--sample_steps", 3)


def test_how_guidance_was_computed_is_recorded(run: Run) -> None:
    words = ["generate", "tiny-t2v", "--prompt", "p", *FAST, "--output", "v.mp4", "--cfg", "batched"]
    assert run(*words).exit_code == 0
    shown = json.loads(run("show", "v.mp4", "--json").stdout)
    assert shown["record"]["cfg"] == "batched"
    assert "--cfg batched" in shown["command"]


def test_a_last_frame_of_another_shape_is_cut_and_told(
    run: Run, checkpoint: Callable[[str], Path], picture: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (50, 80), "white").save(tmp_path / "tall.png")
    words = ["generate", "flf2v-14B", "--ckpt-dir", checkpoint("flf2v-14B"), "--size", "64*48", "--prompt", "p"]
    told = run(*words, *FAST, "--first-frame", picture, "--last-frame", "tall.png", "--output", "v.mp4")
    assert told.exit_code == 0, told.output
    assert "50x33 of its 50x80 are used" in told.output
    missing = run(*words, *FAST, "--first-frame", picture)
    assert missing.exit_code == 2
    assert "--last_frame" in missing.output


@pytest.mark.slow
def test_weights_of_first_and_last_frames_are_no_image_to_video_model(
    run: Run, checkpoint: Callable[[str], Path], picture: Path
) -> None:
    found = run("inspect", checkpoint("flf2v-14B"))
    assert "the first-last-frame transformer" in found.output
    other = run(
        "generate", "i2v-14B-720P", "--ckpt-dir", checkpoint("flf2v-14B"), "--image", picture, "--prompt", "p", *FAST
    )
    assert other.exit_code == 3
    assert "emb_pos" in other.output


def test_words_outside_of_a_tiny_world_are_said(run: Run) -> None:
    result = run("generate", "--prompt", "a dog runs on a blue background", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "tiny-t2v has no word for 'dog', 'runs'; it draws a circle" in result.stderr
    assert "wan download t2v-1.3B" in result.stderr
    known = run("generate", "--prompt", "a Red circle moves to the right, grey background", "--dry-run")
    assert "no word for" not in known.stderr


def test_the_end_that_a_long_prompt_loses_is_said(run: Run) -> None:
    prompt = " ".join(["a red circle"] * 7) + " moves left on a white background"
    result = run("generate", "--prompt", prompt, "--dry-run")
    assert "the prompt is too long, the model does not read its end: 'on a white background'" in result.stderr


def test_every_prompt_of_a_file_has_a_video_of_its_own(run: Run, tmp_path: Path) -> None:
    same = "a red circle moves to the right on a blue background and"
    (tmp_path / "prompts.txt").write_text(f"{same} stays\n{same} grows\n{same} stays\n")
    result = run("generate", "--prompt-file", "prompts.txt", *FAST, "--json")
    assert result.exit_code == 0, result.output
    paths = [row["path"] for row in json.loads(result.stdout)]
    assert len(set(paths)) == 3
    assert all(Path(path).is_file() for path in paths)
    again = run("generate", "--prompt-file", "prompts.txt", *FAST, "--dry-run")
    assert all(f"note: {path} is there and will be replaced" in again.stderr for path in paths)


def test_a_percent_sign_in_the_name_of_a_video_is_a_letter(run: Run) -> None:
    Path("100%.mp4").write_bytes(b"an older one")
    result = run("generate", "--prompt", "a red circle", "--output", "100%.mp4", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "note: 100%.mp4 is there and will be replaced" in result.stderr


@pytest.mark.parametrize(
    ("words", "preset"),
    [
        (["--size", "832*480"], "i2v-14B-480P"),
        (["--size=480x832"], "i2v-14B-480P"),
        (["--size", "1280*720"], "i2v-14B-720P"),
        ([], "i2v-14B-720P"),
    ],
)
def test_the_size_tells_which_i2v_14b_is_meant(run: Run, picture: Path, words: list[str], preset: str) -> None:
    result = run("generate", "--task", "i2v-14B", *words, "--image", picture, "--prompt", "p", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["preset"] == preset


def test_a_suggestion_is_an_option_that_is_likely_meant(run: Run) -> None:
    assert "Did you mean" not in run("generate", "--prompt", "a", "--ring_size", 2).output
    assert "Did you mean '--prompt'" in run("generate", "--promt", "a").output
