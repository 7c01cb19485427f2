"""Shapes that other programs fold: the same numbers in the same order, under fewer dimensions.

stable-diffusion.cpp has four dimensions: it stores a kernel ``[out, in, t, h, w]`` as ``[out x in, t, h, w]``, and GGUF
drops leading ones. Others leave out the time of a kernel that is one frame deep, or keep the embedding of patches as a
matrix ``[out, in x t x h x w]`` (rCM).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from wan_core.checkpoints.readers.sources import Recipe

_KERNEL_RANK = 5


@dataclass(frozen=True)
class Fold:
    """Native tensors, by a pattern of whole names, that have ``rank`` dimensions and may be stored with fewer.

    ``kernel`` are the last three sizes where every released network has the same.
    """

    pattern: str
    rank: int
    kernel: tuple[int, int, int] | None = None


def unfolded(recipes: Mapping[str, Recipe], folds: Sequence[Fold]) -> dict[str, Recipe]:
    """The recipes of native tensors, those that lack dimensions viewed back.

    Nothing is ever transposed: a shape that does not tell how it was folded stays as it is, and is then refused where
    it does not fit.
    """
    return {name: _viewed(recipe, _whole(name, recipes, folds)) for name, recipe in recipes.items()}


def _whole(name: str, recipes: Mapping[str, Recipe], folds: Sequence[Fold]) -> tuple[int, ...] | None:
    """The shape that a folded tensor has; None for one that is not folded, or not in a way that is known."""
    shape = recipes[name].info.shape
    fold = next((fold for fold in folds if re.fullmatch(fold.pattern, name)), None)
    if fold is None or len(shape) >= fold.rank:
        return None
    if fold.rank != _KERNEL_RANK:
        return (1, *shape) if len(shape) == fold.rank - 1 else None
    bias = recipes.get(name.removesuffix("weight") + "bias")
    return _kernel(shape, 0 if bias is None else bias.info.numel, fold.kernel)


def _kernel(shape: tuple[int, ...], rows: int, kernel: tuple[int, int, int] | None) -> tuple[int, ...] | None:
    """``rows`` is the number of outputs, which the bias tells."""
    if rows < 1 or not shape or shape[0] % rows:
        return None
    if len(shape) == 4 and shape[0] == rows:
        return (*shape[:2], 1, *shape[2:])
    if len(shape) == 4:
        return (rows, shape[0] // rows, *shape[1:])
    if len(shape) == 2 and kernel is not None and shape[0] == rows and shape[1] % math.prod(kernel) == 0:
        return (rows, shape[1] // math.prod(kernel), *kernel)
    return None


def _viewed(recipe: Recipe, shape: tuple[int, ...] | None) -> Recipe:
    if shape is None:
        return recipe
    return replace(recipe, info=replace(recipe.info, shape=shape), make=partial(_reshaped, recipe, shape))


def _reshaped(recipe: Recipe, shape: tuple[int, ...], tensors: Sequence[Tensor]) -> Tensor:
    return (tensors[0] if recipe.make is None else recipe.make(tensors)).reshape(shape)
