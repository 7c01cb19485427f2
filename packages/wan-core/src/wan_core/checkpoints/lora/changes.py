"""How an adapter's stored tensors make the change of a weight, ``[out, in, ...]``: of what shape, and added to it.

Low-rank pairs: Hu et al. 2021. LoHa, the Hadamard product of two low-rank ones: Hyeon-Woo et al. 2022. LoKr, the
Kronecker product of two matrices, each of which may be low-rank: Yeh et al. 2024. Names as in lycoris and peft.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Tensors = Mapping[str, Tensor]

_ROWS = 256  # of a Hadamard product, made at a time


@dataclass(frozen=True)
class Change:
    """One way to store the change of a weight, by the roles of its tensors.

    ``needed`` are alternatives: of each, all roles of one group are there. ``shape`` gives the change's shape and its
    rank, None where it has none; it raises ValueError when the tensors do not belong together. ``add`` adds the change
    times a factor to a float32 weight ``[out, in]`` in place.
    """

    name: str
    marks: tuple[str, ...]
    needed: tuple[tuple[tuple[str, ...], ...], ...]
    optional: tuple[tuple[str, ...], ...]
    shape: Callable[[Shapes], tuple[Shape, int | None]]
    add: Callable[[Tensor, Tensors, float], object]

    def roles(self, there: Mapping[str, str]) -> tuple[str, ...] | None:
        """Those of the roles ``there`` that this change is made of; None when a tensor is missing."""
        chosen: list[str] = []
        for groups in self.needed:
            group = next((group for group in groups if all(role in there for role in group)), None)
            if group is None:
                return None
            chosen += group
        for group in self.optional:
            present = [role for role in group if role in there]
            if present and len(present) < len(group):
                return None
            chosen += present
        return tuple(chosen)


def change_in(there: Mapping[str, str]) -> Change | None:
    """The first change of :data:`CHANGES` that any of the roles ``there`` belongs to."""
    return next((change for change in CHANGES if any(role in there for role in change.marks)), None)


def _pair_shape(shapes: Shapes) -> tuple[Shape, int]:
    down, up = shapes["down"], shapes["up"]
    if len(down) < 2 or len(up) < 2 or down[0] != math.prod(up[1:]) or min(*down, *up) < 1:
        raise ValueError
    return (up[0], *down[1:]), down[0]


def _add_pair(weight: Tensor, tensors: Tensors, factor: float) -> None:
    weight.addmm_(tensors["up"].flatten(1), tensors["down"].flatten(1), alpha=factor)


def _matrices(*shapes: Shape) -> None:
    if any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
        raise ValueError


def _core_shape(core: Shape, first: Shape, second: Shape) -> Shape:
    """Of a product through a core ``[r, r, ...]``: ``first`` is ``[r, out]``, ``second`` ``[r, in]``."""
    _matrices(first, second)
    if len(core) < 2 or min(core) < 1 or core[:2] != (first[0], second[0]):
        raise ValueError
    return (first[1], second[1], *core[2:])


def _through_core(core: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.einsum("ij...,ip,jr->pr...", core, first, second)


def _hadamard_shape(shapes: Shapes) -> tuple[Shape, int]:
    found: list[Shape] = []
    for index in ("1", "2"):
        first, second = shapes[f"hada_w{index}_a"], shapes[f"hada_w{index}_b"]
        core = shapes.get(f"hada_t{index}")
        _matrices(first, second)
        if core is None and first[1] != second[0]:
            raise ValueError
        found.append((first[0], second[1]) if core is None else _core_shape(core, first, second))
    if found[0] != found[1]:
        raise ValueError
    return found[0], shapes["hada_w1_b"][0]


def _add_hadamard(weight: Tensor, tensors: Tensors, factor: float) -> None:
    firsts, seconds = ([tensors[f"hada_w{index}_{side}"] for index in "12"] for side in "ab")
    if "hada_t1" in tensors:
        cores = (tensors["hada_t1"], tensors["hada_t2"])
        one, other = (_through_core(*each).flatten(1) for each in zip(cores, firsts, seconds, strict=True))
        weight.addcmul_(one, other, value=factor)
        return
    for start in range(0, weight.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        weight[rows].addcmul_(firsts[0][rows] @ seconds[0], firsts[1][rows] @ seconds[1], value=factor)


def _factor_shape(shapes: Shapes, index: str) -> tuple[Shape, int | None]:
    """Of one factor of a Kronecker product: a matrix, a product of two, or one through a core."""
    whole = shapes.get(f"lokr_w{index}")
    if whole is not None:
        if len(whole) < 2 or min(whole) < 1:
            raise ValueError
        return whole, None
    first, second, core = (shapes.get(f"lokr_{name}") for name in (f"w{index}_a", f"w{index}_b", f"t{index}"))
    if first is None or second is None:
        raise ValueError
    _matrices(first, second)
    if core is not None:
        return _core_shape(core, first, second), second[0]
    if first[1] != second[0]:
        raise ValueError
    return (first[0], second[1]), second[0]


def _kronecker_shape(shapes: Shapes) -> tuple[Shape, int | None]:
    (one, first_rank), (other, second_rank) = _factor_shape(shapes, "1"), _factor_shape(shapes, "2")
    if len(one) != 2:
        raise ValueError
    return (one[0] * other[0], one[1] * other[1], *other[2:]), second_rank or first_rank


def _factor(tensors: Tensors, index: str) -> Tensor:
    whole = tensors.get(f"lokr_w{index}")
    if whole is not None:
        return whole.flatten(1)
    first, second = tensors[f"lokr_w{index}_a"], tensors[f"lokr_w{index}_b"]
    core = tensors.get(f"lokr_t{index}")
    return first @ second if core is None else _through_core(core, first, second).flatten(1)


def _add_kronecker(weight: Tensor, tensors: Tensors, factor: float) -> None:
    one, other = _factor(tensors, "1"), _factor(tensors, "2")
    (a, b), (c, d) = one.shape, other.shape
    # The product itself, as large as the weight, is never made.
    weight.view(a, c, b, d).addcmul_(one.view(a, 1, b, 1), other.view(1, c, 1, d), value=factor)


def _plain_shape(shapes: Shapes) -> tuple[Shape, None]:
    return shapes["diff"], None


def _add_plain(weight: Tensor, tensors: Tensors, factor: float) -> None:
    weight.add_(tensors["diff"].reshape(weight.shape), alpha=factor)


def _of(kind: str, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{kind}_{name}" for name in names)


PAIR = Change("LoRA", ("down", "up"), ((("down",),), (("up",),)), (), _pair_shape, _add_pair)
HADAMARD = Change(
    "LoHa",
    _of("hada", ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    ((_of("hada", ("w1_a", "w1_b", "w2_a", "w2_b")),),),
    (_of("hada", ("t1", "t2")),),
    _hadamard_shape,
    _add_hadamard,
)
KRONECKER = Change(
    "LoKr",
    _of("lokr", ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    (
        (("lokr_w1",), _of("lokr", ("w1_a", "w1_b"))),
        (("lokr_w2",), _of("lokr", ("w2_a", "w2_b", "t2")), _of("lokr", ("w2_a", "w2_b"))),
    ),
    (),
    _kronecker_shape,
    _add_kronecker,
)
PLAIN = Change("change", ("diff",), ((("diff",),),), (), _plain_shape, _add_plain)

CHANGES = (PAIR, HADAMARD, KRONECKER)
"""The kinds of adapters that are merged; beside them there are plain changes (:data:`PLAIN`)."""
