"""Tiny networks whose every weight matters, for all test modules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pi3 import DinoConfig, Pi3Config, Pi3XConfig
from pi3.checkpoints import build

ENCODER = DinoConfig(image_size=56, dim=32, num_layers=1, num_heads=2)
TINY = Pi3Config(
    encoder=ENCODER, decoder_layers=4, decoder_heads=2, head_dim=32, head_heads=2, head_layers=1, camera_dim=16
)
TINY_X = Pi3XConfig(
    **vars(TINY), upsample_dims=(32, 16, 16), metric_dim=16, metric_heads=1, metric_layers=1, inject_after=(1, 3)
)


def build_randomized(config: Pi3Config) -> Any:
    """A model without zeros or tiny layer scales."""
    torch.manual_seed(0)
    model = build(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = {1: 0.1, 4: 0.05}.get(parameter.ndim, 0.2)
            parameter.copy_(spread * torch.randn_like(parameter) + 0.5 * name.endswith(("gamma", "norm.weight")))
    return model


@pytest.fixture(scope="session")
def tiny() -> Pi3Config:
    return TINY


@pytest.fixture(scope="session")
def tiny_x() -> Pi3XConfig:
    return TINY_X


@pytest.fixture(scope="session")
def randomized() -> Callable[[Pi3Config], Any]:
    return build_randomized


@pytest.fixture(scope="module")
def model() -> Any:
    return build_randomized(TINY)


@pytest.fixture(scope="module")
def model_x() -> Any:
    return build_randomized(TINY_X)
