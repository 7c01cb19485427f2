"""Videos that processes make together are those that one makes, and each process reads its own share of weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from wan_core.models import WanDiT

from .processes import run_together
from .reading_worker import CONFIG

RUNS, READING = (Path(__file__).with_name(f"{name}_worker.py") for name in ("runs", "reading"))


def notes(world: int, script: Path, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What each process has noted."""
    status, said = run_together(world, script, folder, *arguments)
    assert status == 0, said[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def check_training(steps: list[dict[str, Any]], whole: int) -> None:
    """A step of training is that of a whole network, and each process has read its own rows."""
    assert sum(each["held"] for each in steps) == whole
    assert sum(each["memory"][0] for each in steps) <= 1.2 * whole + len(steps) * 2 * 2**20
    assert all(each["is_equal"] for each in steps), "training computes what a whole network does"
    assert all(abs(each["norms"][0] / each["norms"][1] - 1) < 1e-3 for each in steps), "and its gradients"


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_each_process_reads_and_holds_its_share_of_the_weights(world: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file({name: tensor.contiguous() for name, tensor in WanDiT(CONFIG).state_dict().items()},
              tmp_path / "dit.safetensors")  # fmt: skip
    found = notes(world, READING, tmp_path)
    for name in ("float32", "bfloat16"):
        whole = found[0][name]["whole"]
        assert sum(each[name]["held"] for each in found) == whole, "every weight is held once"
        # Some memory is the allocator's and the process group's, whatever the weights.
        assert sum(each[name]["memory"] for each in found) <= 1.2 * whole + world * 2 * 2**20
        assert all(each[name]["is_equal"] for each in found)
    assert sum(each["float32"]["memory"] for each in found) <= 0.2 * found[0]["float32"]["whole"], "they stay mapped"
    assert found[0]["bfloat16"]["dtypes"] == ["torch.bfloat16", "torch.float32"], "float32 islands stay"
    for lora, name in {"False": "float32", "True": "bfloat16"}.items():
        check_training([each["training"][lora] for each in found], found[0][name]["whole"])


CASES = {
    2: ["t2v:cfg", "t2v:dit+t5", "moe:dit+t5+cfg", "ti2v:dit+t5", "s2v:dit+t5", "mi2v:dit+cfg", "bindweave:dit+t5",
        "sfu:dit+t5", "poze:dit+t5+cfg"],
    4: ["t2v:sequence=2+cfg", "moe:dit+t5", "ti2v:dit+t5+cfg"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("world", CASES)
def test_processes_make_together_what_one_makes(world: int, tmp_path: Path) -> None:
    found = notes(world, RUNS, tmp_path, *CASES[world])
    for case in CASES[world]:
        for rank, each in enumerate(found):
            assert each[case]["difference"] <= 1e-5, (case, rank)
            made, whole = each[case]["frames"]
            assert made == (whole if rank == 0 else 0), "the first process has the frames"
            ring, ulysses = each[case]["plan"]
            assert each[case]["is_equal"] or ring * ulysses > 1, "branches and weights change not a bit"
        held, whole = (sum(each[case]["held"][index] for each in found) for index in (0, 1))
        assert held == (whole / world if "dit" in case else whole), case
