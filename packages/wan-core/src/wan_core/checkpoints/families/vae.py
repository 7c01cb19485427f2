"""The video autoencoders of Wan 2.1 and 2.2: dims from shapes, latent statistics, names, where their files lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core import models
from wan_core.checkpoints.families.dit import DIFFUSERS_VERSION
from wan_core.checkpoints.families.record import Family, Places
from wan_core.checkpoints.families.shapes import Shapes, build_config, stated
from wan_core.checkpoints.families.vae_names import stages_of, vae_renames
from wan_core.checkpoints.folds import Fold
from wan_core.checkpoints.formats import CheckpointFormat
from wan_core.models import WAN21_VAE, WAN22_VAE, VAEConfig

if TYPE_CHECKING:
    from torch import nn

    from wan_core.checkpoints.readers.sources import TensorSource


def infer_vae_config(path: Path, source: TensorSource) -> VAEConfig:
    """The config of a video autoencoder from its tensors, under native names.

    Latent statistics are the released ones for 16 (Wan 2.1) and 48 (Wan 2.2) channels, else those in the metadata, else
    none. Raises CheckpointError when the tensors are not those of such a network.
    """
    shape = Shapes(source, "VAE")
    stages = stages_of(source.keys())
    levels = range(stages.count)
    widths = [shape.of(f"{stages.encoder_block(level, 0)}.residual.2.weight", 5)[0] for level in levels]
    ends = [f"{stages.encoder_block(level, stages.blocks)}.time_conv.weight" for level in levels[:-1]]
    dim, channels = shape.of("encoder.conv1.weight", 5)[:2]
    z_dim = shape.of("conv2.weight", 5)[0]
    dim_mult = tuple(width // dim for width in widths)
    decoder_last = shape.of("decoder.head.2.weight", 5)[1]
    values = {
        "dim": dim,
        "dec_dim": decoder_last // max(dim_mult[0], 1),
        "z_dim": z_dim,
        "dim_mult": dim_mult,
        "num_res_blocks": stages.blocks,
        "temporal_downsample": tuple(name in source for name in ends),
        "patch_size": 2 if channels == 12 else 1,
        "residual": stages.nested,
    }
    released = {16: WAN21_VAE, 48: WAN22_VAE}.get(z_dim)
    if released is not None:
        values |= {"latents_mean": released.latents_mean, "latents_std": released.latents_std}
    return build_config(VAEConfig, values | stated(source, ("latents_mean", "latents_std")), source.path)


def diffusers_config(config: VAEConfig) -> dict[str, Any]:
    """``config.json`` of an autoencoder for diffusers."""
    patched = {"in_channels": 12, "out_channels": 12, "patch_size": 2} if config.patch_size == 2 else {}
    return {
        "_class_name": "AutoencoderKLWan",
        "_diffusers_version": DIFFUSERS_VERSION,
        "attn_scales": [],
        "base_dim": config.dim,
        "decoder_base_dim": config.decoder_dim,
        "dim_mult": list(config.dim_mult),
        "dropout": config.dropout,
        "is_residual": config.residual,
        "latents_mean": list(config.latents_mean) or [0.0] * config.z_dim,
        "latents_std": list(config.latents_std) or [1.0] * config.z_dim,
        "num_res_blocks": config.num_res_blocks,
        "scale_factor_spatial": config.spatial_stride,
        "scale_factor_temporal": config.temporal_stride,
        "temperal_downsample": list(config.temporal_downsample),  # spelt so
        "z_dim": config.z_dim,
        **patched,
    }


def _version(config: VAEConfig) -> str:
    return "Wan2.2" if config.residual else "Wan2.1"


def _network(config: VAEConfig) -> nn.Module:
    return models.VideoVAE(config)


VAE = Family(
    name="vae",
    title="the VAE",
    network=_network,
    infer=infer_vae_config,
    formats=(
        CheckpointFormat(
            name="diffusers",
            marker=r"\.mid_block\.",
            renames_for=vae_renames,
        ),
        CheckpointFormat(name="official"),
    ),
    signature=r"(?:^|\.)decoder\.(?:middle|mid_block)\.",
    folds=(
        Fold(
            r"conv[12]\.weight|(?:en|de)coder\.(?:conv1|head\.2|.+\.(?:residual\.[26]|shortcut|time_conv))\.weight", 5
        ),
    ),
    usual=lambda config: {} if config.z_dim in (16, 48) else {"latents_mean": (), "latents_std": ()},
    diffusers_config=diffusers_config,
    places=Places(
        official=lambda config, expert: f"{_version(config)}_VAE.pth",
        container="torch",
        diffusers="vae",
        single="vae",
        single_name=lambda config, expert: f"{_version(config).lower()}_vae",
    ),
    half_dtype="float32",  # as in the original: the encoded image seeds the whole trajectory
)
"""Both video autoencoders; the native names are the official ones."""
