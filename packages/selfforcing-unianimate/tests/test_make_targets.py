"""`sfu make-targets` on tiny files in the published layout: what is kept, by how many processes, and bad input."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from selfforcing_unianimate.cli import sfu
from selfforcing_unianimate.distillation.target_making import TargetOptions, make_targets, plan_targets
from selfforcing_unianimate.distillation.targets import TargetExample, Targets
from selfforcing_unianimate.distillation.wanted import read_wanted
from selfforcing_unianimate.pose_file import PoseFile, write_pose_file
from selfforcing_unianimate.pose_weights import CHECKPOINT
from selfforcing_unianimate.teacher import PoseRequest, PoseToVideo
from selfforcing_unianimate.teacher_preset import UNIANIMATE_14B
from tools.make_checkpoint import make_checkpoint
from wan_core import ConfigError
from wan_core.cli import wan
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.pipeline import Pipeline, silent
from wan_core.sampling import Denoiser, make_solver, seeded_noise
from wan_core.tasks import Clip

from .people import person

SIZE = (48, 64)
SHARED = {"width": 48, "height": 64, "num_frames": 5, "num_inference_steps": 4}
FAST = ["--size", "48*64", "--frame-num", "5", "--sample-steps", "4", "--shard-size", "1", "--quiet"]
COUNT = 3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a list of three lines with pictures and poses."""
    folder = tmp_path_factory.mktemp("targets")
    make_checkpoint("unianimate-14B", folder / "model")
    for number in range(COUNT):
        Image.new("RGB", (30, 50), (200, 40 * number, 60)).save(folder / f"{number}.png")
        poses(folder / f"{number}.npz")
    poses(folder / "bare.npz", reference=None)
    write(folder / "list.jsonl", [line(number) for number in range(COUNT)])
    return folder


def poses(path: Path, **values: Any) -> None:
    given = {"reference": person(), "size": SIZE, "fps": 15.0, "alignment": "none", **values}
    write_pose_file(PoseFile(driving=person(5), **given), path)


def line(number: int, **values: Any) -> dict[str, Any]:
    return {"prompt": f"p {number}", "image": f"{number}.png", "pose": f"{number}.npz", **values}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def pipeline(files: Path) -> Pipeline:
    return load_pipeline(UNIANIMATE_14B, files / "model", RuntimeOptions(device="cpu", offload=False))


@pytest.fixture(scope="module")
def whole(files: Path, pipeline: Pipeline) -> Path:
    """The targets of the list, made by one process."""
    return made(files, pipeline, files / "whole")


def made(files: Path, pipeline: Pipeline, folder: Path, part: tuple[int, int] = (0, 1), **options: Any) -> Path:
    wanted = read_wanted(files / "list.jsonl", first_seed=7, has_poses=True)
    given = {"shared": SHARED, "steps": (1000, 500), **options}
    plan = plan_targets(pipeline, wanted, TargetOptions(**given), (), silent)
    return make_targets(plan, folder, shard_size=1, part=part, progress=silent)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_states_and_latents_are_those_of_the_sampler_step_by_step(files: Path, pipeline: Pipeline, whole: Path) -> None:
    found = Targets(whole)[1]
    request = PoseRequest(prompt="p 1", image=files / "1.png", pose=files / "1.npz", seed=8, **SHARED)
    inputs = pipeline.plan(request)
    with torch.no_grad():
        made_of = PoseToVideo().condition(inputs, pipeline.components, Clip())  # type: ignore[arg-type]
        assert torch.equal(made_of.positive.context[0], found.context)
        solver = make_solver("euler", 4, flow_shift=5.0)
        latents, states = seeded_noise(made_of.latent_shape, 8), []
        with pipeline.components.dit.active() as network:  # type: ignore[union-attr]
            denoiser = Denoiser(network, made_of.positive, made_of.negative, inputs.settings.guidance_scale)  # type: ignore[arg-type]
            for index, timestep in enumerate(solver.timesteps):
                states.append(latents[0])
                latents = solver.step(denoiser(latents, timestep), index, latents, None)
    assert Targets(whole).seen.tolist() == [1000, pytest.approx(1000 * 5 / 6)]
    assert torch.equal(found.states, torch.stack([states[0], states[2]]))
    assert torch.equal(found.latents, latents[0])


def test_the_conditions_in_them_are_the_teachers(files: Path, pipeline: Pipeline, whole: Path) -> None:
    targets = Targets(whole)
    request = PoseRequest(prompt="p 2", image=files / "2.png", pose=files / "2.npz", **SHARED)
    with torch.no_grad():
        wanted = PoseToVideo().condition(pipeline.plan(request), pipeline.components, Clip())  # type: ignore[arg-type]
        row = {name: value[None] for name, value in targets.row(2).items()}
        with pipeline.components.part("pose_encoder").active() as encoder:
            inputs = PoseToVideo().training_inputs(row, row["context"], {"pose_encoder": encoder})
    assert wanted.negative is not None
    assert torch.equal(inputs.channel_concat, wanted.positive.channel_concat)  # type: ignore[arg-type]
    assert torch.allclose(inputs.add_condition, wanted.positive.add_condition, atol=1e-5)  # type: ignore[arg-type]
    assert torch.equal(inputs.image_context, wanted.positive.image_context)  # type: ignore[arg-type]
    assert torch.allclose(targets.negative(), wanted.negative.context[0], atol=1e-5)  # type: ignore[arg-type]
    assert targets[2].picture.shape == (16, 1, 8, 6)


