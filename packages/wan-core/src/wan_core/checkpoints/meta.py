"""Networks without memory for their weights: built on the meta device, and without drawing what will be replaced."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_IN_PLACE = frozenset(
    getattr(torch.Tensor, name)
    for name in ("uniform_", "normal_", "mul_", "add_", "sub_", "div_", "clamp_", "erfinv_", "fill_", "zero_")
)
_SCALING = frozenset({torch.Tensor.div, torch.Tensor.mul, torch.Tensor.__truediv__, torch.Tensor.__mul__})
_RANDOM = frozenset({torch.randn, torch.rand})


class _ShapesOnly(TorchFunctionMode):
    """Leaves out the values of initial weights.

    On the meta device they are nothing but a cost: the first arithmetic there imports a symbolic algebra package,
    several seconds of every start.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        arguments = kwargs or {}
        if func in _RANDOM:
            return torch.empty(*args, **{name: value for name, value in arguments.items() if name != "generator"})
        if func in _IN_PLACE or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else arguments["tensor"]
        if func in _SCALING and isinstance(args[0], torch.Tensor) and not isinstance(args[1], torch.Tensor):
            return args[0]
        return func(*args, **arguments)


class _EmptyOnMeta(TorchFunctionMode):
    """Parameters cost nothing, while what a constructor computes is real."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        arguments = dict(kwargs or {})
        if func is torch.empty:
            arguments["device"] = "meta"
        return func(*args, **arguments)


def build_on_meta(build: Callable[[], ModuleT]) -> ModuleT:
    """The network with the shapes of its weights and nothing in them."""
    with torch.device("meta"), _ShapesOnly():
        return build()


def computed_buffers(build: Callable[[], nn.Module]) -> dict[str, torch.Tensor]:
    """The buffers of the network that ``build`` makes, computed, again without memory for the weights."""
    with _EmptyOnMeta():
        return dict(build().named_buffers())
