"""The speech-to-video transformer: the names of Wan's, and those of what hears, packs frames and takes poses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core import models
from wan_core.checkpoints.families.dit import DIT, added_fields, dit_config_reader, official_config
from wan_core.checkpoints.families.relatives import refusing_relatives
from wan_core.checkpoints.families.shapes import Shapes
from wan_core.checkpoints.folds import Fold
from wan_core.errors import CheckpointError
from wan_core.models import S2VConfig

if TYPE_CHECKING:
    from torch import nn

    from wan_core.checkpoints.readers.sources import TensorSource

_NAME = "s2v"
_MARK = "casual_audio_encoder.weights"
_UNTOLD = ("audio_inject_layers", "zero_timestep", "add_last_motion", "framepack_drop_mode")
"""What shapes cannot tell."""


def _dims(source: TensorSource) -> Mapping[str, Any]:
    shape = Shapes(source, "speech-to-video transformer")
    layers = shape.of(_MARK, 4)[1]
    width, audio_dim, _ = shape.of("casual_audio_encoder.encoder.conv1_local.conv.weight", 3)
    dim, cond_dim, *_ = shape.of("cond_encoder.weight", 5)
    return {
        "cond_dim": cond_dim,
        "audio_dim": audio_dim,
        "audio_layers": layers,
        "num_audio_token": width // (dim // 4) if dim >= 4 else 0,
        "enable_adain": "casual_audio_encoder.encoder.conv1_global.conv.weight" in source,
        "enable_framepack": "frame_packer.proj.weight" in source,
    }


def _infer(path: Path, source: TensorSource) -> S2VConfig:
    """The config, whose blocks that are followed by an injector are as many as there are injectors."""
    count = Shapes(source, "speech-to-video transformer").count(r"audio_injector\.injector\.(\d+)\.")
    config: S2VConfig = _read(path, source)  # type: ignore[assignment]
    if len(config.audio_inject_layers) != count:
        raise CheckpointError(
            f"{source.path} has {count} injectors of sound, and audio_inject_layers of its config names "
            f"{len(config.audio_inject_layers)} blocks; put the config.json of the model beside it"
        )
    return config


_read = dit_config_reader(S2VConfig, _dims)


def _network(config: S2VConfig) -> nn.Module:
    return models.S2VDiT(config)


def _usual(config: S2VConfig) -> Mapping[str, Any]:
    released = S2VConfig()
    return {**DIT.usual(config), **{name: getattr(released, name) for name in _UNTOLD}}


def _official_config(config: S2VConfig) -> Mapping[str, Any]:
    """With all that the original code takes: its defaults are not those of the release."""
    added = {name: getattr(config, name) for name in added_fields(S2VConfig) if name != "audio_layers"}
    return {**official_config(config), **added, "_class_name": "WanModel_S2V", "model_type": _NAME}


S2V = replace(
    DIT,
    name=_NAME,
    title="the speech-to-video transformer",
    network=_network,
    infer=refusing_relatives(_infer, _NAME),
    formats=DIT.formats[-1:],
    signature=r"(?:^|\.)casual_audio_encoder\.weights$",
    folds=(
        *DIT.folds,
        Fold(r"(?:cond_encoder|frame_packer\.proj)\.weight", 5, kernel=(1, 2, 2)),
        Fold(r"frame_packer\.proj_2x\.weight", 5, kernel=(2, 4, 4)),
        Fold(r"frame_packer\.proj_4x\.weight", 5, kernel=(4, 8, 8)),
    ),
    usual=_usual,
    official_config=_official_config,
    diffusers_config=None,
    places=replace(DIT.where, single_name=lambda config, expert: "wan_s2v"),
)
"""Wan2.2 S2V; diffusers does not have it."""
