"""Count the bytes that a call moves through memory outside of its matrix products: deterministic, no clock.

Every operation that torch dispatches counts what it reads and what it writes, except matrix products, convolutions and
attention kernels (their cost is arithmetic) and views (they move nothing). It is what a better order of elementwise
steps, fused ones and float32 islands change, on any device.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
ARITHMETIC = ("mm", "addmm", "bmm", "baddbmm", "convolution", "mkldnn", "linear", "scaled_dot_product", "attention")


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested arguments or results."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def touched_bytes(tensor: Tensor) -> int:
    """Bytes that reading or writing a tensor touches; expanded axes (stride 0) hold nothing of their own."""
    return prod(n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step) * tensor.element_size()


class ByteCounter(TorchDispatchMode):
    """Adds up the bytes per operation name while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.per_operation: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name in ALLOCATIONS or any(word in name for word in ARITHMETIC):
            return result
        inputs = {id(t): t for t in tensors((args, kwargs))}
        read = {t.untyped_storage().data_ptr() for t in inputs.values()}
        written = list(tensors(result))
        is_view = not func._schema.is_mutable and all(t.untyped_storage().data_ptr() in read for t in written)
        if not is_view:
            self.per_operation[name] += sum(map(touched_bytes, [*inputs.values(), *written]))
        return result


def moved_bytes(call: Callable[[], Any]) -> Counter[str]:
    """Bytes moved per operation by one call without gradients; ``.total()`` is their sum."""
    with torch.no_grad(), ByteCounter() as counter:
        call()
    return counter.per_operation
