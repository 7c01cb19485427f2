"""``sfu distill`` in two processes, whose weights are divided, does what one process does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from .distilling import write_encoder, write_student, write_targets

COMMAND = "from selfforcing_unianimate.cli import main; main()"


def trained(folder: Path, world: int, words: list[object]) -> dict[str, Tensor]:
    """The student of two steps made by ``world`` processes, which have a batch of two together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    output = folder / str(world)
    given = ["distill", *words, "--output", output, "--batch-size", 2 // world, "--steps", 2, "--quiet"]
    processes = []
    for rank in range(world):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if world > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-c", COMMAND, *(str(word) for word in given)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        errors = process.communicate(timeout=600)[1]
        assert process.returncode == 0, errors[-3000:]
    (path,) = (output / "model" / "student").glob("*.safetensors")
    return load_file(path)


@pytest.mark.slow
def test_two_processes_distil_the_student_that_one_does(tmp_path: Path) -> None:
    network, targets = write_student(tmp_path / "dit.safetensors"), write_targets(tmp_path / "targets")
    words = ["--stage", "dmd", "--targets", targets, "--teacher", network, "--part", f"dit={network}"]
    words += ["--pose-weights-path", write_encoder(tmp_path / "pose.safetensors"), "--critic-steps", 1]
    one, two = (trained(tmp_path, world, [*words, "--lr", 1e-3, "--ema-start", 1]) for world in (1, 2))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-4, msg=name)
    start = load_file(network)
    assert any(not torch.equal(one[name], start[name]) for name in one)
