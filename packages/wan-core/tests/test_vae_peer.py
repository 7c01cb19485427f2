"""The video autoencoder against diffusers' AutoencoderKLWan, run live on random weights."""

from functools import cache

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wan_core.checkpoints import MemorySource, load_model, native_weights
from wan_core.models import WAN21_VAE, WAN22_VAE, VAEConfig, VideoVAE
from wan_core.models.vae.tiling import Tiling

from .networks import build

TINY = {"num_res_blocks": 1, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}
PLAIN = TINY | {"base_dim": 4, "z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
RESIDUAL = TINY | {
    "base_dim": 4,
    "decoder_base_dim": 6,
    "z_dim": 6,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}
KINDS = st.sampled_from(["plain", "residual"])
SIDES = st.integers(1, 3)
SIZES = st.integers(2, 4)


@cache
def pair(kind: str) -> tuple[VideoVAE, AutoencoderKLWan]:
    """Our model and the peer with the same weights."""
    options = PLAIN if kind == "plain" else RESIDUAL
    torch.manual_seed(1)
    peer = AutoencoderKLWan(**options).eval()
    residual = kind == "residual"
    config = VAEConfig(
        dim=options["base_dim"],
        dec_dim=options.get("decoder_base_dim"),
        z_dim=options["z_dim"],
        num_res_blocks=1,
        patch_size=2 if residual else 1,
        residual=residual,
    )
    return load_model(config, MemorySource(peer.state_dict()), family="vae"), peer


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@given(kind=KINDS, batch=st.integers(1, 2), groups=st.integers(0, 2), rows=st.integers(1, 4), columns=st.integers(1, 4))
@settings(max_examples=8, deadline=None)
@torch.inference_mode()
def test_equals_diffusers(kind: str, batch: int, groups: int, rows: int, columns: int) -> None:
    ours, peer = pair(kind)
    stride = ours.config.spatial_stride
    video = noise(batch, 3, 1 + 4 * groups, rows * stride, columns * stride).clamp(-1, 1)
    assert_equal(ours.encode_moments(video), peer.encode(video).latent_dist.parameters)
    latents = noise(batch, ours.config.z_dim, 1 + groups, rows, columns)
    assert_equal(ours.decode(latents), peer.decode(latents).sample)


@given(kind=KINDS, tile=st.tuples(SIDES, SIDES), overlap=st.tuples(SIDES, SIDES), size=st.tuples(SIZES, SIZES))
@settings(max_examples=4, deadline=None)
@torch.inference_mode()
def test_tiles_equal_diffusers(
    kind: str, tile: tuple[int, int], overlap: tuple[int, int], size: tuple[int, int]
) -> None:
    ours, peer = pair(kind)
    stride = ours.config.spatial_stride
    strides = [max(1, side - shared) * stride for side, shared in zip(tile, overlap, strict=True)]
    tiling = Tiling(
        tile_height=tile[0] * stride, tile_width=tile[1] * stride, stride_height=strides[0], stride_width=strides[1]
    )
    peer.enable_tiling(tile[0] * stride, tile[1] * stride, *strides)
    video = noise(1, 3, 5, size[0] * stride, size[1] * stride).clamp(-1, 1)
    latents = noise(1, ours.config.z_dim, 2, *size)
    try:
        assert_equal(ours.encode_moments(video, tiling=tiling), peer.encode(video).latent_dist.parameters)
        assert_equal(ours.decode(latents, tiling=tiling), peer.decode(latents).sample)
    finally:
        peer.disable_tiling()


def test_tiles_are_as_large_and_as_far_apart_as_those_of_diffusers_by_default() -> None:
    sides = ("height", "width")
    names = {f"tile_{side}": f"min_{side}" for side in sides} | {f"stride_{side}": f"stride_{side}" for side in sides}
    fresh = AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False])
    for ours, theirs in names.items():
        assert getattr(Tiling(), ours) == getattr(fresh, f"tile_sample_{theirs}")


@torch.inference_mode()
def test_bfloat16_equals_diffusers_within_its_precision() -> None:
    for kind in ("plain", "residual"):
        ours, peer = pair(kind)
        latents = noise(1, ours.config.z_dim, 2, 2, 2).bfloat16()
        exact = ours.decode(latents)
        try:
            theirs = peer.to(torch.bfloat16).decode(latents).sample.float()
            computed = ours.to(torch.bfloat16).decode(latents)
        finally:
            ours.float()
            peer.float()
            pair.cache_clear()  # rounding to bfloat16 and back changed the weights
        assert (computed - exact).abs().mean() <= 1.2 * (theirs - exact).abs().mean() + 1e-3


@pytest.mark.parametrize("config", [WAN21_VAE, WAN22_VAE], ids=["2.1", "2.2"])
def test_released_dims_have_the_tensors_of_diffusers(config: VAEConfig) -> None:
    with torch.device("meta"):
        peer = AutoencoderKLWan(
            base_dim=config.dim,
            decoder_base_dim=config.decoder_dim,
            z_dim=config.z_dim,
            is_residual=config.residual,
            in_channels=config.image_channels,
            out_channels=config.image_channels,
            patch_size=config.patch_size if config.residual else None,
        )
        ours = build(config)
    theirs = native_weights(MemorySource(peer.state_dict()), "vae")
    assert {name: theirs.info(name).shape for name in theirs} == {
        name: tuple(value.shape) for name, value in ours.state_dict().items()
    }
