"""Changes of single tensors, as LoRA files hold them; each knows its target, its shape, and how to add itself."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wan_core.checkpoints.lora.changes import PAIR, Change, Shape
from wan_core.checkpoints.readers.sources import TensorInfo, TensorSource
from wan_core.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Update(ABC):
    """A change of the native tensor ``target``, stored in ``source``: ``names`` of its tensors by their roles."""

    target: str
    names: Mapping[str, str]
    source: TensorSource

    @abstractmethod
    def shape(self, wanted: Shape) -> Shape:
        """The shape that the target must have; ``wanted`` is the one it has."""

    @abstractmethod
    def add(self, weight: Tensor, strength: float) -> Tensor:
        """``weight``, float32 and ours to overwrite, with ``strength`` times the change; maybe the same memory."""

    def read(self, role: str, device: torch.device) -> Tensor:
        """A stored tensor in float32 on ``device``. Raises CheckpointError when it holds no plain numbers."""
        tensor = self.source.read(self.names[role]).float()
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{self.source.path}: {self.names[role]} holds NaN or infinity; the file is damaged, fetch it again"
            )
        return tensor.to(device)

    def stored_shape(self, role: str) -> Shape:
        """The shape of a stored tensor."""
        return self.source.info(self.names[role]).shape

    def release(self) -> None:
        """Let go of what was read."""
        for name in self.names.values():
            self.source.release(name)


@dataclass(frozen=True, kw_only=True)
class AddedUpdate(Update):
    """``scale`` times a change of the target's shape, which ``change`` makes of the stored tensors.

    Of a fused layer, this is part ``part`` of ``parts`` equal ones along the output axis.
    """

    change: Change
    scale: float = 1.0
    part: int = 0
    parts: int = 1

    def shape(self, wanted: Shape) -> Shape:
        whole, _ = self.change.shape({role: self.stored_shape(role) for role in self.names})
        if not whole:
            return whole
        shape = (whole[0] // self.parts, *whole[1:])
        # A convolution may be stored as a matrix, and a matrix as a 1x1 convolution.
        is_matrix = len(shape) == 2 and len(wanted) > 2 and shape == (wanted[0], math.prod(wanted[1:]))
        return wanted if is_matrix or _plain(shape) == _plain(wanted) else shape

    def add(self, weight: Tensor, strength: float) -> Tensor:
        tensors = {role: self.read(role, weight.device) for role in self.names}
        flat = weight.view(weight.shape[0], -1) if weight.dim() else weight
        if self.parts == 1:
            self.change.add(flat, tensors, strength * self.scale)
        elif self.change is PAIR:
            tensors["up"] = tensors["up"].chunk(self.parts)[self.part]
            self.change.add(flat, tensors, strength * self.scale)
        else:
            whole = flat.new_zeros(flat.shape[0] * self.parts, *flat.shape[1:])
            self.change.add(whole, tensors, 1.0)
            flat.add_(whole.chunk(self.parts)[self.part], alpha=strength * self.scale)
        return weight


@dataclass(frozen=True, kw_only=True)
class DecomposedUpdate(Update):
    """DoRA (Liu et al. 2024): the changed weight, scaled to stored lengths of its rows, or its columns.

    Lengths are taken of the weight with the full change, as peft and lycoris train (ComfyUI takes them of the weight
    without it where lengths are of rows). ``strength`` goes from the weight to that, as in ComfyUI.
    """

    change: AddedUpdate
    of_rows: bool

    def shape(self, wanted: Shape) -> Shape:
        return self.change.shape(wanted)

    def add(self, weight: Tensor, strength: float) -> Tensor:
        wanted = self.read("magnitude", weight.device).flatten()
        if self.of_rows:
            wanted = wanted.chunk(self.change.parts)[self.change.part]
        weight = self.change.add(weight, 1.0)
        kept = 0 if self.of_rows else 1
        other = [axis for axis in range(weight.dim()) if axis != kept]
        lengths = torch.linalg.vector_norm(weight, dim=other) + torch.finfo(torch.float32).eps
        factor = (wanted / lengths).view([-1 if axis == kept else 1 for axis in range(weight.dim())])
        # w + s (f (w + c) - w) = (1 - s + s f) (w + c) - (1 - s) c
        weight.mul_(1 - strength + strength * factor)
        return weight if strength == 1.0 else self.change.add(weight, strength - 1)

    def release(self) -> None:
        super().release()
        self.change.release()


@dataclass(frozen=True, kw_only=True)
class RowsUpdate(Update):
    """``inner`` for some ``rows`` of its target, from and to: a layer that the network has fused with others."""

    inner: Update
    rows: tuple[int, int]

    def shape(self, wanted: Shape) -> Shape:
        count = self.rows[1] - self.rows[0]
        found = self.inner.shape((count, *wanted[1:]))
        return (wanted[0] - count + found[0], *found[1:]) if found else found

    def add(self, weight: Tensor, strength: float) -> Tensor:
        rows = slice(*self.rows)
        weight[rows] = self.inner.add(weight[rows].clone(), strength)
        return weight

    def release(self) -> None:
        self.inner.release()


@dataclass(frozen=True, kw_only=True)
class NewValue(Update):
    """A value that takes the target's place; of another shape only where ``reshapes`` says so."""

    reshapes: bool = False

    @property
    def info(self) -> TensorInfo:
        """The new value's shape and dtype."""
        return self.source.info(self.names["whole"])

    def shape(self, wanted: Shape) -> Shape:
        return wanted if self.reshapes else self.info.shape

    def add(self, weight: Tensor, strength: float) -> Tensor:
        value = self.read("whole", weight.device)
        return value if value.shape != weight.shape or strength == 1.0 else weight.lerp_(value, strength)


def _plain(shape: Shape) -> Shape:
    """A shape without trailing ones."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape
