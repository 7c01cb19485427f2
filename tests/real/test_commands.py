"""The command lines for real weights are ones that the programs take; the script leaves out, counts and sums up."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from tests.real import commands
from wan_core.media import write_video

HERE = Path(__file__).resolve().parent


@pytest.mark.slow
def test_every_command_line_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.check(8) == 0
    told = capsys.readouterr().out.splitlines()
    assert all(line.endswith(": ok") for line in told)
    assert {"t2v-A14B: ok", "t2v-A14B-on-8: ok", "prepare-animate: ok", "bindweave: ok"} <= set(told)


def test_one_gpu_makes_every_task_once_and_many_again_together() -> None:
    alone = list(commands.commands("models", 1, "out"))
    assert [name for name, _, _ in alone] == [run.name for run in commands.RUNS]
    several = {name: words for name, _, words in commands.commands("models", 4, "out")}
    assert several["t2v-A14B"] == next(words for name, _, words in alone if name == "t2v-A14B")
    assert several["t2v-A14B-on-4"][-10:-3] == [
        "--nproc",
        "4",
        "--dit_fsdp",
        "--t5_fsdp",
        "--ulysses_size",
        "4",
        "--output",
    ]
    assert "--offload_model" not in several["t2v-A14B-on-4"]


def script(folder: Path, *words: str, program: str = "", **settings: str) -> "subprocess.CompletedProcess[str]":
    """The script, whose programs are a stand-in: ``python`` prints the commands, all others run ``program``.

    What is to be seen in a video is its text.
    """
    stand_in = folder / "launch"
    python = 'if [ "${3-}" = --look ]; then exec grep video "$4"; fi; if [ "$1" = python ]; then exec "$@"; fi'
    stand_in.write_text(f"#!/usr/bin/env bash\n{python}\n{program}\n")
    stand_in.chmod(0o755)
    environment = {**os.environ, "LAUNCH": str(stand_in), **settings}
    call = ["bash", str(HERE / "run.sh"), *words]
    return subprocess.run(call, capture_output=True, text=True, env=environment, check=False)


WRITES = 'while [ $# -gt 0 ]; do if [ "$1" = --output ]; then echo video > "$2"; fi; shift; done'


def models(folder: Path, *names: str) -> str:
    for name in names:
        (folder / "models" / name).mkdir(parents=True)
    return str(folder / "models")


def test_what_is_there_is_run_and_what_is_not_is_left_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = script(tmp_path, models(tmp_path, "Wan2.2-TI2V-5B"), "2", str(out), program=WRITES)
    assert done.returncode == 0, done.stderr
    rows = (out / "summary.md").read_text().splitlines()
    made = [row.split("|")[1].strip() for row in rows if "| ok |" in row]
    assert made == ["ti2v-5B", "ti2v-5B-on-2", "ti2v-5B-image", "ti2v-5B-image-on-2", "mi2v", "mi2v-on-2"]
    assert "| t2v-A14B | left out |  | there is no Wan2.2-T2V-A14B |" in rows
    assert sum(row.endswith("| video |") for row in rows) == 6


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("echo out of memory; exit 5", "exit status 5: out of memory; see t2v-1.3B.log"),
        ("exit 0", "no video: "),
        (WRITES.replace("echo video", "echo noise"), "no video: "),
        ("exec sleep 60", "took longer than 1s"),
    ],
)
def test_a_run_that_fails_or_leaves_no_video_fails_the_whole(program: str, reason: str, tmp_path: Path) -> None:
    done = script(
        tmp_path, models(tmp_path, "Wan2.1-T2V-1.3B"), "1", str(tmp_path / "out"), program=program, LIMIT="1s"
    )
    assert done.returncode == 1
    assert reason in next(row for row in done.stdout.splitlines() if row.startswith("| t2v-1.3B | FAILED"))


def test_started_again_it_makes_what_failed_and_what_has_another_command(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", models(tmp_path, "Wan2.1-T2V-1.3B", "Wan2.2-TI2V-5B")
    fails = f'case "$*" in *1.3B*) exit 5 ;; esac; {WRITES}'
    assert script(tmp_path, folder, "1", str(out), program=fails).returncode == 1
    log = out / "ti2v-5B.log"
    log.write_text("of the first time")
    (out / "mi2v.done").write_text("another command\n")
    again = script(tmp_path, folder, "1", str(out), program=WRITES)
    assert again.returncode == 0, again.stdout
    assert log.read_text() == "of the first time"
    rows = {row.split("|")[1].strip(): row for row in again.stdout.splitlines() if "| ok |" in row}
    assert "made before" in rows["ti2v-5B"]
    assert "made before" not in rows["t2v-1.3B"]
    assert "made before" not in rows["mi2v"]


def test_a_video_of_one_colour_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey = tmp_path / "grey.mp4"
    write_video([torch.zeros(3, 5, 32, 32)], grey, fps=8)
    videos = [commands.DATA / "driving" / "src_pose.mp4", grey, tmp_path / "none.mp4"]
    assert [commands.look(str(video)) for video in videos] == [0, 1, 1]
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "64x64, 37 frames, 16 fps"
    assert "one colour" in told[1]
    assert "none.mp4" in told[2]


def test_one_run_may_be_asked_for(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", models(tmp_path, "Wan2.1-T2V-1.3B", "Wan2.2-TI2V-5B")
    done = script(tmp_path, folder, "1", str(out), program=WRITES, ONLY="t2v-1.3B")
    assert done.returncode == 0, done.stdout
    assert [row.split("|")[1].strip() for row in (out / "summary.md").read_text().splitlines()[2:]] == ["t2v-1.3B"]
    unknown = script(tmp_path, folder, "1", str(out), program=WRITES, ONLY="t2v-9B")
    assert unknown.returncode == 2
    assert "there is no run t2v-9B" in unknown.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [(["nowhere", "1"], "there is no folder nowhere"), ([str(HERE), "none"], "GPUS is a number"), ([], "usage")],
)
def test_wrong_words_are_refused(words: list[str], said: str, tmp_path: Path) -> None:
    done = script(tmp_path, *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_folder_without_weights_is_no_success(tmp_path: Path) -> None:
    done = script(tmp_path, models(tmp_path, "else"), "1", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "nothing in" in done.stderr
