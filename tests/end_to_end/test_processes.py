"""Several processes make what one makes, started by torchrun or by --nproc."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wan_core.media import read_video

WAN = [sys.executable, "-m", "wan_core", "generate"]
TORCH = [sys.executable, "-m", "torch.distributed.run"]
TORCHRUN = [*TORCH, "--nproc_per_node=2", *WAN[1:]]
FAST = ["--size", "64*64", "--frame_num", "5", "--sample_steps", "2", "--base_seed", "3"]


def carry_out(command: list[str], folder: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run to the end, one thread a process; the exit status must be ``status``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_two_processes_make_the_videos_of_a_prompt_file_as_one_does(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\na green ring\n")
    words = ["tiny-t2v", "--prompt_file", "prompts.txt", *FAST, "--json"]
    alone = json.loads(carry_out([*WAN, *words, "-o", "one.mp4"], tmp_path).stdout)
    shared = carry_out([*WAN, *words, "-o", "two.mp4", "--nproc", "2"], tmp_path)
    assert [row["path"] for row in json.loads(shared.stdout)] == [f"two-000{index}.mp4" for index in range(3)]
    assert [row["seed"] for row in json.loads(shared.stdout)] == [row["seed"] for row in alone]
    for index in range(3):
        one, two = (read_video(tmp_path / f"{name}-000{index}.mp4").frames.float() for name in ("one", "two"))
        assert (one - two).abs().mean() < 0.5, "of 255: prompts that are encoded together round as one batch does"
    assert shared.stderr.count("(seed 3") == 3, "each video is told once"


@pytest.mark.slow
def test_branches_of_guidance_in_two_processes_make_the_same_file(tmp_path: Path) -> None:
    words = ["--task", "tiny-t2v", "--prompt", "a red circle", *FAST]
    carry_out([*WAN, *words, "-o", "one.mp4"], tmp_path)
    shared = carry_out([*TORCHRUN, *words, "-o", "two.mp4", "--cfg_parallel"], tmp_path)
    assert (tmp_path / "two.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert shared.stderr.count("two.mp4") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.mp4", "two.mp4"]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_the_original_line_of_torchrun_runs_on_a_checkpoint_in_the_real_layout(
    checkpoint: Callable[[str], Path], tmp_path: Path, world: int
) -> None:
    words = ["--task", "t2v-A14B", "--ckpt_dir", str(checkpoint("t2v-A14B")), "--prompt", "Your prompt here", *FAST]
    carry_out([*WAN, *words, "--save_file", "one.mp4"], tmp_path)
    shared = ["--dit_fsdp", "--t5_fsdp", "--ulysses_size", str(world), "--save_file", "two.mp4"]
    carry_out([*TORCH, f"--nproc_per_node={world}", *WAN[1:], *words, *shared], tmp_path)
    one, two = (read_video(tmp_path / f"{name}.mp4").frames.float() for name in ("one", "two"))
    assert (one - two).abs().mean() < 0.5, "of 255: tokens that are divided round otherwise"


@pytest.mark.slow
def test_one_video_is_not_made_by_processes_that_share_nothing(tmp_path: Path) -> None:
    refused = carry_out([*TORCHRUN, "tiny-t2v", "--prompt", "a", *FAST], tmp_path, status=1)  # torchrun's own status
    assert refused.stderr.count("there is one video for 2 processes") == 1
    assert list(tmp_path.iterdir()) == []


STEPS = ["--sample_steps", "1000", "--base_seed", "3", "--cfg_parallel", "-o", "v.mp4"]
KILLED = "process {} of 2 was ended by SIGKILL; it is likely that memory ran out; the others were stopped"
SILENT = "process {} of 2 gave no sign of life for half a minute"


def started(launcher: str, folder: Path) -> tuple["subprocess.Popen[str]", dict[str, int]]:
    """A run of two processes that denoise, and their process numbers by their ranks."""
    words = ["tiny-t2v", "--prompt", "a", *FAST[:4], *STEPS]
    command = [*WAN, *words, "--nproc", "2"] if launcher == "--nproc" else [*TORCHRUN, *words]
    run = subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, text=True, bufsize=1, process_group=0,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.stderr is not None
    seen = ""
    while "denoise" not in seen and run.poll() is None:
        seen += run.stderr.read(1)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    ranks = {rank: int(pid) for pid in children if (rank := _rank(pid))}
    assert sorted(ranks) == ["0", "1"], seen
    return run, ranks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "victim", "number", "status", "words"),
    [
        ("--nproc", "1", signal.SIGKILL, 5, KILLED.format(1)),
        ("--nproc", "0", signal.SIGSTOP, 5, SILENT.format(0)),
        ("--nproc", "all", signal.SIGINT, 130, "interrupted; nothing half-written"),
        ("--nproc", "launcher", signal.SIGTERM, 143, "interrupted; nothing half-written"),
        # torchrun has a status of its own, and a table of what ended how.
        ("torchrun", "1", signal.SIGKILL, 1, "process 1 of 2 ended in the middle of its work"),
        ("torchrun", "1", signal.SIGSTOP, 1, SILENT.format(1)),
    ],
)
def test_a_process_that_is_lost_ends_the_run_with_one_sentence_and_leaves_nothing(
    launcher: str, victim: str, number: int, status: int, words: str, tmp_path: Path
) -> None:
    run, ranks = started(launcher, tmp_path)
    if victim == "all":
        os.killpg(run.pid, number)
    else:
        os.kill(ranks.get(victim, run.pid), number)
    rest = run.communicate(timeout=240)[1]  # half a minute, and little more, where the machine has nothing else to do
    assert run.returncode == status, rest
    assert rest.count(words) == 1, rest
    assert sum(rest.count(each) for each in ("Error: process", "Error: another", "interrupted;")) == 1, rest
    assert launcher == "torchrun" or "Traceback" not in rest, rest
    assert not [pid for pid in ranks.values() if Path(f"/proc/{pid}").exists()]
    assert list(tmp_path.iterdir()) == []


def _rank(pid: str) -> str:
    """The number of a process of the run; of any other child, nothing."""
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next((each.removeprefix("RANK=") for each in variables if each.startswith("RANK=")), "")
