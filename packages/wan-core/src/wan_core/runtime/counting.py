"""Count what a call costs the device that it runs on: deterministic, no clock.

Every operation that torch dispatches counts what it reads and writes, views excepted, which move nothing. Of matrix
products, convolutions and attention the floating-point operations are counted too: their cost is arithmetic, that of
everything else is its traffic.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_ARITHMETIC = ("mm", "addmm", "bmm", "baddbmm", "convolution", "mkldnn", "linear", "scaled_dot_product", "attention")
_VIEWS = ("_unsafe_view", "_reshape_alias", "lift_fresh", "detach", "alias")
_COPIES = ("_to_copy", "copy_")
_ANSWERS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "is_nonzero")
_BLOCK = 512  # bytes in which torch's allocator hands out memory of a GPU


class Operation(NamedTuple):
    """An operation that runs on the device: bytes that it reads and writes, in all and in float32, and its FLOPs.

    ``dtype`` is that of its result; a convolution of float32 that may round its inputs to 19 bits is ``tf32``.
    """

    name: str
    dtype: str
    bytes: int
    float32_bytes: int
    flops: int
    is_arithmetic: bool


@dataclass
class Counts:
    """What ran in a phase: ``operations``, how often each; ``attention`` by shapes.

    ``to_device`` and ``to_host`` are bytes that were copied between host and device, ``waits`` counts what lets the
    host wait for the device, by operation. ``peak`` are the most bytes of tensors at once.
    """

    operations: Counter[Operation] = field(default_factory=Counter)
    attention: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    to_device: int = 0
    to_host: int = 0
    peak: int = 0

    @property
    def kernels(self) -> int:
        """Operations that ran, copies between host and device left out."""
        return self.operations.total()

    @property
    def traffic(self) -> int:
        """Bytes that everything apart from matrix products, convolutions and attention reads and writes."""
        return self.per_operation.total()

    @property
    def per_operation(self) -> Counter[str]:
        """The traffic by the name of the operation."""
        found: Counter[str] = Counter()
        for each, count in self.operations.items():
            if not each.is_arithmetic:
                found[each.name] += count * each.bytes
        return found

    @property
    def float32_share(self) -> float:
        """How much of the traffic is of float32 numbers, 0 to 1."""
        wide = sum(count * each.float32_bytes for each, count in self.operations.items() if not each.is_arithmetic)
        return wide / (self.traffic or 1)

    @property
    def flops(self) -> Counter[str]:
        """Floating-point operations by dtype."""
        found: Counter[str] = Counter()
        for each, count in self.operations.items():
            if each.flops:
                found[each.dtype] += count * each.flops
        return found

    def seconds(self, flops_per_second: Callable[[str], float], bytes_per_second: float) -> float:
        """The least time on a device: of each operation, the longer of its arithmetic and its traffic."""
        return sum(
            count * max(each.flops / flops_per_second(each.dtype), each.bytes / bytes_per_second)
            for each, count in self.operations.items()
        )


def touched_bytes(tensor: Tensor) -> int:
    """Bytes that reading or writing a tensor touches; expanded axes (stride 0) hold nothing of their own."""
    return prod(n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step) * tensor.element_size()


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


class OperationCounter(TorchDispatchMode):
    """Counts while it is active, in :attr:`counts`; :meth:`begin` starts others, :meth:`resume` goes on with them.

    ``resident`` are the bytes of tensors that are there, of those that were made while it was active. ``device_type``
    limits it to what touches a device of that type, by default everything is counted.
    """

    def __init__(self, device_type: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counts()
        self._device_type = device_type
        self._live: dict[int, weakref.ref[Any]] = {}
        self.resident = 0

    def begin(self) -> Counts:
        """Count what comes next by itself."""
        return self.resume(Counts())

    def resume(self, counts: Counts) -> Counts:
        """Count what comes next among what is counted there already."""
        self.counts = counts
        counts.peak = max(counts.peak, self.resident)
        return counts

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What an operation gives; a simulation computes it in another way."""
        return func(*args, **kwargs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name == "_unsafe_view":  # a view whose result is said to be new
            func = torch.ops.aten.view.default
        result = self.run(func, args, kwargs)
        if func.namespace == "prim":
            return result
        inputs = _read(args, kwargs)
        written = list(_tensors(result))
        if not any(self._is_there(t) for t in (*inputs, *written)):
            return result
        self._note_memory(written)
        if name in _ANSWERS or (name.startswith("index") and self._by_mask(args)):
            self.counts.waits[name] += 1
        if name in _COPIES and self._crosses(name, inputs, written, args, kwargs):
            return result
        if name not in _ALLOCATIONS and not _is_view(func, name, inputs, written):
            self.counts.operations[_operation(func, name, inputs, written, args, kwargs, result)] += 1
        return result

    def note_attention(self, query: Tensor, key: Tensor, value: Tensor, mixed: Tensor) -> None:
        """Count an attention of [B, n, L, d] that another mode computes."""
        self._note_memory([mixed])
        dtype = _name_of(query.dtype)
        shape = f"{list(query.shape)} x {key.shape[2]} keys, {dtype}"
        self.counts.attention[shape] += 1
        flops = 2 * prod(query.shape[:3]) * key.shape[2] * (query.shape[3] + value.shape[3])
        moved = [query, key, value, mixed]
        float32 = sum(touched_bytes(t) for t in moved if t.dtype == torch.float32)
        self.counts.operations[
            Operation("attention", dtype, sum(map(touched_bytes, moved)), float32, flops, is_arithmetic=True)
        ] += 1

    def _is_there(self, tensor: Tensor) -> bool:
        return self._device_type is None or tensor.device.type == self._device_type

    def _by_mask(self, args: Any) -> bool:
        return any(t.dtype in (torch.bool, torch.uint8) and self._is_there(t) for t in _tensors(args[1:2]))

    def _crosses(
        self, name: str, inputs: list[Tensor], written: list[Tensor], args: Any, kwargs: dict[str, Any]
    ) -> bool:
        """Whether this copy goes from host to device or back; it is counted as such."""
        source, target = (inputs[-1], inputs[0]) if name == "copy_" else (inputs[0], written[0])
        if self._device_type is None or self._is_there(source) == self._is_there(target):
            return False
        way = "to_device" if self._is_there(target) else "to_host"
        setattr(self.counts, way, getattr(self.counts, way) + touched_bytes(source))
        if not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])):
            self.counts.waits[way.replace("_", " ")] += 1
        return True

    def _note_memory(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            if not self._is_there(tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, -(-storage.nbytes() // _BLOCK) * _BLOCK
            if key in self._live:
                continue
            self._live[key] = weakref.ref(storage, partial(self._forget, key, size))
            self.resident += size
            self.counts.peak = max(self.counts.peak, self.resident)

    def _forget(self, key: int, size: int, storage: Any) -> None:
        self._live.pop(key, None)
        self.resident -= size


def _read(args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation reads, each once; ``out`` is written alone."""
    rest = [value for name, value in kwargs.items() if name != "out"]
    return list({id(t): t for t in _tensors((args, rest))}.values())


def _is_view(func: Any, name: str, inputs: list[Tensor], written: list[Tensor]) -> bool:
    if func.is_view or name in _VIEWS:
        return True
    read = {t.untyped_storage()._cdata for t in inputs}
    return not func._schema.is_mutable and all(t.untyped_storage()._cdata in read for t in written)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _operation(
    func: Any, name: str, inputs: list[Tensor], written: list[Tensor], args: Any, kwargs: dict[str, Any], result: Any
) -> Operation:
    from torch.utils.flop_counter import flop_registry

    moved = [*inputs, *written]
    is_arithmetic = any(word in name for word in _ARITHMETIC)
    formula = flop_registry.get(func._overloadpacket) if is_arithmetic else None
    flops = 0 if formula is None else int(formula(*args, **kwargs, out_val=result))
    dtype = _name_of((written or inputs)[0].dtype)
    if dtype == "float32" and name == "convolution" and torch.backends.cudnn.allow_tf32:
        dtype = "tf32"
    return Operation(
        name=name,
        dtype=dtype,
        bytes=sum(map(touched_bytes, moved)),
        float32_bytes=sum(touched_bytes(t) for t in moved if t.dtype == torch.float32),
        flops=flops,
        is_arithmetic=is_arithmetic,
    )