def test_two_processes_make_the_folder_of_one(files: Path, pipeline: Pipeline, whole: Path, tmp_path: Path) -> None:
    made(files, pipeline, tmp_path / "two", (1, 2))
    made(files, pipeline, tmp_path / "two", (0, 2))
    assert contents(tmp_path / "two") == contents(whole)


def test_a_run_that_was_interrupted_goes_on_to_the_same_bytes(
    files: Path, pipeline: Pipeline, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    denoise = Pipeline.denoise

    def counted(self: Pipeline, *args: Any, **values: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return denoise(self, *args, **values)

    monkeypatch.setattr(Pipeline, "denoise", counted)
    with pytest.raises(KeyboardInterrupt):
        made(files, pipeline, tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 3  # the index, what is common, the first
    made(files, pipeline, tmp_path / "out")
    assert len(calls) == 4
    assert contents(tmp_path / "out") == contents(whole)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from selfforcing_unianimate.distillation import target_making as making
from selfforcing_unianimate.distillation.wanted import read_wanted
from selfforcing_unianimate.teacher_preset import UNIANIMATE_14B
from wan_core.loading import RuntimeOptions, load_pipeline

files, out = Path(sys.argv[1]), Path(sys.argv[3])
shared = {"width": 48, "height": 64, "num_frames": 5, "num_inference_steps": 4}
pipeline = load_pipeline(UNIANIMATE_14B, files / "model", RuntimeOptions(device="cpu", offload=False))
wanted = read_wanted(files / "list.jsonl", first_seed=7, has_poses=True)
options = making.TargetOptions(shared=shared, steps=(1000, 500))
plan = making.plan_targets(pipeline, wanted, options, (), lambda steps, phase: steps)

def progress(steps, phase):
    for index, step in enumerate(steps):
        if phase.startswith("2 of") and index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        yield step

making.make_targets(plan, out, shard_size=1, part=(0, 1), progress=progress)
"""


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    files: Path, pipeline: Pipeline, whole: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", KILLED, str(files), str(Path(__file__).parent), str(tmp_path / "out")]
    assert subprocess.run(words, check=False).returncode == -9
    assert len(contents(tmp_path / "out")) == 3
    made(files, pipeline, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


def test_halves_of_the_bytes_are_the_same_numbers_rounded(
    files: Path, pipeline: Pipeline, whole: Path, tmp_path: Path
) -> None:
    half, exact = Targets(made(files, pipeline, tmp_path / "half", stored=torch.bfloat16)), Targets(whole)
    for name in ("latents", "states", "channels", "image"):
        found, wanted = (getattr(each[0], name) for each in (half, exact))
        assert torch.equal(found, wanted.bfloat16().float())
    assert half.cache[0]["states"].dtype == torch.bfloat16
    assert torch.equal(half[0].context, exact[0].context)


def test_a_folder_of_other_settings_is_refused(files: Path, pipeline: Pipeline, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"sampling\.guidance_scale was 1\.5, is 2\.0.*'sfu make-targets'"):
        made(files, pipeline, tmp_path / "copy", shared={**SHARED, "guidance_scale": 2.0})
    with pytest.raises(ConfigError, match="timesteps was"):
        made(files, pipeline, tmp_path / "copy", steps=(1000, 400))
    settings = Targets(whole).settings
    assert settings["seeds"] == [7, 8, 9]
    assert len(settings["settings_hash"]) == 16
    assert {"wan-core", "torch"} <= set(settings["versions"])


@pytest.fixture
def run(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)

    def invoke(*words: object) -> Result:
        filled = [str(word).replace("{f}", str(files)) for word in words]
        return CliRunner().invoke(sfu, ["make-targets", *filled], catch_exceptions=False)

    return invoke


def test_a_dry_run_counts_and_writes_nothing(run: Callable[..., Result]) -> None:
    words = ["{f}/list.jsonl", "out", "--ckpt-dir", "{f}/model", *FAST, "--sample-steps", "8", "--dry-run", "--json"]
    result = run(*words, "--shard", "1/2")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert (plan["examples"], plan["of this process"], plan["evaluations"]) == (3, 2, 32)
    assert plan["bytes of one"]["latents"] == 16 * 2 * 8 * 6 * 4
    assert plan["bytes of one"]["states"] == 4 * plan["bytes of one"]["latents"]
    assert plan["timesteps"] == plan["states before"]
    assert not Path("out").exists()


@pytest.mark.slow
def test_the_command_makes_targets_that_the_teacher_can_be_trained_on(run: Callable[..., Result], files: Path) -> None:
    lora = ["--lora", f"{{f}}/model/{CHECKPOINT}"]
    words = ["{f}/list.jsonl", "out", "--ckpt-dir", "{f}/model", *lora, *FAST, "--student-steps", "1000,500"]
    result = run(*words, "--stored", "bfloat16")
    assert result.exit_code == 0, result.output
    targets = Targets("out")
    assert len(targets) == COUNT
    assert isinstance(targets[0], TargetExample)
    assert targets.settings["lora"][0][1] == 1.0
    trained = ["train", "--model", "unianimate-14B", "--ckpt-dir", str(files / "model"), "--cache", "out"]
    trained += ["-o", "run", "--steps", "1", "--lora-rank", "2", "--network", "dit", "--held-out", "1", "--quiet"]
    result = CliRunner().invoke(wan, trained, catch_exceptions=False)
    assert result.exit_code == 0, result.output


GOOD = ["{f}/list.jsonl", "out", "--ckpt-dir", "{f}/model", *FAST, "--student-steps", "1000,500"]


def listed(row: dict[str, Any], *further: str) -> list[str]:
    """The words for a list of one line, written as JSON in the list's name."""
    return [f"list:{json.dumps(row)}", *GOOD[1:], *further]


# name: (arguments after `sfu make-targets`, exit code, words that the message must have)
CASES: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "no list": (["none.jsonl", *GOOD[1:]], 2, ("none.jsonl", "prompt, image and pose")),
    "a list of no kind": (["{f}/0.png", *GOOD[1:]], 2, ("0.png", ".csv")),
    "a line without prompt": (listed(line(0, prompt="")), 2, ("line 1", "prompt is missing")),
    "a line without picture": (listed(line(0, image=None)), 2, ("line 1", "image is missing")),
    "a line without poses": (listed(line(0, pose=None)), 2, ("line 1", "pose is missing")),
    "an unknown column": (listed(line(0, speed=2)), 2, ("line 1", "'speed'", "pose, seed")),
    "a picture that is not there": (listed(line(0, image="none.png")), 2, ("line 1", "none.png")),
    "a video as picture": (listed(line(0, image="0.npz")), 2, ("line 1", "0.npz is no picture")),
    "a place out of the folder": (listed(line(0, pose="../x.npz")), 2, ("line 1", "../x.npz")),
    "a seed of no kind": (listed(line(0, seed="-3")), 2, ("line 1", "seed must be", "-3")),
    "a part of a clip": (listed(line(0, start=2)), 2, ("line 1", "start and end")),
    "poses without the picture's": (listed(line(0, pose="bare.npz")), 2, ("line 1", "--reference")),
    "poses that are none": (listed(line(0, pose="0.png")), 2, ("line 1", "0.png", "sfu pose")),
    "an empty list": (["empty", *GOOD[1:]], 2, ("empty.jsonl has no lines",)),
    "no weights": (GOOD[:2] + FAST, 2, ("--ckpt-dir",)),
    "another model": ([*GOOD, "--model", "t2v-1.3B"], 2, ("t2v-1.3B is no teacher", "unianimate-14B")),
    "a share that cannot be": ([*GOOD, "--shard", "3/2"], 2, ("I from 1 to N", "3/2")),
    "a share of no kind": ([*GOOD, "--shard", "half"], 2, ("1/4", "half")),
    "steps that rise": ([*GOOD, "--student-steps", "500,1000"], 2, ("must decrease",)),
    "steps to the end": ([*GOOD, "--student-steps", "1000,0"], 2, ("above 0",)),
    "steps beyond the table": ([*GOOD, "--student-steps", "2000,500"], 2, ("at most 1000",)),
    "a teacher of too few steps": ([*GOOD, "--student-steps", "1000,950,900"], 2, ("--sample-steps",)),
    "several windows": ([*GOOD, "--frame-num", "85"], 2, ("2 windows", "81")),
    "frames not 4n+1": ([*GOOD, "--frame-num", "6"], 2, ("line 1", "5")),
    "a file for the folder": (["{f}/list.jsonl", "{f}/0.png", *GOOD[2:]], 4, ("0.png",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence(name: str, run: Callable[..., Result], files: Path) -> None:
    words, code, wanted = CASES[name]
    table = files / f"{name.replace(' ', '-')}.jsonl"
    if words[0].startswith("list:"):
        table.write_text(words[0].removeprefix("list:"))
    elif words[0] == "empty":
        table = files / "empty.jsonl"
        table.write_text("\n")
    result = run(table if table.exists() else words[0], *words[1:])
    assert result.exit_code == code, result.output
    assert all(word in result.output for word in wanted), result.output
    assert "Traceback" not in result.output
    assert not Path("out").exists()


def test_a_list_in_csv_with_seeds_and_other_names(files: Path) -> None:
    table = files / "list.csv"
    table.write_text("caption;first_frame;pose;seed\na;0.png;0.npz;5\nb;1.png;1.npz;\n")
    found = read_wanted(table, first_seed=100, has_poses=True)
    assert [(each.prompt, each.image.name, each.seed) for each in found] == [("a", "0.png", 5), ("b", "1.png", 101)]
    bare = read_wanted(table, first_seed=0, has_poses=False)
    assert [each.pose for each in bare] == [None, None]
