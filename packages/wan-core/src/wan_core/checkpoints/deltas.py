"""Weights stored as a change of other weights: low-rank updates of some tensors, new values of others.

The bundled tiny models share one network this way. Names in a change are native; updates are ``<layer>.lora_A.weight``,
``<layer>.lora_B.weight`` and ``<layer>.alpha``, perhaps after ``diffusion_model.``.
"""

from collections.abc import Sequence

from torch import Tensor

from wan_core.checkpoints.sources import DerivedSource, Recipe, TensorSource
from wan_core.errors import CheckpointError

_PREFIX = "diffusion_model."
_DOWN, _UP, _ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"


def with_delta(base: TensorSource, delta: TensorSource) -> DerivedSource:
    """The tensors of ``base`` under native names as ``delta`` changes them, each computed in float32 when it is read.

    Raises CheckpointError when the change names tensors that ``base`` lacks, or updates are incomplete.
    """
    files = {name.removeprefix(_PREFIX): name for name in delta}
    layers = {name.removesuffix(_DOWN) for name in files if name.endswith(_DOWN)}
    parts = {layer + ending for layer in layers for ending in (_DOWN, _UP, _ALPHA)}
    missing = sorted(parts - set(files)) + sorted(
        name for name in ({f"{layer}.weight" for layer in layers} | (set(files) - parts)) if name not in base
    )
    if missing:
        raise CheckpointError(
            f"{delta.path} is no change of {base.path}: {missing[0]} is missing ({len(missing)} such tensors)"
        )
    recipes = {name: Recipe((name,), base.info(name)) for name in base}
    for name in set(files) - parts:
        recipes[name] = Recipe((), delta.info(files[name]), _Replace(delta, files[name]))
    for layer in layers:
        weight = f"{layer}.weight"
        recipes[weight] = Recipe((weight,), base.info(weight), _Update(delta, files, layer))
    return DerivedSource(base, recipes, metadata=delta.metadata)


class _Replace:
    """A tensor of the change instead of the base's."""

    def __init__(self, delta: TensorSource, name: str) -> None:
        self._delta = delta
        self._name = name

    def __call__(self, _: Sequence[Tensor]) -> Tensor:
        return self._delta.read(self._name)


class _Update:
    """A weight plus ``alpha / rank * B @ A``."""

    def __init__(self, delta: TensorSource, files: dict[str, str], layer: str) -> None:
        self._delta = delta
        self._names = [files[layer + ending] for ending in (_DOWN, _UP, _ALPHA)]

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        down, up, alpha = (self._delta.read(name).float() for name in self._names)
        weight = inputs[0]
        return (weight.float() + alpha.item() / down.shape[0] * up @ down).to(weight.dtype)
