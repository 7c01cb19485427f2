"""`wan train` and `wan cache` from videos to files that `wan generate` uses."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import wan_core.loading
from tests.colour_profiles import P3, rgb_profile
from tools.tiny.clips import write_clips
from wan_core.training import Cache, CheckpointFolder

Run = Callable[..., Result]
ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--steps", 4, "--num-frames", 5, "--size", "32*32", "--log-every", 1, "--quiet"]


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips."""
    return write_clips(tmp_path_factory.mktemp("few"), 3)


def log_of(output: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def good(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def test_a_dry_run_tells_the_plan_and_leaves_nothing(run: Run, few: Path, tmp_path: Path) -> None:
    result = good(
        run("train", "--data", few, "--output", tmp_path / "out", "--lora-rank", 4, "--dry-run", "--json", *SHORT)
    )
    plan = json.loads(result.output)
    assert plan["examples"] == 3
    assert plan["sizes"] == {"32x32": 3}
    assert plan["trains"] == "a LoRA of rank 4, alpha 4"
    # q, k, v, o twice: 128 to 128; feed-forward: 128 to 512 and back; six blocks
    assert plan["trained_parameters"] == 6 * 4 * (8 * (128 + 128) + 2 * (128 + 512))
    assert set(plan["memory"]) >= {"weights", "gradients", "optimizer", "activations", "batch", "peak"}
    assert not (tmp_path / "out").exists()


def test_flags_win_over_the_config_file(run: Run, few: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        f'data = "{few}"\noutput = "{tmp_path / "out"}"\nlora-rank = 8\nlr = 0.002\nsize = "32*32"\nsteps = 7\n'
        'num_frames = 5\nlora_targets = ["blocks.*.ffn.0", "blocks.0.*.q"]\ncheckpointing = true\n'
    )
    result = good(run("train", "--config", config, "--lora-rank", 2, "--steps", 5, "--dry-run", "--json"))
    assert "check: 100%" in result.stderr  # every clip is read once, which is shown
    plan = json.loads(result.stdout)
    assert plan["trains"] == "a LoRA of rank 2, alpha 2"
    assert plan["steps"] == 5
    assert plan["optimizer"] == "adamw, rate 0.002"
    assert plan["trained_parameters"] == 2 * (6 * (128 + 512) + 2 * (128 + 128))


def test_a_lora_is_trained_logged_and_saved_with_its_settings(run: Run, few: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["--data", few, "--output", output, "--lora-rank", 2, "--held-out", 1, "--ema", 0.9, *SHORT]
    good(run("train", *arguments, "--validation-prompt", "a red circle moves up", "--tensorboard"))
    with safe_open(output / "lora.safetensors", framework="pt") as file:
        settings = json.loads(file.metadata()["training"])
        assert "diffusion_model.blocks.0.self_attn.q.lora_A.weight" in file.keys()  # noqa: SIM118  # no mapping
    assert (settings["model"], settings["lora_rank"], settings["steps"]) == ("tiny-ti2v", 2, 4)
    assert len(log_of(output, "loss")) == 4
    assert len(log_of(output, "validation_loss")) == 2
    assert (output / "validation/step-00000004.png").is_file()
    assert list((output / "tensorboard").glob("events*"))


def test_every_file_is_opened_once_and_every_network_loaded_once(
    run: Run, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoding, training, validation and export share one pipeline."""
    opened: Counter[str] = Counter()
    loaded: Counter[str] = Counter()
    read_weights, load_model = wan_core.loading.read_weights, wan_core.loading.load_model

    def counted_read(path: Path, **options: object) -> object:
        opened[str(path)] += 1
        return read_weights(path, **options)

    def counted_load(config: object, *values: object, **options: object) -> object:
        loaded[type(config).__name__] += 1
        return load_model(config, *values, **options)

    monkeypatch.setattr(wan_core.loading, "read_weights", counted_read)
    monkeypatch.setattr(wan_core.loading, "load_model", counted_load)
    arguments = ["--model", "tiny-poze", "--data", few, "--output", tmp_path / "out", "--lora-rank", 2, *SHORT]
    image = ROOT / "tests/data/room.png"
    good(run("train", *arguments, "--validation-prompt", "a room", "--validation-image", image))
    assert any(path.endswith("dit") for path in opened)
    assert max(opened.values()) == 1, opened
    # Parts that rest after encoding are loaded once more for the first validation, which finds its text in memory then.
    assert loaded["WanDiTConfig"] == 1
    assert loaded["VAEConfig"] == 1
    assert max(loaded.values()) <= 2, loaded


def test_a_resumed_run_ends_with_the_same_bytes(run: Run, few: Path, tmp_path: Path) -> None:
    arguments = ["--data", few, "--batch-size", 2, "--ema", 0.9, "--save-every", 1, *SHORT]
    good(run("train", *arguments, "--output", tmp_path / "whole", "--schedule", "constant"))
    for steps in (1, 3, 4):
        good(run("train", *arguments, "--output", tmp_path / "parts", "--schedule", "constant", "--steps", steps))
    file = "model/t2v/diffusion_pytorch_model.safetensors"
    whole, parts = load_file(tmp_path / "whole" / file), load_file(tmp_path / "parts" / file)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert CheckpointFolder(tmp_path / "parts/checkpoints").steps() == [3, 4]


@pytest.mark.slow
def test_a_run_in_bfloat16_from_when_all_of_it_was_computed_so_does_not_go_on(
    run: Run, few: Path, tmp_path: Path
) -> None:
    arguments = ["--data", few, "--lora-rank", 2, "--dtype", "bfloat16", "--output", tmp_path, *SHORT]
    good(run("train", *arguments, "--schedule", "constant", "--steps", 1))
    good(run("train", *arguments, "--schedule", "constant", "--steps", 2))
    (file,) = (tmp_path / "checkpoints/step-00000002").glob("*.json")
    state = json.loads(file.read_text())
    del state["settings"]["recipe"]["precision"]
    file.write_text(json.dumps(state))
    result = run("train", *arguments, "--schedule", "constant", "--steps", 3)
    assert result.exit_code == 2
    assert "recipe.precision was None" in result.stderr
    assert "name another output folder" in result.stderr


def test_a_finished_run_called_again_reports_the_loss_of_its_log(run: Run, few: Path, tmp_path: Path) -> None:
    arguments = ["--data", few, "--output", tmp_path / "out", "--lora-rank", 2, "--json", *SHORT]
    first = json.loads(good(run("train", *arguments)).stdout)
    lines = (tmp_path / "out/log.jsonl").read_text()
    again = json.loads(good(run("train", *arguments)).stdout)
    assert first["loss"] == again["loss"] == {"model": log_of(tmp_path / "out", "loss")[-1]}
    assert (tmp_path / "out/log.jsonl").read_text() == lines


def test_the_log_tells_the_learning_rate_and_how_far_it_has_risen(run: Run, few: Path, tmp_path: Path) -> None:
    good(run("train", "--data", few, "--output", tmp_path / "out", "--lr", 3e-4, "--warmup", 4, *SHORT))
    schedule = log_of(tmp_path / "out", "schedule")
    assert schedule[0] < schedule[-1] <= 1
    assert log_of(tmp_path / "out", "rate") == pytest.approx([3e-4 * factor for factor in schedule])


@pytest.mark.parametrize(
    ("model", "options", "made"),
    [
        ("tiny-i2v", [], "model/i2v/diffusion_pytorch_model.safetensors"),
        ("tiny-ti2v", ["--clean-frames", 2, "--optimizer", "muon", "--checkpointing"], "model/t2v/config.json"),
        ("tiny-moe", ["--lora-rank", 2, "--expert", "low"], "lora-low.safetensors"),
        ("tiny-moe", [], "model/high/diffusion_pytorch_model.safetensors"),
    ],
)
def test_every_kind_of_model_is_trained(
    run: Run, few: Path, tmp_path: Path, model: str, options: list[object], made: str
) -> None:
    good(run("train", "--model", model, "--data", few, "--output", tmp_path / "out", *options, *SHORT, "--steps", 2))
    assert (tmp_path / "out" / made).is_file()


def phone_folder(folder: Path) -> Path:
    """Twelve photos in Display P3 and four clips of 5.000 s, two of them HDR, with captions and a note."""
    folder.mkdir()
    for number in range(12):
        photo = Image.new("RGB", (64, 48), (200, 60, 20 * number))
        photo.save(folder / f"IMG_{number}.JPG", icc_profile=rgb_profile(P3))
        (folder / f"IMG_{number}.txt").write_text(f"a photo, {number}", encoding="utf-16")
    for number in range(4):
        with av.open(str(folder / f"MOV_{number}.MOV"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height = 64, 48
            stream.pix_fmt = "yuv420p10le" if number < 2 else "yuv420p"
            if number < 2:  # HLG in BT.2020, as phones record it
                stream.codec_context.color_primaries = stream.codec_context.colorspace = 9
                stream.codec_context.color_trc = 18
            for index in range(125):
                pixels = np.full((48, 64, 3), (3 * index // 2, 90, 40), np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=stream.pix_fmt)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        (folder / f"MOV_{number}.txt").write_text("a clip")
    (folder / "README.txt").write_text("what this is")
    (folder / "._IMG_0.JPG").write_bytes(b"resource fork")
    return folder


def test_photos_and_clips_as_a_phone_has_them_train_a_lora(run: Run, tmp_path: Path) -> None:
    folder = phone_folder(tmp_path / "phone")
    words = ["--data", folder, "--lora-rank", 2, "--steps", 2, "--fps", 8, "--size", "32*32"]
    # 125 frames at 25 fps are five seconds: the 41st frame of 8 fps is the last one of the video, held.
    result = good(run("train", *words, "--output", tmp_path / "out", "--batch-size", 2, "--num-frames", 41))
    assert "HDR (HLG, BT.2020); it is tone-mapped" in result.stderr
    cache = Cache(tmp_path / "out/cache")
    assert Counter(cache.shape(number, "latents")[1] for number in range(16)) == {1: 12, 11: 4}
    assert (tmp_path / "out/lora.safetensors").is_file()


def test_bad_examples_are_refused_together_or_left_out(run: Run, few: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(few, tmp_path / "data")
    for name in ("bad", "worse"):
        (folder / f"{name}.mp4").write_bytes(b"no video")
        (folder / f"{name}.txt").write_text("a clip")
    refused = run("train", "--data", folder, "--output", tmp_path / "out", *SHORT)
    assert refused.exit_code == 4
    assert "bad.mp4" in refused.output
    assert "worse.mp4" in refused.output
    skipped = good(run("train", "--data", folder, "--output", tmp_path / "out", "--skip-bad", "--lora-rank", 2, *SHORT))
    assert "left out 2" in skipped.output


def test_how_clips_of_a_phone_are_read_is_noted(run: Run, tmp_path: Path) -> None:
    (tmp_path / "phone").mkdir()
    with av.open(str(tmp_path / "phone/IMG_1.MOV"), "w", format="mov") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = 9, 9, 18  # BT.2020, HLG
        for index in range(6):
            frame = av.VideoFrame(64, 48, "yuv420p10le")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "phone/IMG_1.txt").write_text("a clip")
    words = ["--num-frames", 5, "--fps", 8, "--size", "32*32"]
    cached = good(run("cache", tmp_path / "phone", tmp_path / "cache", *words))
    planned = good(run("train", "--data", tmp_path / "phone", "--output", tmp_path / "out", *words, "--dry-run"))
    for told in (cached.output, planned.output):
        assert told.count("IMG_1.MOV is HDR (HLG, BT.2020); it is tone-mapped to BT.709") == 1


def test_a_cache_serves_several_runs(run: Run, few: Path, tmp_path: Path) -> None:
    result = good(run("cache", few, tmp_path / "cache", "--num-frames", 5, "--size", "32*32", "--quiet"))
    assert "3 examples" in result.output
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    for name in ("a", "b"):
        options = ["--steps", 1, "--lora-rank", 1, "--timesteps", "shifted", "--quiet"]
        good(run("train", "--cache", tmp_path / "cache", "--output", tmp_path / name, *options))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--lr", 1e-3], ["--lora-rank", 16, "--lr", 3e-3]], ids=["full", "lora"])
def test_twenty_videos_halve_the_validation_loss(run: Run, tmp_path: Path, options: list[object]) -> None:
    """The bundled tiny-t2v, which was never shown such clips, on the world in negative colours.

    Sixteen videos are trained on; the loss is that of the other four, with the same noise before and after. On clips in
    true colours, which the network was trained on, there is nothing to halve: it starts at 0.32.
    """
    data, output = write_clips(tmp_path / "twenty", 20, negative=True), tmp_path / "out"
    arguments = ["--model", "tiny-t2v", "--data", data, "--output", output, "--quiet", "--batch-size", 4, "--warmup", 5]
    good(run("train", *arguments, "--steps", 60, *options))
    first, last = log_of(output, "validation_loss")
    assert first > 1
    assert last < first / 2


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(few: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "wan_core",
        "train",
        "--data",
        few,
        "--output",
        output,
        "--log-every",
        1,
        "--quiet",
    ]
    process = subprocess.Popen(
        [str(word) for word in [*command, "--steps", 100_000]], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (output / "log.jsonl").exists():
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "goes on from there" in errors
    done = CheckpointFolder(output / "checkpoints").steps()[-1]
    result = subprocess.run([str(word) for word in [*command, "--steps", done + 2]], check=False, timeout=120)
    assert result.returncode == 0
    assert CheckpointFolder(output / "checkpoints").steps()[-1] == done + 2


@pytest.mark.slow
def test_a_model_with_an_image_encoder_is_trained(
    run: Run, few: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    model = ["--model", "i2v-14B-480P", "--ckpt-dir", checkpoint("i2v-14B-480P"), "--fps", 8]
    good(run("train", *model, "--data", few, "--output", tmp_path / "out", "--lora-rank", 2, *SHORT, "--steps", 1))
    assert (tmp_path / "out/lora.safetensors").is_file()


@pytest.mark.slow
def test_the_commands_of_the_training_page_run(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = (ROOT / "docs/training.md").read_text()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    blocks = re.findall(r"^```(bash|toml)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for kind, block in blocks:
        if kind == "toml":
            Path("run.toml").write_text(block)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.partition(" #")[0])
            if words[:3] == ["uv", "run", "python"]:
                subprocess.run([sys.executable, *words[3:]], check=True)
            elif words[:3] == ["uv", "run", "wan"] and "--ckpt-dir ./Wan" not in line:
                good(run(*words[3:]))
    shutil.rmtree(tmp_path / "outputs")


@pytest.mark.slow
def test_two_processes_train_as_one_does(few: Path, tmp_path: Path) -> None:
    good = ["train", "--data", few, "--lora-rank", 2, *SHORT, "--steps", 6]
    alone = [sys.executable, "-m", "wan_core", *good, "--output", tmp_path / "one", "--batch-size", 2]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    together = [*launch, "-m", "wan_core", *good, "--output", tmp_path / "two", "--batch-size", 1]
    for command in (alone, together):
        subprocess.run([str(word) for word in command], check=True, timeout=500)
    assert log_of(tmp_path / "two", "loss") == pytest.approx(log_of(tmp_path / "one", "loss"), abs=1e-5)
    one, two = (load_file(tmp_path / name / "lora.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_what_all_processes_refuse_is_told_once(few: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    command = [*launch, "-m", "wan_core", "train", "--data", few, "--output", tmp_path, "--optimizer", "adamw8bit"]
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert done.stderr.count("Error: the optimizer adamw8bit cannot work on weights that 2 processes share") == 1
    assert 'File "' not in done.stderr.partition("Error: ")[0]
