"""Tensors at known places of one file: mapped into memory, or read plainly, one at a time."""

import mmap as mmaps
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wan_core.checkpoints.readers.sources import TensorInfo, TensorSource
from wan_core.errors import CheckpointError

_PAGE = mmaps.PAGESIZE


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: bytes ``start`` of the file on; ``strides`` (in elements) None means contiguous."""

    info: TensorInfo
    start: int
    strides: tuple[int, ...] | None = None

    @property
    def span(self) -> int:
        """Count of elements from the first to the last, gaps included."""
        if self.strides is None or self.info.numel == 0:
            return self.info.numel
        return 1 + sum((size - 1) * stride for size, stride in zip(self.info.shape, self.strides, strict=True))

    @property
    def stop(self) -> int:
        """The first byte after the tensor."""
        return self.start + self.span * self.info.dtype.itemsize


class FileSource(TensorSource):
    """The tensors of one file. ``use_mmap`` maps the file privately (writing to a tensor never reaches the file)."""

    _entries: dict[str, StoredTensor]

    def __init__(
        self, path: Path, stored: Mapping[str, StoredTensor], *, metadata: Mapping[str, str], use_mmap: bool
    ) -> None:
        super().__init__(path, dict(sorted(stored.items(), key=lambda item: item[1].start)), metadata)
        self._use_mmap = use_mmap
        self._map: mmaps.mmap | None = None
        _check_places(path, stored)

    def info(self, name: str) -> TensorInfo:
        return self._entries[name].info

    def read(self, name: str) -> Tensor:
        """The tensor, mapped or read. Raises CheckpointError when the file has changed or cannot be read."""
        stored = self._entries[name]
        dtype, span = stored.info.dtype, stored.span
        if span == 0:
            return torch.empty(stored.info.shape, dtype=dtype)
        if self.is_there(name):
            flat = torch.frombuffer(self._mapped(), dtype=dtype, count=span, offset=stored.start)
        else:
            flat = self._plainly(stored)
        if stored.strides is not None:
            return flat.as_strided(stored.info.shape, stored.strides)
        return flat.view(stored.info.shape)

    def is_there(self, name: str) -> bool:
        """Whether the tensor is mapped."""
        stored = self._entries[name]
        return self._use_mmap and stored.start % stored.info.dtype.itemsize == 0

    def release(self, name: str) -> None:
        """Give the tensor's pages back; untouched by writing, they come from the file again when needed."""
        if self._map is None or not sys.platform.startswith("linux"):
            return
        stored = self._entries[name]
        # Pages that a neighbour shares stay: the neighbour may be in use, and written to.
        first, last = -(-stored.start // _PAGE) * _PAGE, stored.stop // _PAGE * _PAGE
        if last > first:
            self._map.madvise(mmaps.MADV_DONTNEED, first, last - first)

    def _mapped(self) -> mmaps.mmap:
        if self._map is None:
            try:
                with self.path.open("rb") as file:
                    self._map = mmaps.mmap(file.fileno(), 0, access=mmaps.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise unreadable(self.path, error) from error
            if len(self._map) < max(stored.stop for stored in self._entries.values()):
                raise CheckpointError(f"{self.path} has become shorter since it was opened; fetch it again")
        return self._map

    def _plainly(self, stored: StoredTensor) -> Tensor:
        flat = torch.empty(stored.span, dtype=stored.info.dtype)
        try:
            with self.path.open("rb") as file:
                file.seek(stored.start)
                count = file.readinto(flat.view(torch.uint8).numpy().data)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if count < stored.stop - stored.start:
            raise CheckpointError(f"{self.path} ends within a tensor; it has changed, fetch it again")
        return flat


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error of a file that the system does not let us read."""
    reason = (getattr(error, "strerror", None) or str(error)).partition("\n")[0]
    return CheckpointError(f"cannot read {path}: {reason}")


def file_size(path: Path) -> int:
    """Size in bytes. Raises CheckpointError when there is no such regular file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if not path.is_file():
        raise CheckpointError(f"{path} is no regular file; name a file of weights or a folder of them")
    return status.st_size


def _check_places(path: Path, stored: Mapping[str, StoredTensor]) -> None:
    """Refuse what would read outside the file, or make memory out of nothing (strides of zero)."""
    size = file_size(path)
    for name, place in stored.items():
        negative = min((*place.info.shape, *(place.strides or ()), place.start), default=0) < 0
        if negative or place.stop > size:
            raise CheckpointError(
                f"{path} is cut off or damaged: tensor {name!r} lies outside the file; fetch it again"
            )
        if place.info.numel > place.span:
            raise CheckpointError(f"{path} is no file of weights: tensor {name!r} is larger than what is stored of it")
