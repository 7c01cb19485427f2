"""The GPU check's training steps, on the path of `wan train`: its loop, optimizers and preparation, its loss."""

import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tools.gpu_networks import Bench, dit_config, random_dit
from wan_core.models import DiTInputs
from wan_core.runtime import prepare_model
from wan_core.training import (
    CheckpointFolder,
    LoopSettings,
    LoRASettings,
    Stage,
    TrainingState,
    attach_lora,
    build_optimizers,
    make_flow_batch,
    own_weights,
    train,
)

_STEPS = 4


class _NothingSaved(CheckpointFolder):
    """Checkpoints that are not written: the disk is not what is measured."""

    def save(self, state: TrainingState, step: int) -> Path:
        return self.path(step)


def training(bench: Bench) -> dict[str, Any]:
    """Steps of 1.3B in bfloat16 on 21 latent frames of 480p, blocks computed again, AdamW: a LoRA, and all weights."""
    found: dict[str, Any] = {}
    for label, lora in (("LoRA of rank 16", LoRASettings(rank=16)), ("all weights", None)):
        if bench.left() < 30 and not bench.is_tiny:
            found[label] = "no time left"
            continue
        bench.clear()
        found[label] = _steps(bench, lora)
    return found


def _steps(bench: Bench, lora: LoRASettings | None) -> dict[str, Any]:
    config, latents = dit_config("t2v-1.3B", bench)
    network = random_dit(config, bench, torch.float32 if lora is None else torch.bfloat16)
    if lora is None:
        own_weights(network)
    else:
        attach_lora(network, lora)
    prepare_model(network.train(), inference=False, dtype=torch.bfloat16, recompute=True)
    clean = bench.normal(1, config.in_dim, *latents)
    inputs = DiTInputs(context=bench.normal(1, 512, config.text_dim))
    starts: list[float] = []
    losses: list[float] = []

    def loss(step: int, index: int) -> Tensor:
        bench.wait()
        starts.append(time.perf_counter())
        noise, sigmas = bench.normal(*clean.shape, seed=1 + step), torch.full((1,), 0.5, device=bench.device)
        flow = make_flow_batch(clean, sigmas, noise)
        return flow.loss(network(flow.latents, flow.timesteps, inputs))

    def report(line: dict[str, Any]) -> None:
        losses.extend([line["loss"]] if "loss" in line else [])

    stage = Stage.of(network, build_optimizers(network, "adamw", 1e-4), loss)
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        settings = LoopSettings(steps=_STEPS, warmup_steps=0, log_steps=1)
        train(stage, settings, checkpoints=_NothingSaved(Path(folder) / "none"), report=report)
    taken = [after - before for before, after in pairwise(starts[1:])]  # the first step warms up
    middle = sorted(taken)[len(taken) // 2]
    trained = sum(each.numel() for each in network.parameters() if each.requires_grad)
    return {
        "latents": list(latents),
        "trained": trained,
        "losses": [round(each, 5) for each in losses],
        "s": round(middle, 5),
        "least_s": round(min(taken), 5),
        "peak_gb": bench.peak(),
    }
