"""``sfu distill``: five stages on the core's loop, exactly resumed, and what they refuse."""

import json
import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfforcing_unianimate import CausalDiT
from selfforcing_unianimate.cli.distill import distill
from selfforcing_unianimate.distillation.planning import check_student
from selfforcing_unianimate.distillation.settings import STAGES, DistillSettings, parse_steps
from wan_core import CheckpointError, ConfigError

from .distilling import CONFIG, TINY, write_encoder, write_student, write_targets

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    write_student(folder / "dit.safetensors")
    write_encoder(folder / "pose.safetensors")
    write_encoder(folder / "wide.safetensors", 25)
    write_targets(folder / "targets")
    write_targets(folder / "plain", poses=False)
    write_targets(folder / "bare", poses=False, leave_out="channels")
    return folder


@pytest.fixture
def run(files: Path) -> Run:
    """The command on the tiny student with poses; what comes later wins."""

    def start(stage: str, output: Path, *words: object) -> Result:
        parts = ["--part", f"dit={files / 'dit.safetensors'}", "--pose-weights-path", files / "pose.safetensors"]
        given = ["--stage", stage, "--targets", files / "targets", "--output", output, *parts, "--log-every", 1]
        given += ["--teacher", files / "dit.safetensors"] if stage in ("dmd", "sid") else []
        shown = [str(word) for word in [*given, "--quiet", "--critic-steps", 2, "--lr", 1e-3, *words]]
        return CliRunner().invoke(distill, shown, catch_exceptions=False)

    return start


def good(result: Result) -> Result:
    assert result.exit_code == 0, result.output + result.stderr
    return result


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def student(folder: Path) -> dict[str, Tensor]:
    """The exported weights of a run."""
    (path,) = (folder / "model" / "student").glob("*.safetensors")
    return load_file(path)


def checkpoint(folder: Path, name: str) -> dict[str, Tensor]:
    """A file of the checkpoint after three steps: ``model`` or ``training``."""
    return load_file(folder / "checkpoints" / "step-00000003" / f"{name}.safetensors")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_resumed_exactly_and_leaves_a_plain_student(run: Run, tmp_path: Path, stage: str) -> None:
    words, whole, parts = ["--batch-size", 2, "--ema-start", 1], tmp_path / "whole", tmp_path / "parts"
    good(run(stage, whole, *words, "--steps", 3))
    good(run(stage, parts, *words, "--steps", 1))
    good(run(stage, parts, *words, "--steps", 3))
    for name in ("model", "training"):
        one, other = checkpoint(whole, name), checkpoint(parts, name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    check_exported(parts, stage)


def check_exported(folder: Path, stage: str) -> None:
    """The saved student is the averaged one, under plain names, with the record of its run."""
    live, saved = checkpoint(folder, "training"), student(folder)
    assert {name.removeprefix("average.dit.") for name in live if name.startswith("average.")} == saved.keys()
    assert all(torch.equal(live[f"average.dit.{name}"], value) for name, value in saved.items())
    assert saved.keys() == CausalDiT(CONFIG).state_dict().keys()
    (path,) = (folder / "model" / "student").glob("*.safetensors")
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["training"])
    assert record["distillation"]["stage"] == stage
    assert record["steps"] == 3
    assert all(math.isfinite(value) for line in log_of(folder) for value in line.values())


def test_the_student_is_changed_at_every_other_step_and_the_critic_at_each(run: Run, tmp_path: Path) -> None:
    good(run("dmd", tmp_path, "--steps", 3, "--save-every", 1, "--keep", 3))
    lines = log_of(tmp_path)
    assert ["generator_loss" in line for line in lines] == [True, False, True]
    assert all("critic_loss" in line for line in lines)
    weights = [load_file(tmp_path / f"checkpoints/step-0000000{step}/model.safetensors") for step in (1, 2, 3)]
    for name in weights[0]:
        same = [torch.equal(one[name], other[name]) for one, other in pairwise(weights)]
        if name == "dit.blocks.0.self_attn.q.weight":
            assert same == [True, False]
        if name == "critic.blocks.0.self_attn.q.weight":
            assert same == [False, False]


