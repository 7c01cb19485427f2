"""The loop around a real, tiny network."""

import pytest
import torch
from torch import Tensor

from wan_core.models import DiTInputs, WanDiT, WanDiTConfig
from wan_core.sampling import Anchors, Denoiser, ExpertDenoiser, make_solver, sample, seeded_generator, seeded_noise

from .networks import build

SHAPE = (1, 4, 3, 4, 6)


@pytest.fixture(scope="module")
def networks() -> list[WanDiT]:
    config = WanDiTConfig(
        in_dim=4, out_dim=4, dim=24, ffn_dim=32, num_heads=2, num_layers=2, freq_dim=16, text_dim=12, text_len=8
    )
    made = [build(config).eval() for _ in range(2)]
    for seed, network in enumerate(made):
        for parameter in network.parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=seeded_generator(seed))
    return made


def conditions(batch: int = 1) -> tuple[DiTInputs, DiTInputs]:
    """Positive and negative conditions of different text lengths, each with a fresh cache."""
    positive, negative = seeded_noise((batch, 5, 12), 1), seeded_noise((batch, 3, 12), 2)
    return DiTInputs(context=positive).with_cache(), DiTInputs(context=negative).with_cache()


def anchored(start: Tensor) -> Anchors:
    return Anchors.leading(0.5 * start[:, :, :1], SHAPE[2])


@torch.no_grad()
def test_batched_guidance_equals_sequential(networks: list[WanDiT]) -> None:
    start = seeded_noise(SHAPE, 0)
    anchors = anchored(start)
    results = [
        sample(
            Denoiser(networks[0], *conditions(), 4.0, anchors=anchors, batched=batched),
            make_solver("unipc", 4, flow_shift=5.0),
            start,
            anchors=anchors,
        )
        for batched in (False, True)
    ]
    torch.testing.assert_close(results[1], results[0], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_batch_2_equals_twice_batch_1(networks: list[WanDiT]) -> None:
    start = seeded_noise((2, *SHAPE[1:]), 0)
    positive, negative = conditions(2)

    def run(rows: slice) -> Tensor:
        latents = start[rows]
        anchors = anchored(latents)
        branches = [
            Denoiser(
                network,
                DiTInputs(context=positive.context[rows]).with_cache(),
                DiTInputs(context=negative.context[rows]).with_cache(),
                scale,
                anchors=anchors,
            )
            for network, scale in zip(networks, (4.0, 3.0), strict=True)
        ]
        denoiser = ExpertDenoiser(*branches, boundary=0.9)
        return sample(denoiser, make_solver("dpm++", 4, flow_shift=5.0), latents, anchors=anchors)

    parts = torch.cat([run(slice(0, 1)), run(slice(1, 2))])
    torch.testing.assert_close(run(slice(0, 2)), parts, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_anchors_reach_the_network_and_the_result_unchanged(networks: list[WanDiT]) -> None:
    start = seeded_noise(SHAPE, 0)
    anchors = anchored(start)
    denoiser = Denoiser(networks[0], *conditions(), 4.0, anchors=anchors)
    result = sample(denoiser, make_solver("euler", 3, flow_shift=5.0), start, anchors=anchors)
    assert torch.equal(result[:, :, :1], 0.5 * start[:, :, :1])
    assert result.isfinite().all()
