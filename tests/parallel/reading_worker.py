"""One process of several: ``reading_worker.py FOLDER`` reads its part of ``FOLDER/dit.safetensors``.

It notes in ``FOLDER/RANK.json`` how much memory of its own that took, and whether the velocity is that of a whole
network; the weights are float32 in the file, and read as they are and as bfloat16, with and without LoRAs.
"""

import copy
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from wan_core.checkpoints import DIT, LoRA, load_model, read_weights, with_loras
from wan_core.models import DiTInputs, WanDiTConfig
from wan_core.runtime import (
    DividedReading,
    RowReading,
    launched,
    prepare_model,
    process_group,
    shard_model,
    whole_tensor,
)
from wan_core.runtime.mesh import ParallelPlan, video_mesh
from wan_core.training import LoRASettings, attach_lora, own_weights

NARROW = torch.bfloat16

CONFIG = WanDiTConfig(
    in_dim=4, out_dim=4, dim=512, ffn_dim=2048, num_heads=4, num_layers=6, text_dim=64, text_len=8, freq_dim=64
)
CASES = {
    "float32": (torch.float32, True, 0),
    "bfloat16": (torch.bfloat16, True, 0),
    "unmapped": (torch.float32, False, 0),
    "lora": (torch.float32, True, 1),
    "two loras in bfloat16": (torch.bfloat16, True, 2),
}
"""The dtype, whether the file is mapped, and how many LoRAs are merged."""


def own_memory() -> int:
    """Bytes of memory that no other process and no file backs."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("Anonymous:")))


def in_own_memory(model: nn.Module) -> nn.Module:
    """The same weights where an allocator puts them: products round by the address, and a mapping has odd ones."""
    return copy.deepcopy(model)


def velocity(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy, context = (torch.randn(shape, generator=generator) for shape in ((1, 4, 1, 4, 4), (1, 8, 64)))
    out: torch.Tensor = model(noisy, torch.tensor([500.0]), DiTInputs(context=context))
    return out


@torch.no_grad()
def is_equal(one: nn.Module, other: nn.Module) -> bool:
    return torch.equal(velocity(one), velocity(other))


def trained(folder: Path, mesh: DeviceMesh, *, lora: bool) -> dict[str, Any]:
    """One step of a network whose rows were read by their processes, beside one of a whole network."""
    outs, norms, memory, held = [], [], [], 0
    for division in (RowReading(mesh), None):
        source = read_weights(folder / "dit.safetensors", mmap=True)
        before = own_memory()
        model = load_model(CONFIG, source, family=DIT, dtype=NARROW if lora else torch.float32, division=division)
        memory.append(own_memory() - before)
        model = in_own_memory(model) if division is None else model
        torch.manual_seed(0)
        if lora:
            attach_lora(model, LoRASettings(rank=2))
        else:
            own_weights(model)
        shard = None if division is None else partial(shard_model, mesh=mesh)
        prepare_model(model, inference=False, shard=shard, dtype=NARROW)
        if division is not None:
            held = sum(each.to_local().nbytes for each in model.parameters() if not (lora and each.requires_grad))
        out = velocity(model)
        outs.append(out.detach())
        out.square().mean().backward()
        weights = [each.grad for each in model.parameters() if each.grad is not None]
        norms.append(float(whole_tensor(torch.nn.utils.get_total_norm(weights))))
    return {"is_equal": torch.equal(*outs), "norms": norms, "memory": memory, "held": held}


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    launch = launched()
    assert launch is not None
    found: dict[str, Any] = {}
    with process_group(launch, torch.device("cpu")):
        mesh = video_mesh(ParallelPlan(ulysses=launch.world).open(torch.device("cpu")))
        lora = LoRA(folder / "lora.safetensors")
        for name, (dtype, mmap, loras) in CASES.items():
            division = DividedReading(mesh, lambda model, shard: prepare_model(model, inference=True, shard=shard))
            options: dict[str, Any] = {"family": DIT, "dtype": dtype}
            before = own_memory()
            source = with_loras(read_weights(folder / "dit.safetensors", mmap=mmap), [lora] * loras, dtype=dtype)
            model = load_model(CONFIG, source, division=division, **options)
            memory = own_memory() - before
            source = with_loras(read_weights(folder / "dit.safetensors", mmap=mmap), [lora] * loras, dtype=dtype)
            whole = in_own_memory(load_model(CONFIG, source, **options))
            prepare_model(whole, inference=True)
            found[name] = {
                "memory": memory,
                "held": sum(each.to_local().nbytes for each in model.parameters()),
                "whole": sum(each.nbytes for each in whole.parameters()),
                "is_equal": is_equal(model, whole),
                "dtypes": sorted({str(each.dtype) for each in model.parameters()}),
            }
        found["training"] = {str(lora): trained(folder, mesh, lora=lora) for lora in (False, True)}
    (folder / f"{launch.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