def test_poses_reach_the_student_the_critic_and_the_teacher(run: Run, files: Path, tmp_path: Path) -> None:
    good(run("dmd", tmp_path / "posed", "--steps", 1, "--pose-dropout", 0))
    good(run("dmd", tmp_path / "dropped", "--steps", 1, "--pose-dropout", 1))
    good(run("dmd", tmp_path / "both", "--steps", 1, "--pose-dropout", 0, "--pose-in-negative"))
    good(run("dmd", tmp_path / "plain", "--steps", 1, "--targets", files / "plain"))
    posed, dropped, both, plain = (log_of(tmp_path / name)[-1] for name in ("posed", "dropped", "both", "plain"))
    assert dropped["critic_loss"] == pytest.approx(plain["critic_loss"], rel=1e-3)
    assert posed["critic_loss"] != pytest.approx(plain["critic_loss"], rel=1e-2)
    assert posed["generator_loss"] != pytest.approx(both["generator_loss"], rel=1e-3)
    assert dropped["generator_loss"] == pytest.approx(plain["generator_loss"], rel=1e-4)


def test_a_teacher_may_see_a_picture_in_channels(run: Run, files: Path, tmp_path: Path) -> None:
    good(run("dmd", tmp_path, "--steps", 1, "--teacher", TINY / "i2v", "--targets", files / "plain"))
    assert math.isfinite(log_of(tmp_path)[-1]["generator_loss"])


def test_blocks_computed_again_change_nothing(run: Run, tmp_path: Path) -> None:
    good(run("dmd", tmp_path / "kept", "--steps", 2))
    good(run("dmd", tmp_path / "again", "--steps", 2, "--checkpointing"))
    one, other = (log_of(tmp_path / name) for name in ("kept", "again"))
    for name in ("generator_norm", "critic_norm"):
        assert one[0][name] == pytest.approx(other[0][name], rel=1e-3)


def test_bfloat16_has_the_gradients_of_all_weights(run: Run, tmp_path: Path) -> None:
    """Narrow copies of weights that were made without gradients must not serve the step that has them."""
    good(run("dmd", tmp_path / "full", "--steps", 1, "--last-step-only"))
    good(run("dmd", tmp_path / "half", "--steps", 1, "--last-step-only", "--dtype", "bfloat16"))
    full, half = (log_of(tmp_path / name)[-1]["generator_norm"] for name in ("full", "half"))
    assert half == pytest.approx(full, rel=0.2)


@pytest.mark.parametrize("words", [["--clean-history"], ["--noisy-history"], ["--history-noise", 200]])
def test_histories_of_teacher_forcing_differ(run: Run, tmp_path: Path, words: list[object]) -> None:
    good(run("teacher-forcing", tmp_path / "a", "--steps", 1, *words))
    good(run("teacher-forcing", tmp_path / "b", "--steps", 1, "--history-noise", 1000))
    assert log_of(tmp_path / "a")[-1]["loss"] != log_of(tmp_path / "b")[-1]["loss"]


def test_options_of_the_rollout_and_of_the_critic_are_taken(run: Run, tmp_path: Path) -> None:
    words = ["--step-per-block", "--context-noise", 50, "--score-times", "within-exit", "--no-warp"]
    good(run("dmd", tmp_path / "dmd", "--steps", 1, *words, "--fake-guidance-scale", 1.5))
    words = ["--relativistic", "--r1-weight", 1, "--r2-weight", 2, "--optimizer", "adamw", "--ema", 0.5]
    good(run("gan", tmp_path / "gan", "--steps", 1, *words))
    line = log_of(tmp_path / "gan")[-1]
    assert line["critic_r1"] > 0
    assert line["critic_loss"] > 0.5 * (line["critic_r1"] + 2 * line["critic_r2"])


