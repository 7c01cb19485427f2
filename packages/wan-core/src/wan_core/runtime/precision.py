"""Training in a narrow dtype: weights stay float32, and a narrow copy of a block's weights lives while it computes.

There is no autocast: as in inference, layers compute in the dtype of the weights that they see, and what a network
lists in ``float32_modules`` is seen as it is. Divided weights are gathered in the narrow dtype by FSDP2 instead, see
`wan_core.runtime.fsdp`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wan_core.checkpoints import stays_float32

Slot = tuple[nn.Module, str]
"""A module, and the name of a weight of its own."""


def apply_compute_dtype(model: nn.Module, dtype: torch.dtype, *, recompute: bool = False) -> None:
    """Let a network whose trained weights are float32 compute in ``dtype``, in place; a second call changes nothing.

    The narrow copy of a block's weights is made when it runs and let go after it; the backward pass makes it again from
    the float32 weights, tensor by tensor, or by blocks where those are computed again (``recompute``). So never more
    than one block's copies, and those of the layers around the blocks, are kept. Gradients come out in float32. It
    comes after adapters and before recompute; nothing happens where no weight is wider than ``dtype``.
    """
    wide = {
        id(weight)
        for name, weight in model.named_parameters()
        if weight.is_floating_point() and weight.dtype.itemsize > dtype.itemsize and not stays_float32(model, name)
    }
    taken: set[int] = set()
    for block in _blocks(model):
        _cast_in(block, ("forward",), _slots(block, wide, taken), dtype, makes_again=not recompute)
    names = ("forward", *getattr(model, "further_forwards", ()))
    _cast_in(model, names, _slots(model, wide, taken), dtype, makes_again=True)


class CastCall:
    """A method of a network that sees narrow copies of some weights while it runs."""

    def __init__(self, call: Callable[..., Any], slots: Sequence[Slot], dtype: torch.dtype, makes_again: bool) -> None:
        self._call = call
        self._slots = slots
        self._dtype = dtype
        self._makes_again = makes_again

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the method gives; the weights are back in their places whatever happens."""
        with self._narrow() as copies:
            saving: AbstractContextManager[object] = nullcontext()
            if torch.is_grad_enabled() and self._makes_again:
                saving = _weights_made_again(copies)
            with saving:
                return self._call(*args, **kwargs)

    @contextmanager
    def _narrow(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Copies in the places of the weights, as pairs with these."""
        held: list[tuple[Slot, nn.Parameter]] = []
        copies: list[tuple[Tensor, Tensor]] = []
        try:
            for module, name in self._slots:
                weight = module._parameters[name]
                if weight is None:
                    raise ValueError(f"{type(module).__name__} has lost its weight {name}")
                held.append(((module, name), weight))
                copies.append((weight.to(self._dtype), weight))
                module._parameters[name] = copies[-1][0]  # type: ignore[assignment]
            yield copies
        finally:
            for (module, name), weight in held:
                module._parameters[name] = weight


@dataclass(frozen=True)
class _Recipe:
    """How to make a saved view of a narrow copy again."""

    weight: Tensor
    version: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt

    def make(self) -> Tensor:
        if self.weight._version != self.version:
            raise RuntimeError("a weight was written to between a forward and its backward pass")
        return self.weight.detach().to(self.dtype).as_strided(self.shape, self.stride, self.offset)


def _weights_made_again(copies: Iterable[tuple[Tensor, Tensor]]) -> torch.autograd.graph.saved_tensors_hooks:
    """What autograd saves of the copies is a recipe; all else is saved as ever."""
    found = {copy.untyped_storage().data_ptr(): weight for copy, weight in copies if copy.numel()}

    def pack(saved: Tensor) -> Tensor | _Recipe:
        weight = found.get(saved.untyped_storage().data_ptr())
        if weight is None:
            return saved
        return _Recipe(weight, weight._version, saved.dtype, saved.shape, saved.stride(), saved.storage_offset())

    def unpack(packed: Tensor | _Recipe) -> Tensor:
        return packed.make() if isinstance(packed, _Recipe) else packed

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _blocks(model: nn.Module) -> list[nn.Module]:
    lists = [getattr(module, "blocks", None) for module in model.modules()]
    return [block for each in lists if isinstance(each, nn.ModuleList) for block in each.children()]


def _slots(unit: nn.Module, wide: set[int], taken: set[int]) -> list[Slot]:
    """The places of wide weights in a unit that no unit before it has."""
    slots: list[Slot] = []
    for module in unit.modules():
        if id(module) not in taken:
            taken.add(id(module))
            slots += [
                (module, name) for name, each in module._parameters.items() if each is not None and id(each) in wide
            ]
    return slots


def _cast_in(
    module: nn.Module, names: Iterable[str], slots: Sequence[Slot], dtype: torch.dtype, *, makes_again: bool
) -> None:
    if not slots:
        return
    for name in names:
        call = getattr(module, name)
        if not isinstance(call, CastCall):
            setattr(module, name, CastCall(call, slots, dtype, makes_again))
