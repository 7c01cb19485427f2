"""Several processes: they agree with one, go on in other numbers, and stop together."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wan_core import BackendError, ConfigError
from wan_core.runtime import Launch, is_first_to_say, launched, make_mesh

WORKER = Path(__file__).with_name("ranks_worker.py")
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def start(world: int, folder: Path, steps: int, *flags: str) -> tuple[int, str]:
    """Run the worker in ``world`` processes to the end, as torchrun would: when one fails, the others are ended.

    The worst exit status, and what all have said.
    """
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, str(WORKER), str(folder), str(steps), *flags]
    logs = [folder.with_name(f"{folder.name}-{rank}.log") for rank in range(world)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as stream:
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(command, env=environment, stdout=stream, stderr=stream))
    deadline = time.monotonic() + 240
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes) or time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    return max(abs(process.returncode) for process in processes), "".join(log.read_text() for log in logs)


def finish(world: int, folder: Path, steps: int, *flags: str) -> dict[str, torch.Tensor]:
    """The final weights of a run that must succeed."""
    status, said = start(world, folder, steps, *flags)
    assert status == 0, said[-3000:]
    return load_file(folder / "final.safetensors")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of 20 steps by one process and by two."""
    folder = tmp_path_factory.mktemp("ranks")
    finish(1, folder / "one", 20)
    finish(2, folder / "two", 20)
    return folder / "one", folder / "two"


@pytest.mark.slow
def test_two_processes_agree_with_one(runs: tuple[Path, Path]) -> None:
    losses = [json.loads((folder / "losses.json").read_text()) for folder in runs]
    assert len(losses[0]) == 20
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert_same(*(load_file(folder / "final.safetensors") for folder in runs))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_in_another_number_of_processes(
    before: int, after: int, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs[before - 1], folder)
    shutil.rmtree(folder / "step-00000020")
    assert_same(load_file(runs[0] / "final.safetensors"), finish(after, folder, 20))
    assert len(json.loads((folder / "losses.json").read_text())) == 10, "only the missing steps are made"


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["lora", "muon"])
def test_adapters_and_muon_agree_too(flag: str, tmp_path: Path) -> None:
    assert_same(finish(1, tmp_path / "one", 6, flag), finish(2, tmp_path / "two", 6, flag))


@pytest.mark.slow
def test_in_bfloat16_they_agree_as_far_as_its_gradients_do(tmp_path: Path) -> None:
    for world, name in ((1, "one"), (2, "two")):
        finish(world, tmp_path / name, 6, "narrow")
    one, two = (json.loads((tmp_path / name / "losses.json").read_text()) for name in ("one", "two"))
    assert two[0] == pytest.approx(one[0], abs=1e-5), "a forward rounds alike"
    assert two == pytest.approx(one, rel=0.02)


@pytest.mark.slow
def test_two_groups_of_two_processes_agree_with_one(runs: tuple[Path, Path], tmp_path: Path) -> None:
    assert_same(load_file(runs[0] / "final.safetensors"), finish(4, tmp_path / "four", 20, "groups"))


@pytest.mark.slow
def test_a_failing_process_ends_all_of_them(tmp_path: Path) -> None:
    status, said = start(2, tmp_path / "run", 20, "fail")
    assert status != 0
    assert "this process fails on purpose" in said


@pytest.mark.slow
def test_a_process_killed_while_saving_leaves_the_last_good_checkpoint(runs: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert start(2, folder, 20, "die")[0] != 0
    assert [path.name for path in sorted(folder.glob("step-*"))] == ["step-00000010"]
    assert_same(load_file(runs[0] / "final.safetensors"), finish(2, folder, 20))


def test_without_torchrun_there_is_one_process() -> None:
    assert launched({}) is None
    assert launched({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}) is None
    assert launched(TORCHRUN) == Launch(1, 2, 1, 2)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"MASTER_PORT": None}, "MASTER_PORT"), ({"RANK": "x"}, "whole numbers"), ({"RANK": "2"}, "cannot be")],
)
def test_half_of_torchrun_is_refused(change: dict[str, str | None], word: str) -> None:
    environment = {name: value for name, value in {**TORCHRUN, **change}.items() if value is not None}
    with pytest.raises(BackendError, match=word):
        launched(environment)


def test_a_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Launch(5, 8, 1).device() == "cuda:1"
    assert Launch(5, 8, 1).device("cuda") == "cuda:1"
    assert Launch(5, 8, 1).device("cpu") == "cpu"


def test_groups_must_be_equal() -> None:
    with pytest.raises(ConfigError, match="3 equal groups"):
        make_mesh(4, torch.device("cpu"), replicas=3)


def test_a_sentence_is_for_the_first_process_where_they_can_agree() -> None:
    server = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)}
    assert [is_first_to_say(text, shared) for text in ("one", "one", "two")] == [True, False, True]
    assert is_first_to_say("one", {**shared, "TORCHELASTIC_RESTART_COUNT": "1"}), "another attempt tells it again"
    assert is_first_to_say("one", {}), "without torchrun"
    assert is_first_to_say("one", {**shared, "MASTER_PORT": "none"}), "without a store"