@pytest.mark.slow
def test_long_videos_are_scored_at_their_end(run: Run, tmp_path: Path) -> None:
    targets = write_targets(tmp_path / "long", frames=23, count=2)
    for stage in ("dmd", "gan"):
        good(run(stage, tmp_path / stage, "--steps", 2, "--targets", targets, "--last-step-only"))
        assert math.isfinite(log_of(tmp_path / stage)[0]["generator_loss"])


def test_a_dry_run_tells_of_the_other_networks_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    plan = json.loads(good(run("dmd", tmp_path / "out", "--steps", 1, "--dry-run", "--json")).stdout)
    for name in ("critic", "teacher"):
        assert any(f"the {name} has " in note for note in plan["notes"])
        assert name in plan["memory"], "with what it takes"
    assert not (tmp_path / "out").exists()


BAD: list[tuple[str, list[object], int, str]] = [
    ("dmd", ["--teacher", "nowhere"], 2, "--teacher: there is no file or folder nowhere"),
    ("ode", ["--teacher", "{dit}"], 2, "--stage ode needs no teacher beside its targets"),
    ("gan", ["--teacher", "{dit}"], 2, "--stage gan needs no teacher beside its targets"),
    ("teacher-forcing", ["--critic", "{dit}"], 2, "--stage teacher-forcing trains no critic"),
    ("sid", ["--critic", "nowhere"], 2, "--critic: there is no file or folder nowhere"),
    ("ode", ["--targets", "nowhere"], 2, "nowhere holds no targets; make them with 'sfu make-targets'"),
    (
        "ode",
        ["--denoising-steps", "1000,500"],
        2,
        "have states for timesteps 1000, 937.5, 833.3, 625, and the student's",
    ),
    ("ode", ["--shift", 8], 2, "give the --denoising-steps and --shift that they were made for"),
    ("ode", ["--denoising-steps", "500,1000"], 2, "steps must decrease from at most 1000"),
    ("ode", ["--denoising-steps", "many"], 2, "steps are whole numbers with commas between them"),
    ("ode", ["--pose-dropout", 2], 2, "pose-dropout must be in 0..1, got 2"),
    ("dmd", ["--critic-steps", 0], 2, "critic-steps must be at least 1, got 0"),
    ("dmd", ["--critic-lr", 0], 2, "critic-lr must be above 0"),
    ("dmd", ["--guidance-scale", -1], 2, "guidance-scale must not be negative"),
    ("dmd", ["--guidance-scale", "nan"], 2, "is no finite number"),
    ("dmd", ["--shift", 0], 2, "shift and r-sigma must be above 0"),
    ("dmd", ["--context-noise", 1001], 2, "history-noise and context-noise are at most 1000"),
    ("dmd", ["--ema", 1.5], 2, "ema must be between 0 and 1"),
    ("dmd", ["--model", "tiny-t2v"], 2, "tiny-t2v does not make videos block by block"),
    ("dmd", ["--output", "{targets}/out"], 2, "lies in the data folder"),
    ("dmd", ["--pose-weights-path", "{wide}"], 3, "makes pose tokens of width 25"),
    (
        "dmd",
        ["--teacher", "{i2v}", "--targets", "{bare}"],
        3,
        "the teacher takes 52 channels and gives 24; the targets",
    ),
    ("dmd", ["--teacher", "{pose}"], 3, "pose.safetensors"),
    ("dmd", ["--dtype", "float16"], 2, "float16 cannot be trained in"),
    ("dmd", ["--lr", 0], 2, "lr must be above 0"),
    ("dmd", ["--steps", 0], 2, "must be at least 1"),
]


