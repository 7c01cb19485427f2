"""Processes of `bindweave run`: the first of each video takes the steps before it, and all make it together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from bindweave.cli.run import run_command
from wan_core.media import read_video

BINDWEAVE = Path(sys.executable).with_name("bindweave")
SMALL = ["--size", "64*64", "--frame-num", "5", "--sample-steps", "1", "--device", "cpu", "--seed", "1"]


def test_processes_that_share_nothing_do_not_make_one_video() -> None:
    words = ["--prompt", "a", "--image", "tests/data/red_circle.png", "--dry-run", "--nproc", "2"]
    result = CliRunner().invoke(run_command, words)
    assert result.exit_code == 2, result.output
    assert "one video for 2" in result.output


def test_a_plan_says_that_processes_share_the_video() -> None:
    words = ["--prompt", "a", "--image", "tests/data/red_circle.png", "--dry-run", "--nproc", "2", "--cfg_parallel"]
    result = CliRunner().invoke(run_command, words)
    assert result.exit_code == 0, result.output
    assert "1 x 2 x 1 (videos x guidance branches x shares of tokens)" in result.output


def carry_out(folder: Path, *words: str) -> str:
    """What the command says."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(BINDWEAVE), "run", *SMALL, *words], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def frames(folder: Path, name: str) -> torch.Tensor:
    return read_video(folder / name).frames


@pytest.mark.slow
def test_two_processes_run_what_one_does_and_each_step_once(tmp_path: Path) -> None:
    Image.new("RGB", (60, 75), (200, 30, 60)).save(tmp_path / "a.png")
    words = ["--image", "a.png", "--prompt", "a cat"]
    carry_out(tmp_path, *words, "-o", "one.mp4")
    said = carry_out(tmp_path, *words, "-o", "two.mp4", "--nproc", "2", "--cfg_parallel")
    assert said.count("work folder: ") == 1
    assert torch.equal(frames(tmp_path, "two.mp4"), frames(tmp_path, "one.mp4"))


@pytest.mark.slow
def test_groups_of_processes_share_samples_and_who_has_none_is_not_waited_for(tmp_path: Path) -> None:
    Image.new("RGB", (60, 75), (200, 30, 60)).save(tmp_path / "a.png")
    (tmp_path / "samples.json").write_text(json.dumps({"one": {"img_paths": ["a.png"], "prompt": "a cat"}}))
    words = ["--samples", "samples.json", "--output-dir", "out"]
    carry_out(tmp_path, *words, "--nproc", "4", "--cfg_parallel")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"one.mp4", "manifest.json"}
