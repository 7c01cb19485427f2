"""From a weight file to a model: its family for the core's reader and loader, and Pi3 ready for inference."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi3.checkpoints.locate import find_weights, is_repository
from pi3.config import Pi3Config, Pi3XConfig
from wan_core import CheckpointError, ConfigError, checkpoints
from wan_core.checkpoints import Family

if TYPE_CHECKING:
    import torch

    from pi3.model import Pi3
    from wan_core.checkpoints import TensorSource


def read_config(path: Path, source: TensorSource) -> Pi3Config:
    """The dims of weights: those in their metadata, else those of the published ones.

    Raises CheckpointError when they are no Pi3 or the metadata is not understood.
    """
    if "register_token" not in source or "camera_head.fc_rot.weight" not in source:
        first = ", ".join(list(source)[:3])
        raise CheckpointError(f"{path} is no Pi3: it has {len(source)} tensors, the first are {first}")
    kind: type[Pi3Config] = Pi3XConfig if "metric_token" in source else Pi3Config
    try:
        values: Mapping[str, Any] = json.loads(source.metadata.get("config", "{}"))
        return kind.from_dict(values)
    except (ConfigError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the metadata of {path} is not understood: {error}") from error


def build(config: Pi3Config) -> Pi3:
    """The network of a config, Pi3 or Pi3X, with random weights."""
    from pi3.model import Pi3
    from pi3.pi3x import Pi3X

    return Pi3X(config) if isinstance(config, Pi3XConfig) else Pi3(config)


PI3 = Family(
    name="pi3",
    title="Pi3",
    network=build,
    infer=read_config,
    signature=r"(?:^|\.)camera_head\.fc_rot\.weight$",
    half_dtype="float32",
    find=find_weights,
    is_repository=is_repository,
)
"""Pi3 and Pi3X under their published names; always in float32, as geometry needs it."""


def load_pi3(
    source: str | os.PathLike[str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    multimodal: bool = True,
    revision: str | None = None,
) -> Pi3:
    """A Pi3 or Pi3X with its weights, in evaluation mode; which of the two the file tells.

    ``source`` is as in :func:`pi3.checkpoints.find_weights`. With ``dtype`` the weights are cast, except the heads',
    which stay float32; by default all are float32. ``multimodal=False`` leaves the conditions of a Pi3X out. Raises
    CheckpointError for weights that are not there, damaged, or do not fit exactly.
    """
    import torch

    from pi3.pi3x import CONDITION_MODULES

    path = find_weights(source, revision=revision)
    weights: TensorSource = checkpoints.native_weights(checkpoints.read_weights(path), PI3)
    config = read_config(path, weights)
    if isinstance(config, Pi3XConfig) and not (multimodal and config.multimodal):
        config = replace(config, multimodal=False)
        kept = [name for name in weights if name.split(".")[0] not in CONDITION_MODULES]
        recipes = {name: checkpoints.Recipe((name,), weights.info(name)) for name in kept}
        weights = checkpoints.DerivedSource(weights, recipes)
    return freeze(checkpoints.load_model(config, weights, family=PI3, dtype=dtype or torch.float32, device=device))


def freeze(model: Pi3) -> Pi3:
    """The model for inference: no dropout, no gradients of weights."""
    from torch import nn

    nn.Module.requires_grad_(model.eval(), False)
    return model
