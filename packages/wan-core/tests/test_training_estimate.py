"""The estimate of memory against what is counted while a small network is trained."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from wan_core.checkpoints import stays_float32
from wan_core.errors import ConfigError
from wan_core.models import DiTInputs, WanDiT, WanDiTConfig
from wan_core.runtime import make_mesh, prepare_model, shard_model
from wan_core.training import AveragedWeights, LoRASettings, attach_lora, build_optimizers, make_flow_batch
from wan_core.training.estimate import STATE_BYTES, step_memory
from wan_core.training.ranks import leave_whole

from .memory import LiveBytes

CPU = torch.device("cpu")
TOLERANCE = 0.25
"""Of the peak: activations are a count per token and width, and an allocator's rounding is none of them."""


@contextmanager
def processes(world: int) -> Iterator[None]:
    """A process group whose other processes are not there: nothing is sent, and all is counted."""
    if world == 1:
        yield
        return
    distributed.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        distributed.destroy_process_group()


def counted(
    config: WanDiTConfig,
    dtype: torch.dtype,
    *,
    lora: bool,
    recompute: bool,
    frames: int = 4,
    world: int = 1,
    replicas: int = 1,
) -> tuple[int, dict[str, int]]:
    """The peak of two steps of a batch of two, and the estimate."""
    latents = torch.randn(2, config.out_dim, frames, 16, 16)
    shard = leave_whole if world == 1 else partial(shard_model, mesh=make_mesh(world, CPU, replicas=replicas))
    with LiveBytes() as live:
        model = WanDiT(config)
        for name, weight in model.named_parameters():
            torch.nn.init.normal_(weight, std=0.05)
            if lora and not stays_float32(model, name):
                weight.data = weight.data.to(dtype)
        if lora:
            attach_lora(model, LoRASettings(rank=2))
        prepare_model(model, inference=False, dtype=dtype, recompute=recompute, shard=shard)
        optimizers, average = build_optimizers(model, "adamw", 1e-3), AveragedWeights(model, 0.9)
        gc.collect()
        live.peak = live.now
        for step in range(2):
            torch.manual_seed(step)
            batch = make_flow_batch(latents.clone(), torch.rand(2), torch.randn_like(latents))
            batch.loss(model(batch.latents, batch.timesteps, DiTInputs(context=torch.ones(2, 2, 8)))).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            average.update(model)
    estimate = step_memory(
        model, dtype=dtype, tokens=2 * frames * 64, state_bytes=STATE_BYTES["adamw"], averages=True,
        recompute=recompute, world=world, replicas=replicas,
    )  # fmt: skip
    return live.peak, estimate


def config(dim: int, num_layers: int) -> WanDiTConfig:
    return WanDiTConfig(
        in_dim=4, out_dim=4, dim=dim, ffn_dim=4 * dim, num_heads=4, num_layers=num_layers, freq_dim=16, text_dim=8,
        text_len=4,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dim", [48, 192])
def test_the_peak_of_a_step_is_near_the_estimate(dtype: torch.dtype, lora: bool, recompute: bool, dim: int) -> None:
    peak, estimate = counted(config(dim, 5), dtype, lora=lora, recompute=recompute)
    assert peak == pytest.approx(estimate["peak"], rel=TOLERANCE), estimate


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_the_peak_of_several_processes_is_near_the_estimate(replicas: int) -> None:
    with processes(4):
        peak, estimate = counted(
            config(96, 2), torch.float32, lora=False, recompute=True, frames=1, world=4, replicas=replicas
        )
    assert peak == pytest.approx(estimate["peak"], rel=TOLERANCE), estimate


def test_of_several_groups_each_has_all_weights() -> None:
    def rows(world: int, replicas: int) -> dict[str, int]:
        with torch.device("meta"):
            model = WanDiT(config(192, 5))
        return step_memory(
            model, dtype=torch.bfloat16, tokens=512, state_bytes=8, averages=True, recompute=True,
            world=world, replicas=replicas,
        )  # fmt: skip

    assert rows(8, 4) == rows(2, 1), "two processes divide the weights"
    alone, whole = rows(1, 1), rows(2, 2)
    assert whole["optimizer"] == alone["optimizer"]
    assert whole["weights in use"] == rows(2, 1)["weights in use"], "who holds all gathers, too"
    with pytest.raises(ConfigError, match="4 processes cannot make 3 equal groups"):
        rows(4, 3)


def test_rows_divide_among_processes_and_the_rest_does_not() -> None:
    def rows(world: int) -> dict[str, int]:
        with torch.device("meta"):
            model = WanDiT(config(192, 5))
        return step_memory(
            model, dtype=torch.bfloat16, tokens=512, state_bytes=8, averages=True, recompute=True, world=world
        )

    one, eight = rows(1), rows(8)
    for name in ("master weights", "gradients", "optimizer", "averaged weights"):
        assert eight[name] == one[name] // 8
    assert eight["activations"] == one["activations"]
    with torch.device("meta"):
        block = sum(each.numel() for each in WanDiT(config(192, 1)).blocks[0].parameters())
    assert eight["weights in use"] > 2 * 2 * block, "two blocks are gathered in bfloat16"
    assert eight["weights in use"] < 2 * 2 * block + 6 * block + 4 * one["master weights"] / 4
    assert one["weights in use"] < eight["weights in use"]
