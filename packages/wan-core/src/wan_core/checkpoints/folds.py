"""Shapes that other programs fold: the same numbers in the same order, under one dimension less.

stable-diffusion.cpp has four dimensions: it stores a kernel ``[out, in, t, h, w]`` as ``[out x in, t, h, w]``, and GGUF
drops leading ones. Others leave out the time of a kernel that is one frame deep.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from wan_core.checkpoints.readers.sources import Recipe

_KERNEL = 5


def unfolded(recipes: Mapping[str, Recipe], ranks: Sequence[tuple[str, int]]) -> dict[str, Recipe]:
    """The recipes of native tensors, those that lack one of their dimensions viewed back.

    ``ranks`` are the numbers of dimensions by patterns of whole names. Nothing is ever transposed: a shape that does
    not tell how it was folded stays as it is, and is then refused where it does not fit.
    """
    return {name: _viewed(recipe, _whole(name, recipes, ranks)) for name, recipe in recipes.items()}


def _whole(name: str, recipes: Mapping[str, Recipe], ranks: Sequence[tuple[str, int]]) -> tuple[int, ...] | None:
    shape = recipes[name].info.shape
    rank = next((rank for pattern, rank in ranks if re.fullmatch(pattern, name)), None)
    if rank is None or len(shape) != rank - 1:
        return None
    if rank != _KERNEL:
        return (1, *shape)
    bias = recipes.get(name.removesuffix("weight") + "bias")
    rows = bias.info.numel if bias is not None else 0
    if rows < 1 or shape[0] % rows:
        return None
    if shape[0] == rows:
        return (*shape[:2], 1, *shape[2:])
    return (rows, shape[0] // rows, *shape[1:])


def _viewed(recipe: Recipe, shape: tuple[int, ...] | None) -> Recipe:
    if shape is None:
        return recipe
    return replace(recipe, info=replace(recipe.info, shape=shape), make=partial(_reshaped, recipe, shape))


def _reshaped(recipe: Recipe, shape: tuple[int, ...], tensors: Sequence[Tensor]) -> Tensor:
    return (tensors[0] if recipe.make is None else recipe.make(tensors)).reshape(shape)
