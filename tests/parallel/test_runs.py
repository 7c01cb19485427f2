"""Videos that processes make together are those that one makes, and each process reads its own share of weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wan_core.models import WanDiT

from .processes import run_together
from .reading_worker import CASES as READING_CASES
from .reading_worker import CONFIG

RUNS, READING = (Path(__file__).with_name(f"{name}_worker.py") for name in ("runs", "reading"))


def notes(world: int, script: Path, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What each process has noted."""
    status, said = run_together(world, script, folder, *arguments, seconds=900)
    assert status == 0, said[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def lora_of(model: WanDiT) -> dict[str, torch.Tensor]:
    """A change of every linear layer of the blocks."""
    pairs = {}
    for name, layer in model.blocks.named_modules():
        if isinstance(layer, nn.Linear):
            pairs[f"diffusion_model.blocks.{name}.lora_A.weight"] = torch.randn(4, layer.in_features) * 0.1
            pairs[f"diffusion_model.blocks.{name}.lora_B.weight"] = torch.randn(layer.out_features, 4) * 0.1
    return pairs


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
    model = WanDiT(CONFIG)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "dit.safetensors")
    save_file(lora_of(model), tmp_path / "lora.safetensors")
    found = notes(world, READING, tmp_path)
    for name in READING_CASES:
        whole = found[0][name]["whole"]
        assert sum(each[name]["held"] for each in found) == whole, "every weight is held once"
        # Some memory is the allocator's and the process group's, whatever the weights.
        assert sum(each[name]["memory"] for each in found) <= 1.2 * whole + world * 2 * 2**20
        assert all(each[name]["is_equal"] for each in found)
    assert sum(each["float32"]["memory"] for each in found) <= 0.2 * found[0]["float32"]["whole"], "they stay mapped"
    assert found[0]["bfloat16"]["dtypes"] == ["torch.bfloat16", "torch.float32"], "float32 islands stay"
    for lora, name in {"False": "float32", "True": "bfloat16"}.items():
        check_training([each["training"][lora] for each in found], found[0][name]["whole"])


WEIGHTS = ("", "+dit", "+t5", "+dit+t5")
SHARES = {2: ("sequence=2", "cfg"), 4: ("sequence=4", "sequence=2+cfg", "sequence=2", "cfg+sequence=1")}
"""What processes divide: tokens, branches, or both; where fewer do so than there are, groups make the same video."""

MODELS = {
    2: ["s2v:cfg+dit+t5", "s2v:dit+t5", "animate:cfg+dit+t5", "animate:dit+t5", "replace:cfg+dit", "sfu:cfg+dit+t5",
        "sfu:dit+t5", "moe:cfg+dit+t5", "ti2v:dit+t5", "i2v:cfg+dit", "mi2v:cfg+dit", "bindweave:dit+t5",
        "poze:cfg+dit+t5", "t2v:lora+dit+cfg", "moe:lora+dit+t5"],
    4: ["s2v:sequence=2+cfg+dit+t5", "animate:sequence=2+cfg+dit+t5", "replace:sequence=2+dit",
        "sfu:sequence=2+cfg+dit+t5", "sfu:sequence=2+dit", "moe:dit+t5", "ti2v:sequence=2+cfg+dit+t5",
        "bindweave:sequence=2+cfg+dit", "moe:lora+cfg+dit"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_every_way_to_divide_a_video_makes_what_one_process_makes(world: int, tmp_path: Path) -> None:
    check_runs(world, [f"t2v:{share}{weights}" for share in SHARES[world] for weights in WEIGHTS], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_processes_make_together_what_one_makes_of_every_model(world: int, tmp_path: Path) -> None:
    check_runs(world, MODELS[world], tmp_path)


def check_runs(world: int, cases: list[str], folder: Path) -> None:
    """Final latents are within 1e-5 of those of one process, as they are, and the very same where tokens are whole."""
    found = notes(world, RUNS, folder, *cases)
    for case in cases:
        for rank, each in enumerate(found):
            assert each[case]["difference"] <= 1e-5, (case, rank)
            made, wanted = each[case]["frames"]
            assert made == wanted, "the first process of a video has the frames"
            ring, ulysses = each[case]["plan"]
            assert each[case]["is_equal"] or ring * ulysses > 1, "branches and weights change not a bit"
        held, whole = (sum(each[case]["held"][index] for each in found) for index in (0, 1))
        copies = found[0][case]["copies"] if "dit" in case else world
        assert held == whole / world * copies, case
