"""One process of a small run, alone or under torchrun: ``ranks_worker.py FOLDER STEPS [FLAG ...]``.

It trains a tiny transformer on seeded latents with the core's loop; the first process writes losses and final weights.
Flags: ``lora`` and ``muon`` say what is trained and how, ``narrow`` computes in bfloat16, ``groups`` makes two groups
of processes that hold the same weights each, ``fail`` lets the last process raise at step 3, ``die`` kills the first
one while it saves step 20.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint.state_dict_saver as saver
from safetensors.torch import save_file
from torch import Tensor

from wan_core import RequestError
from wan_core.models import DiTInputs, WanDiT, WanDiTConfig
from wan_core.runtime import launched, prepare_model
from wan_core.training import (
    AveragedWeights,
    CheckpointFolder,
    LoopSettings,
    LoRASettings,
    Ranks,
    Stage,
    attach_lora,
    build_optimizers,
    distributed_ranks,
    make_flow_batch,
    train,
    trained_tensors,
)

CPU = torch.device("cpu")
GLOBAL_BATCH = 4
CONFIG = WanDiTConfig(
    in_dim=4, out_dim=4, dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=8, text_len=6, freq_dim=16
)


def main() -> None:
    """Run this process's part."""
    folder, steps, flags = Path(sys.argv[1]), int(sys.argv[2]), set(sys.argv[3:])
    torch.set_num_threads(1)
    with distributed_ranks(launched(), CPU, replicas=2 if "groups" in flags else 1) as ranks:
        run(folder, steps, flags, ranks)


def run(folder: Path, steps: int, flags: set[str], ranks: Ranks) -> None:
    """Train, and write what the tests compare."""
    torch.manual_seed(0)
    model = WanDiT(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    if "lora" in flags:
        attach_lora(model, LoRASettings(rank=2))
    prepare_model(model, inference=False, shard=ranks.shard, dtype=torch.bfloat16 if "narrow" in flags else None)
    optimizers = build_optimizers(model, "muon" if "muon" in flags else "adamw", 1e-2, weight_decay=0.01)
    average = AveragedWeights(model, 0.9)
    count = GLOBAL_BATCH // ranks.world
    mine = slice(ranks.rank * count, (ranks.rank + 1) * count)

    def loss(step: int, index: int) -> Tensor:
        if "fail" in flags and step == 3 and ranks.rank == ranks.world - 1:
            raise RequestError("this process fails on purpose")
        generator = torch.Generator().manual_seed(step)
        latents, noise = (torch.randn(GLOBAL_BATCH, 4, 2, 4, 4, generator=generator)[mine] for _ in range(2))
        context = torch.randn(GLOBAL_BATCH, 3, 8, generator=generator)[mine]
        batch = make_flow_batch(latents, torch.rand(GLOBAL_BATCH, generator=generator)[mine], noise)
        return batch.loss(model(batch.latents, batch.timesteps, DiTInputs(context=context)))

    if "die" in flags and ranks.is_first:
        die_in_second_save()
    losses: list[float] = []
    settings = LoopSettings(steps=steps, warmup_steps=2, decay_share=0.0, save_steps=10, log_steps=1, clip_norm=1.0)
    train(
        Stage.of(model, optimizers, loss, average),
        settings, checkpoints=CheckpointFolder(folder, keep=3),
        report=lambda line: losses.append(line["loss"]) if "loss" in line else None,
        rank=ranks.rank, reduce=ranks.reduce,
    )  # fmt: skip
    weights = {name: ranks.whole(value).contiguous() for name, value in trained_tensors(model).items()}
    averages = {f"average.{name}": ranks.whole(value).contiguous() for name, value in average.tensors.items()}
    if ranks.is_first:
        save_file({**weights, **averages}, folder / "final.safetensors")
        (folder / "losses.json").write_text(json.dumps(losses))


def die_in_second_save() -> None:
    """SIGKILL this process when the parts of the second checkpoint are written."""
    real, calls = saver.save, [0]

    def save(*values: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*values, **options)  # type: ignore[arg-type]

    saver.save = save  # type: ignore[assignment]


if __name__ == "__main__":
    main()
