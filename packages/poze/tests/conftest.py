"""Small networks for the tests of finetuning: seconds on one core."""

import pytest
import torch

from pi3 import DinoConfig, Pi3, Pi3Config
from pi3.checkpoints import build
from poze.adapter import Pi3FeatureAdapter
from wan_core.models import VAEConfig, VideoVAE, WanDiT, WanDiTConfig
from wan_core.tasks import Companion
from wan_core.training import TrainedNetworks

DIT = WanDiTConfig(
    in_dim=4, out_dim=4, dim=24, ffn_dim=48, num_heads=2, num_layers=2, text_dim=8, text_len=4, freq_dim=16
)
VAE = VAEConfig(
    dim=4,
    dec_dim=4,
    z_dim=4,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    patch_size=2,
    residual=True,
)
PI3 = Pi3Config(
    encoder=DinoConfig(image_size=28, dim=24, num_layers=1, num_heads=2, num_registers=1),
    decoder_layers=2,
    decoder_heads=2,
    num_registers=1,
    head_dim=24,
    head_heads=2,
    head_layers=1,
    camera_dim=8,
    pixel_limit=28 * 28,
)


@pytest.fixture
def dit() -> WanDiT:
    """A transformer of width 24 whose every weight matters."""
    torch.manual_seed(0)
    network = WanDiT(DIT)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture
def adapter() -> Pi3FeatureAdapter:
    """An adapter for the small Pi3."""
    torch.manual_seed(1)
    return Pi3FeatureAdapter(48, 24, 4)


@pytest.fixture
def networks(dit: WanDiT, adapter: Pi3FeatureAdapter) -> TrainedNetworks:
    """Both, trained together."""
    return TrainedNetworks(dit=dit, companions={"adapter": Companion(network=adapter)})


@pytest.fixture
def vae() -> VideoVAE:
    """A frozen autoencoder of stride 4x8x8."""
    torch.manual_seed(2)
    return VideoVAE(VAE).eval().requires_grad_(False)


@pytest.fixture
def pi3() -> Pi3:
    """A frozen Pi3 of one patch block."""
    torch.manual_seed(3)
    return build(PI3).eval().requires_grad_(False)
