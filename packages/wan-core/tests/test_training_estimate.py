"""The estimate of memory against what is counted while a small network is trained."""

from __future__ import annotations

import pytest
import torch

from wan_core.checkpoints import stays_float32
from wan_core.models import DiTInputs, WanDiT, WanDiTConfig
from wan_core.runtime import prepare_model
from wan_core.training import AveragedWeights, LoRASettings, attach_lora, build_optimizers, make_flow_batch
from wan_core.training.estimate import STATE_BYTES, step_memory

from .memory import LiveBytes

TOLERANCE = 0.25
"""Of the peak: activations are a count per token and width, and an allocator's rounding is none of them."""


def counted(config: WanDiTConfig, dtype: torch.dtype, *, lora: bool, recompute: bool) -> tuple[int, dict[str, int]]:
    """The peak of two steps of a batch of two, and the estimate."""
    latents = torch.randn(2, config.out_dim, 4, 16, 16)
    with LiveBytes() as live:
        model = WanDiT(config)
        for name, weight in model.named_parameters():
            torch.nn.init.normal_(weight, std=0.05)
            if lora and not stays_float32(model, name):
                weight.data = weight.data.to(dtype)
        if lora:
            attach_lora(model, LoRASettings(rank=2))
        prepare_model(model, inference=False, dtype=dtype, recompute=recompute)
        optimizers, average = build_optimizers(model, "adamw", 1e-3), AveragedWeights(model, 0.9)
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
        model, dtype=dtype, tokens=2 * 4 * 64, state_bytes=STATE_BYTES["adamw"], averages=True, recompute=recompute
    )
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
