"""Tiny networks and inputs for the tests of the DiT."""

from typing import Any

import pytest
import torch
from torch import Tensor

from wan_core.models import DiTInputs, WanDiT, WanDiTConfig
from wan_core.models.dit.layout import TokenLayout
from wan_core.runtime import prepare_model

CONFIG = WanDiTConfig(
    in_dim=3, out_dim=3, dim=24, ffn_dim=20, num_heads=2, num_layers=2, freq_dim=8, text_dim=6, text_len=5
)
IMAGE = WanDiTConfig(
    in_dim=5, out_dim=3, dim=24, ffn_dim=20, num_heads=2, num_layers=2, freq_dim=8, text_dim=6, text_len=5,
    image_dim=7, image_tokens=4,
)  # fmt: skip


def network(config: WanDiTConfig = CONFIG, kind: type[WanDiT] = WanDiT) -> WanDiT:
    """A network whose every weight is random and far from neutral, without gradients."""
    generator = torch.Generator().manual_seed(3)
    model = kind(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + ("norm" in name))
    return model


def prepared(config: WanDiTConfig = CONFIG, kind: type[WanDiT] = WanDiT) -> WanDiT:
    """The same network, prepared for inference."""
    model = network(config, kind)
    prepare_model(model, inference=True)
    return model


BOTH = pytest.mark.parametrize("built", [network, prepared], ids=["plain", "prepared"])
"""For what a network must do in either form."""


class Half(TokenLayout):
    """One of two processes that divide the tokens; the other one's are put beside at the end."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def shard(self, tokens: Tensor, axis: int = 1) -> Tensor:
        return tokens.narrow(axis, self.start, self.stop - self.start)

    def segments(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
        return tuple(
            max(0, min(end, self.stop) - max(end - length, self.start))
            for end, length in zip(ends, lengths, strict=True)
        )


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def conditions(config: WanDiTConfig = CONFIG, batch: int = 1, frames: int = 3, **more: Any) -> DiTInputs:
    """Inputs for latents of ``frames`` x 4 x 6 that use every field of a network of this config."""
    image = None if config.image_dim is None else noise(batch, config.image_tokens, config.image_dim)
    extra = config.in_dim - 3
    values = {
        "context": noise(batch, 3, config.text_dim),
        "image_context": image,
        "extra_context": noise(batch, 2, config.dim),
        "channel_concat": noise(batch, extra, frames, 4, 6) if extra else None,
        "add_condition": noise(batch, frames, 6, config.dim),
    }
    return DiTInputs(**{**values, **more})


def latents(batch: int = 1, frames: int = 3) -> Tensor:
    return noise(batch, 3, frames, 4, 6, seed=9)
