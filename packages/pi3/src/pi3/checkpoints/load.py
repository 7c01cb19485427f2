"""From a weight file to a model: dims from the file, built on the meta device, filled tensor by tensor, strictly."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pi3.checkpoints.locate import find_weights
from pi3.config import Pi3Config, Pi3XConfig
from pi3.model import Pi3
from pi3.pi3x import CONDITION_MODULES
from wan_core.checkpoints import DerivedSource, Recipe, TensorSource, read_weights
from wan_core.errors import CheckpointError, ConfigError

_SHOWN = 5
_WRAPPERS = ("state_dict.", "model.")


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
    weights = open_weights(find_weights(source, revision=revision))
    config = read_config(weights)
    if isinstance(config, Pi3XConfig) and not multimodal:
        config = replace(config, multimodal=False)
    with torch.device("meta"):
        model = config.build()
    optional = CONDITION_MODULES if isinstance(config, Pi3XConfig) and not config.multimodal else ()
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_fit(weights, expected, optional)
    state = {}
    for name in expected:
        is_kept = dtype is None or _is_in(name, model.float32_modules)
        state[name] = weights.read(name).to(device=device, dtype=torch.float32 if is_kept else dtype)
    model.load_state_dict(state, assign=True)
    return freeze(model)


def open_weights(path: Path) -> TensorSource:
    """The tensors of a file, by their names below a ``state_dict`` or ``model`` that holds them all.

    Raises CheckpointError for a file that is missing, damaged, of another kind, or would run code when read.
    """
    source = read_weights(path)
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in source):
            recipes = {name.removeprefix(wrapper): Recipe((name,), source.info(name)) for name in source}
            source = DerivedSource(source, recipes, metadata=source.metadata)
    return source


def freeze(model: Pi3) -> Pi3:
    """The model for inference: no dropout, no gradients of weights."""
    nn.Module.requires_grad_(model.eval(), False)
    return model


def read_config(weights: TensorSource) -> Pi3Config:
    """The dims of a weight file: those in its metadata, else those of the published weights.

    Raises CheckpointError when it is no Pi3 or its metadata is not understood.
    """
    if "register_token" not in weights or "camera_head.fc_rot.weight" not in weights:
        first = ", ".join(list(weights)[:3])
        raise CheckpointError(f"{weights.path} is no Pi3: it has {len(weights)} tensors, the first are {first}")
    kind: type[Pi3Config] = Pi3XConfig if "metric_token" in weights else Pi3Config
    try:
        values: Mapping[str, Any] = json.loads(weights.metadata.get("config", "{}"))
        return kind.from_dict(values)
    except (ConfigError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the metadata of {weights.path} is not understood: {error}") from error


def check_fit(weights: TensorSource, expected: Mapping[str, tuple[int, ...]], optional: Iterable[str] = ()) -> None:
    """Compare names and shapes of a file with those of a model.

    Names under the ``optional`` modules may be in the file or not. Raises one CheckpointError that counts what is
    missing, unexpected and mis-shaped, and names the first five of each.
    """
    found = {name: weights.info(name).shape for name in weights}
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected and not _is_in(name, optional)]
    misshaped = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
        if names
    ]
    if faults:
        raise CheckpointError(f"{weights.path} does not fit the model: {'; '.join(faults)}")


def _is_in(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
