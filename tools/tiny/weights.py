"""Reading and writing the bundled weights: float16 safetensors with recipe, data version and scores as metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tools.tiny.world import WORLD_VERSION
from wan_core.checkpoints import MemorySource, read_weights, write_file


def write_weights(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    recipe: str,
    scores: Mapping[str, Any],
    base: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write ``tensors`` as float16 (8-bit ones as they are) in one step; the file is whole or the old one stays.

    ``base`` names the place of the weights that they are a change of; ``config`` are dims that shapes do not tell.
    """
    metadata = {
        "format": "pt",
        "family": "wan tiny",
        "recipe": recipe,
        "world_version": WORLD_VERSION,
        "scores": json.dumps(dict(scores), sort_keys=True),
        "license": "Apache-2.0",
    }
    if base is not None:
        metadata["base"] = base
    if config is not None:
        metadata["config"] = json.dumps(dict(config))
    dtypes = {name: torch.float16 for name, value in tensors.items() if value.dtype is not torch.int8}
    write_file(MemorySource(tensors, metadata=metadata), path, dtypes=dtypes)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a file as float32."""
    source = read_weights(path)
    return {name: source.read(name).float() for name in source}


def in_8_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with the matrices of blocks, and of what hears or sees a face, as int8 with a scale per row.

    The scale is called ``X.weight_scale``.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        is_matrix = name.endswith(".weight") and tensor.ndim == 2
        if not (is_matrix and name.startswith(("blocks.", "audio_injector.", "face_adapter."))):
            stored[name] = tensor
            continue
        scale = tensor.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-8) / 127
        stored[name] = (tensor.float() / scale).round().to(torch.int8)
        stored[f"{name}_scale"] = scale
    return stored
