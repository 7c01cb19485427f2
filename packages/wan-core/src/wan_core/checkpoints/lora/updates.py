"""Changes of single tensors, as LoRA files hold them; each knows its target, its shape, and how to add itself."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from wan_core.checkpoints.readers.sources import TensorInfo, TensorSource
from wan_core.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Update(ABC):
    """A change of the native tensor ``target``, stored in ``source`` under ``names``; ``shape`` is the target's."""

    target: str
    names: tuple[str, ...]
    source: TensorSource

    @abstractmethod
    def shape(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the target must have; ``wanted`` is the one it has."""

    @abstractmethod
    def add(self, weight: Tensor, strength: float) -> Tensor:
        """``weight``, float32 and ours to overwrite, with ``strength`` times the change; maybe the same memory."""

    def read(self, index: int) -> Tensor:
        """A stored tensor in float32. Raises CheckpointError when it holds no plain numbers."""
        tensor = self.source.read(self.names[index]).float()
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{self.source.path}: {self.names[index]} holds NaN or infinity; the file is damaged, fetch it again"
            )
        return tensor

    def release(self) -> None:
        """Let go of what was read."""
        for name in self.names:
            self.source.release(name)


@dataclass(frozen=True, kw_only=True)
class AddedUpdate(Update):
    """``scale`` times a tensor of the target's shape, or times ``up @ down`` where ``names`` are two.

    Those are the down half ``[rank, in, ...]`` and the up half ``[out, rank, ...]``. Of a fused layer, this is part
    ``part`` of ``parts`` equal ones along the output axis.
    """

    scale: float = 1.0
    part: int = 0
    parts: int = 1

    def shape(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        first, last = (self.source.info(name).shape for name in (self.names[0], self.names[-1]))
        shape = (last[0] // self.parts, *first[1:]) if last else last
        # A 1x1 convolution may be stored as a matrix, and the other way round.
        return wanted if _plain(shape) == _plain(wanted) else shape

    def add(self, weight: Tensor, strength: float) -> Tensor:
        *down, change = (self.read(index) for index in range(len(self.names)))
        if self.parts > 1:
            change = change.chunk(self.parts)[self.part]
        factor = strength * self.scale
        if not down:
            return weight.add_(change.view(weight.shape), alpha=factor)
        weight.view(weight.shape[0], -1).addmm_(change.flatten(1), down[0].flatten(1), alpha=factor)
        return weight


@dataclass(frozen=True, kw_only=True)
class NewValue(Update):
    """A value that takes the target's place; of another shape only where ``reshapes`` says so."""

    reshapes: bool = False

    @property
    def info(self) -> TensorInfo:
        """The new value's shape and dtype."""
        return self.source.info(self.names[0])

    def shape(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        return wanted if self.reshapes else self.info.shape

    def add(self, weight: Tensor, strength: float) -> Tensor:
        value = self.read(0)
        return value if value.shape != weight.shape or strength == 1.0 else weight.lerp_(value, strength)


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without trailing ones."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape
