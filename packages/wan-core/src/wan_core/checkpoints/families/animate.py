"""The transformer of Wan-Animate: the names of Wan's, and those of what sees poses and faces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wan_core import models
from wan_core.checkpoints.families.animate_names import DIFFUSERS_ANIMATE
from wan_core.checkpoints.families.dit import DIT, added_fields, diffusers_config, dit_config_reader, official_config
from wan_core.checkpoints.families.relatives import refusing_relatives
from wan_core.checkpoints.families.shapes import Shapes
from wan_core.checkpoints.folds import Fold
from wan_core.errors import CheckpointError
from wan_core.models import AnimateDiTConfig

if TYPE_CHECKING:
    from torch import nn

    from wan_core.checkpoints.readers.sources import TensorSource

_NAME = "animate"
_DIFFUSERS_VERSION = "0.36.0"
"""The diffusers version that has this network first."""


def _dims(source: TensorSource) -> Mapping[str, Any]:
    shape = Shapes(source, "transformer of Wan-Animate")
    convs = "motion_encoder.enc.net_app.convs"
    last = shape.count(rf"{re.escape(convs)}\.(\d+)\.") - 1
    first = shape.of(f"{convs}.0.0.weight", 4)[0]
    halved = [shape.of(f"{convs}.{index}.conv2.1.weight", 4)[0] for index in range(1, last)]
    motion_encoder_dim, motion_dim = shape.of("motion_encoder.dec.direction.weight", 2)
    hidden = shape.of("face_encoder.conv2.conv.weight", 3)[0]
    layers, adapters = shape.count(r"blocks\.(\d+)\."), shape.count(r"face_adapter\.fuser_blocks\.(\d+)\.")
    if layers % adapters:
        raise CheckpointError(f"{source.path}: {adapters} face adapters do not go evenly among {layers} blocks")
    return {
        "pose_dim": shape.of("pose_patch_embedding.weight", 5)[1],
        "motion_encoder_channels": (first, *halved),
        "motion_style_dim": shape.of(f"{convs}.{last}.weight", 4)[0],
        "motion_dim": motion_dim,
        "motion_encoder_dim": motion_encoder_dim,
        "face_encoder_hidden_dim": hidden,
        "face_encoder_num_heads": shape.of("face_encoder.conv1_local.conv.weight", 3)[0] // hidden,
        "inject_face_latents_blocks": layers // adapters,
    }


def _network(config: AnimateDiTConfig) -> nn.Module:
    return models.AnimateDiT(config)


def _official_config(config: AnimateDiTConfig) -> Mapping[str, Any]:
    values = {**official_config(config), "_class_name": "WanAnimateModel"}
    values.pop("model_type")
    return {**values, "motion_encoder_dim": config.motion_encoder_dim, "use_img_emb": config.image_dim is not None}


def _diffusers_config(config: AnimateDiTConfig) -> Mapping[str, Any]:
    if config.in_dim != 2 * config.pose_dim + 4:
        raise CheckpointError(
            f"diffusers has no Wan-Animate of {config.in_dim} input channels with {config.pose_dim} of poses; "
            "it counts on twice as many and four"
        )
    own = {name: getattr(config, name) for name in added_fields(AnimateDiTConfig)}
    latent_channels, channels = own.pop("pose_dim"), own.pop("motion_encoder_channels")
    sizes = {str(config.face_size >> index): width for index, width in enumerate(channels)}
    more = {
        "_class_name": "WanAnimateTransformer3DModel",
        "_diffusers_version": _DIFFUSERS_VERSION,
        "latent_channels": latent_channels,
        "motion_encoder_channel_sizes": sizes,
        "motion_encoder_size": config.face_size,
    }
    return dict(sorted({**diffusers_config(config), **own, **more}.items()))


ANIMATE = replace(
    DIT,
    name=_NAME,
    title="the transformer of Wan-Animate",
    network=_network,
    infer=refusing_relatives(dit_config_reader(AnimateDiTConfig, _dims), _NAME),
    formats=(DIFFUSERS_ANIMATE, *DIT.formats[1:]),
    signature=r"(?:^|\.)motion_encoder\.(?:dec\.direction\.weight|motion_synthesis_weight)$",
    folds=(
        *DIT.folds,
        Fold(r"pose_patch_embedding\.weight", 5, kernel=(1, 2, 2)),
        Fold(r"motion_encoder\..*\.bias", 4),
        Fold(r"face_encoder\.padding_tokens", 4),
    ),
    official_config=_official_config,
    diffusers_config=_diffusers_config,
    places=replace(DIT.where, single_name=lambda config, expert: "wan_animate"),
)
"""Wan2.2 Animate."""
