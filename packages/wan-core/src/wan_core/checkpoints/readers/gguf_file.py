"""GGUF files: quantised blocks become float32 tensors, one at a time.

The header is read by our own code, with limits; block formats are those of the ``gguf`` package (``wan-core[gguf]``),
which is needed for quantised tensors only. Format: version 3 of GGUF as documented by ggml.
"""

import mmap as mmaps
import struct
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wan_core.checkpoints.readers.file_source import FileSource, StoredTensor, file_size, unreadable
from wan_core.checkpoints.readers.sources import TensorInfo, TensorSource
from wan_core.errors import BackendError, CheckpointError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_TENSORS = 10_000
_MAX_FIELDS = 20_000
_MAX_STRING = 1_000_000
_MAX_LISTED = 1_000_000
"""Entries of all lists together: three lists of UMT5's 256,384 pieces fit."""

_MAX_HEADER = 32_000_000
_MAX_DIMS = 8
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
_PLAIN = {
    0: torch.float32,
    1: torch.float16,
    24: torch.int8,
    25: torch.int16,
    26: torch.int32,
    27: torch.int64,
    28: torch.float64,
    30: torch.bfloat16,
}
"""Types of ggml whose elements are stored as they are."""

_BLOCKS = {
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}  # fmt: skip
"""Types of ggml in blocks: name, elements and bytes of one."""

_UNREAD = {9: "Q8_1", 15: "Q8_K", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 40: "NVFP4", 41: "Q1_0"}
"""Types that are known by name only."""


class GGUFSource(TensorSource):
    """The tensors of a GGUF file; quantised ones are float32 when read, and count as bfloat16."""

    _entries: dict[str, tuple[int, ...]]

    def __init__(self, blocks: FileSource, shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, int]) -> None:
        super().__init__(blocks.path, {name: shapes[name] for name in blocks}, blocks.metadata)
        self._blocks = blocks
        self._types = dict(types)

    def info(self, name: str) -> TensorInfo:
        return TensorInfo(self._entries[name], _PLAIN.get(self._types[name], torch.float32))

    def stored_dtype(self, name: str) -> torch.dtype:
        return _PLAIN.get(self._types[name], torch.bfloat16)

    def storage(self, name: str) -> str:
        kind = self._types[name]
        return _BLOCKS[kind][0] if kind in _BLOCKS else super().storage(name)

    def read(self, name: str) -> Tensor:
        """The tensor. Raises BackendError when it is quantised and the gguf package is not installed."""
        stored = self._blocks.read(name)
        if self._types[name] in _PLAIN:
            return stored.view(self._entries[name])
        return _dequantize(stored, self._types[name], self.path).reshape(self._entries[name])

    def release(self, name: str) -> None:
        self._blocks.release(name)


def _dequantize(blocks: Tensor, kind: int, path: Path) -> Tensor:
    try:
        gguf = import_module("gguf")
    except ImportError as error:
        raise BackendError(
            f"{path} holds quantised weights, which the gguf package unpacks: pip install 'wan-core[gguf]'"
        ) from error
    try:
        with np.errstate(all="ignore"):  # blocks may hold infinite scales; such values show when they are used
            values = gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType(kind))
    except (NotImplementedError, ValueError) as error:
        raise CheckpointError(f"{path}: the installed gguf package cannot unpack type {kind} ({error})") from error
    return torch.from_numpy(values)


