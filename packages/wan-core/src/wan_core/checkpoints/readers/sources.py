"""Tensors by name, read one at a time: the one thing that readers, renamers, mergers and writers pass on."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        """For messages: ``float32 [2, 3]``."""
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"

    @property
    def numel(self) -> int:
        """Count of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize

    def like(self) -> Tensor:
        """A tensor of this shape and dtype without memory of its own; its values mean nothing."""
        # Not on the meta device, where cutting and joining starts with an import of several seconds.
        return torch.empty((), dtype=self.dtype).expand(self.shape)


class TensorSource(ABC):
    """Named tensors in host memory or in files, in the order in which reading them is fastest.

    ``path`` is where they come from, for messages; ``metadata`` are the strings stored beside them,
    ``remarks`` sentences about what lies beside them and is not read.
    """

    def __init__(self, path: Path, entries: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        """``entries`` are what a source of its kind knows of each tensor, by name."""
        self.path = path
        self.metadata = dict(metadata)
        self.remarks: tuple[str, ...] = ()
        self._entries = dict(entries)

    def keys(self) -> tuple[str, ...]:
        """The names."""
        return tuple(self._entries)

    @abstractmethod
    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of a tensor. Raises KeyError for an unknown name."""

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype that the tensor's precision stands for; differs from that of ``info`` where it is computed."""
        return self.info(name).dtype

    def storage(self, name: str) -> str:
        """How the file holds the tensor: a dtype, or the name of a block format. For people."""
        return str(self.info(name).dtype).removeprefix("torch.")

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU. It may be mapped from a file: memory is used as it is touched."""

    def is_there(self, name: str) -> bool:
        """Whether reading takes no memory: the tensor is mapped, or in memory already, and is not made."""
        return False

    def release(self, name: str) -> None:
        """Let go of the memory behind a tensor that was read and copied; it can be read again."""
        return

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(self.info(name).nbytes for name in self)

    @property
    def read_bytes(self) -> int:
        """Bytes that reading every tensor once touches: those that are stored, and those that are made of them."""
        return self.nbytes

    @property
    def num_parameters(self) -> int:
        """Count of all elements."""
        return sum(self.info(name).numel for name in self)


class MemorySource(TensorSource):
    """Tensors that are in memory already, for instance a model's ``state_dict()``."""

    _entries: dict[str, Tensor]

    def __init__(
        self, tensors: Mapping[str, Tensor], *, path: Path | None = None, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(path or Path("memory"), tensors, metadata or {})

    def info(self, name: str) -> TensorInfo:
        tensor = self._entries[name]
        return TensorInfo(tuple(tensor.shape), tensor.dtype)

    def read(self, name: str) -> Tensor:
        return self._entries[name].detach()

    def is_there(self, name: str) -> bool:
        return True


@dataclass(frozen=True)
class Recipe:
    """How one tensor is made from those of another source; ``make`` None passes the single input on."""

    inputs: tuple[str, ...]
    info: TensorInfo
    make: Callable[[Sequence[Tensor]], Tensor] | None = None


class DerivedSource(TensorSource):
    """Tensors made from those of ``base`` by recipes, each when it is read. Used to rename, split, join and merge."""

    _entries: dict[str, Recipe]

    def __init__(
        self, base: TensorSource, recipes: Mapping[str, Recipe], *, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(base.path, recipes, base.metadata if metadata is None else metadata)
        self.base = base
        self.remarks = base.remarks
        self._users: dict[str, set[str]] = {}
        for name, recipe in self._entries.items():
            for source in recipe.inputs:
                self._users.setdefault(source, set()).add(name)
        self._waiting = {source: set(names) for source, names in self._users.items()}

    @property
    def read_bytes(self) -> int:
        made = (recipe.info.nbytes for recipe in self._entries.values() if recipe.make is not None)
        return self.base.read_bytes + sum(made)

    def info(self, name: str) -> TensorInfo:
        return self._entries[name].info

    def stored_dtype(self, name: str) -> torch.dtype:
        inputs = self._entries[name].inputs
        return self.base.stored_dtype(inputs[0]) if inputs else self.info(name).dtype

    def storage(self, name: str) -> str:
        recipe = self._entries[name]
        return self.base.storage(recipe.inputs[0]) if recipe.make is None else super().storage(name)

    def read(self, name: str) -> Tensor:
        recipe = self._entries[name]
        tensors = [self.base.read(source) for source in recipe.inputs]
        return tensors[0] if recipe.make is None else recipe.make(tensors)

    def is_there(self, name: str) -> bool:
        recipe = self._entries[name]
        return recipe.make is None and self.base.is_there(recipe.inputs[0])

    def release(self, name: str) -> None:
        # A fused tensor goes when its last part has been copied; it may be read once more.
        for source in self._entries[name].inputs:
            self._waiting[source].discard(name)
            if not self._waiting[source]:
                self.base.release(source)
                self._waiting[source] = set(self._users[source])


def cast(base: TensorSource, dtypes: Mapping[str, torch.dtype]) -> DerivedSource:
    """The tensors of ``base``, those named in ``dtypes`` in other dtypes."""
    return DerivedSource(base, {name: _cast(base, name, dtypes.get(name)) for name in base})


def _cast(base: TensorSource, name: str, dtype: torch.dtype | None) -> Recipe:
    info = base.info(name)
    if dtype is None or dtype == info.dtype:
        return Recipe((name,), info)
    return Recipe((name,), TensorInfo(info.shape, dtype), lambda tensors: tensors[0].to(dtype))


class JoinedSource(TensorSource):
    """Several sources with different names as one, by name: the shards of a model."""

    _entries: dict[str, TensorSource]

    def info(self, name: str) -> TensorInfo:
        return self._entries[name].info(name)

    def read(self, name: str) -> Tensor:
        return self._entries[name].read(name)

    def stored_dtype(self, name: str) -> torch.dtype:
        return self._entries[name].stored_dtype(name)

    def storage(self, name: str) -> str:
        return self._entries[name].storage(name)

    def is_there(self, name: str) -> bool:
        return self._entries[name].is_there(name)

    def release(self, name: str) -> None:
        self._entries[name].release(name)