@pytest.mark.parametrize(("stage", "words", "status", "said"), BAD, ids=[f"{each[0]} {each[1]}" for each in BAD])
def test_bad_input_is_one_sentence(
    run: Run, files: Path, tmp_path: Path, stage: str, words: list[object], status: int, said: str
) -> None:
    known = {name: files / f"{name}.safetensors" for name in ("dit", "wide", "pose")}
    known |= {"targets": files / "targets", "bare": files / "bare", "i2v": TINY / "i2v"}
    result = run(stage, tmp_path / "out", "--steps", 1, *(str(word).format(**known) for word in words))
    assert result.exit_code == status, result.output + result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["stage", "targets", "output"])
def test_what_is_needed_is_named(files: Path, tmp_path: Path, name: str) -> None:
    words = {"stage": "ode", "targets": files / "plain", "output": tmp_path / "out"}
    given = [str(word) for key, value in words.items() if key != name for word in (f"--{key}", value)]
    result = CliRunner().invoke(distill, given)
    assert result.exit_code == 2
    assert f"--{name} " in result.stderr
    assert "is needed" in result.stderr


def test_a_teacher_is_needed_for_scores(files: Path, tmp_path: Path) -> None:
    words = ["--stage", "sid", "--targets", files / "plain", "--output", tmp_path / "out"]
    result = CliRunner().invoke(distill, [str(word) for word in words])
    assert result.exit_code == 2
    assert "--stage sid asks a teacher for its scores; give its weights with --teacher PATH" in result.stderr


def test_a_run_does_not_go_on_with_other_settings_targets_or_networks(run: Run, files: Path, tmp_path: Path) -> None:
    good(run("dmd", tmp_path / "out", "--steps", 1))
    other = tmp_path / "other.safetensors"
    write_student(other, seed=5)
    for words, changed in (
        (["--guidance-scale", 2], "recipe.distillation.guidance_scale was 3.0, is 2.0"),
        (["--targets", files / "plain"], "recipe.targets.settings_hash was '3/True', is '3/False'"),
        (["--teacher", other], "recipe.beside_student.teacher was"),
        (["--critic", other], "recipe.beside_student.critic was"),
        (["--weight-decay", 0.5], "recipe.weight_decay was"),
    ):
        result = run("dmd", tmp_path / "out", "--steps", 2, *words)
        assert result.exit_code == 2
        assert changed in result.stderr
    result = run("gan", tmp_path / "out", "--steps", 2)
    assert "recipe.distillation.stage was 'dmd', is 'gan'" in result.stderr


def test_damaged_targets_are_told(run: Run, files: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(files / "targets", tmp_path / "targets")
    (shard,) = folder.glob("shard-*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-100] ^= 255
    shard.write_bytes(bytes(content))
    result = run("ode", tmp_path / "out", "--steps", 1, "--targets", folder)
    assert result.exit_code == 3
    assert f"{shard} is damaged" in result.stderr


def test_a_student_that_is_none_is_not_passed(files: Path, tmp_path: Path) -> None:
    tensors = load_file(files / "dit.safetensors")
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    assert check_student(path, CONFIG) == len(tensors)
    save_file({**tensors, "blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 32)}, path)
    with pytest.raises(CheckpointError, match=r"is no plain student: 1 tensors differ, first .*lora_A"):
        check_student(path, CONFIG)
    tensors["head.head.bias"] = tensors["head.head.bias"] * torch.nan
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"head\.head\.bias has values that are not finite"):
        check_student(path, CONFIG)


def test_settings_are_the_references() -> None:
    settings = DistillSettings(stage="dmd")
    assert settings.timesteps() == pytest.approx([1000.0, 937.5, 833.3333, 625.0])
    assert DistillSettings(stage="dmd", warp=False).timesteps() == [1000.0, 750.0, 500.0, 250.0]
    assert settings.critic_rate() == 4e-7
    assert DistillSettings(stage="sid").critic_rate() == 2e-6
    assert parse_steps("1000,500") == (1000, 500)
    with pytest.raises(ConfigError, match="stage must be one of"):
        DistillSettings(stage="none")