def read_gguf(path: Path, *, use_mmap: bool) -> GGUFSource:
    """Open a GGUF file. Raises CheckpointError for a damaged one or one with types that are not known."""
    file_size(path)
    try:
        with path.open("rb") as file, mmaps.mmap(file.fileno(), 0, access=mmaps.ACCESS_READ) as content:
            fields, entries, end = _Header(content, path).read()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 2**20:
        raise CheckpointError(f"{path} is damaged: its alignment is {str(alignment)[:20]}")
    if not entries and fields.get("split.count", 1) == 1:  # the first of several files may hold fields alone
        raise CheckpointError(f"{path} holds no tensors")
    base = -(-end // alignment) * alignment
    stored: dict[str, StoredTensor] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (shape, kind, offset) in entries.items():
        stored[name] = _stored(path, name, shape, kind, base + offset)
        shapes[name] = _shape(path, name, shape, fields.get(f"{_ORIGINAL_SHAPE}{name}"))
    metadata = {key: str(value) for key, value in fields.items() if isinstance(value, str | int | float)}
    blocks = FileSource(path, stored, metadata=metadata, use_mmap=use_mmap)
    return GGUFSource(blocks, shapes, {name: kind for name, (_, kind, _) in entries.items()})


def _stored(path: Path, name: str, shape: tuple[int, ...], kind: int, start: int) -> StoredTensor:
    if kind in _PLAIN:
        return StoredTensor(TensorInfo(shape, _PLAIN[kind]), start)
    if kind not in _BLOCKS:
        title = f"{_UNREAD[kind]} ({kind})" if kind in _UNREAD else kind
        raise CheckpointError(f"{path}: tensor {name[:80]!r} has ggml type {title}, which is not supported")
    _, elements, size = _BLOCKS[kind]
    if not shape or shape[-1] % elements:
        raise CheckpointError(f"{path} is damaged: tensor {name[:80]!r} is no whole number of blocks")
    return StoredTensor(TensorInfo((*shape[:-1], shape[-1] // elements * size), torch.uint8), start)


def _shape(path: Path, name: str, shape: tuple[int, ...], original: Any) -> tuple[int, ...]:
    """ComfyUI's converter stores tensors that blocks do not fit in another shape, and notes the right one."""
    if original is None:
        return shape
    right = tuple(original) if isinstance(original, list) and all(type(side) is int for side in original) else ()
    if not right or min(right) < 0 or TensorInfo(right, torch.int8).numel != TensorInfo(shape, torch.int8).numel:
        raise CheckpointError(f"{path} is damaged: the noted shape of tensor {name[:80]!r} does not fit it")
    return right


class _Header:
    """Reads the header of a file in order, within limits."""

    def __init__(self, content: mmaps.mmap, path: Path) -> None:
        self._content = content
        self._path = path
        self._at = 0
        self._listed = 0

    def read(self) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int, int]], int]:
        """Fields, tensors (shape, type, offset) and where the header ends."""
        if self._content[:4] != b"GGUF":
            raise self._damaged("it does not begin as a GGUF file")
        self._at = 4
        version = self._number("I")
        if version not in (2, 3):
            raise CheckpointError(f"{self._path} is GGUF version {version}; 2 and 3 are known")
        num_tensors, num_fields = self._number("Q"), self._number("Q")
        if num_tensors > _MAX_TENSORS or num_fields > _MAX_FIELDS:
            raise self._damaged(f"it announces {num_tensors} tensors and {num_fields} fields")
        fields = {}
        for _ in range(num_fields):
            key = self._string()
            fields[key] = self._value(self._number("I"))
        entries = {}
        for _ in range(num_tensors):
            name = self._string()
            count = self._number("I")
            if count > _MAX_DIMS or name in entries:
                raise self._damaged(f"tensor {name[:80]!r} has {count} dimensions or occurs twice")
            shape = tuple(self._number("Q") for _ in range(count))[::-1]  # ggml counts the innermost first
            if any(side > 2**40 for side in shape):
                raise self._damaged(f"tensor {name[:80]!r} has shape {list(shape)}")
            entries[name] = (shape, self._number("I"), self._number("Q"))
        return fields, entries, self._at

    def _number(self, form: str) -> Any:
        try:
            (value,) = struct.unpack_from(f"<{form}", self._content, self._at)
        except struct.error as error:
            raise self._damaged("its header ends too early") from error
        self._move(struct.calcsize(form))
        return value

    def _string(self) -> str:
        length = self._number("Q")
        if length > _MAX_STRING or self._at + length > len(self._content):
            raise self._damaged("a string is longer than the file")
        raw = self._content[self._at : self._at + length]
        self._move(length)
        return raw.decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._damaged(f"a field has type {kind}")
        item, count = self._number("I"), self._number("Q")
        self._listed += count
        if self._listed > _MAX_LISTED:
            raise self._damaged(f"its lists have {self._listed} entries")
        if item == _STRING:  # a tokenizer's vocabulary: passed over
            for _ in range(count):
                self._string()
            return None
        if item not in _SCALARS:
            raise self._damaged(f"a list has entries of type {item}")
        if count > _MAX_DIMS:
            self._move(count * struct.calcsize(_SCALARS[item]))
            return None
        return [self._number(_SCALARS[item]) for _ in range(count)]

    def _move(self, length: int) -> None:
        self._at += length
        if self._at > _MAX_HEADER:
            raise self._damaged(f"its header has more than {_MAX_HEADER} bytes")

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self._path} is cut off or damaged: {reason}; fetch it again")
