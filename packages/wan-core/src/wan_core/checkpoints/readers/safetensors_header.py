"""The header of a safetensors file, checked before anything is built from it.

Format: eight bytes with the header's length (little endian), a JSON object, then the tensors without gaps. Own code, so
that a hostile header costs neither time nor memory and that tensors can be read without mapping the file.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch

from wan_core.checkpoints.readers.file_source import StoredTensor, file_size, unreadable
from wan_core.checkpoints.readers.sources import TensorInfo
from wan_core.errors import CheckpointError
from wan_core.files import unique_keys

MAX_HEADER_BYTES = 4_000_000
"""Headers of real models have at most some hundred kilobytes; a Python object costs many times its JSON."""

MAX_TENSORS = 20_000
"""Ten times as many as the largest real file has."""

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""Names of the safetensors format."""

_READ_AS = {**DTYPES, "F8_E8M0": torch.uint8}
"""Exponents of two are read as bytes: not every torch has a dtype for them."""

_MAX_DIMS = 16
_SPACE = rb"[ \t\r\n]*+"
_STRING = rb'"(?>[^"\\]++|\\.)*+"'
_VALUE = rb"(?>" + _STRING + rb"|[0-9]++|\[[0-9, \t\r\n]*+\])"


def _object_of(value: bytes) -> bytes:
    pair = _STRING + _SPACE + rb":" + _SPACE + value + _SPACE
    return rb"\{" + _SPACE + rb"(?>" + pair + rb",?+" + _SPACE + rb")*+\}"


# An object of objects of strings, numbers and flat lists. Possessive throughout: no backtracking, no memory; nothing
# that does not look so reaches the JSON parser, whose lists and dicts are many times larger than their text.
_HEADER = re.compile(_object_of(_object_of(_VALUE)) + _SPACE)


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Places of the tensors of a safetensors file, and its metadata.

    Raises CheckpointError for anything that is not exactly such a file: cut off, gaps, overlaps, wrong lengths.
    """
    size = file_size(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or not 2 <= length <= size - 8:
                raise _damaged(path, "its header's length does not fit the file")
            if length > MAX_HEADER_BYTES:
                raise _damaged(path, f"its header has {length} bytes, at most {MAX_HEADER_BYTES} make sense")
            header = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    entries = _parse(path, header)
    metadata = entries.pop("__metadata__", {})
    if not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "its metadata are not strings")
    if len(entries) > MAX_TENSORS:
        raise _damaged(path, f"it has {len(entries)} tensors, at most {MAX_TENSORS} make sense")
    stored = {name: _stored(path, name, entry, 8 + length) for name, entry in entries.items()}
    _check_gapless(path, stored, 8 + length, size)
    return stored, metadata


def _parse(path: Path, header: bytes) -> dict[str, dict[str, Any]]:
    if not _HEADER.fullmatch(header):
        raise _damaged(path, "its header is not that of a safetensors file")
    try:
        entries: dict[str, dict[str, Any]] = json.loads(header.decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not readable ({str(error)[:80]})") from error
    return entries


def _stored(path: Path, name: str, entry: dict[str, Any], base: int) -> StoredTensor:
    if set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"tensor {name[:80]!r} has no dtype, shape and data_offsets")
    dtype = _READ_AS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(
            f"{path}: tensor {name[:80]!r} has dtype {str(entry['dtype'])[:40]!r}, which is not supported"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or len(shape) > _MAX_DIMS:
        raise _damaged(path, f"tensor {name[:80]!r} has no usable shape or data_offsets")
    place = StoredTensor(TensorInfo(tuple(shape), dtype), base + offsets[0])
    if place.stop != base + offsets[1]:
        raise _damaged(path, f"the shape of tensor {name[:80]!r} does not fit its length")
    return place


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_gapless(path: Path, stored: dict[str, StoredTensor], start: int, size: int) -> None:
    for place in sorted(stored.values(), key=lambda place: (place.start, place.stop)):
        if place.start != start:
            raise _damaged(path, "its tensors overlap or leave gaps")
        start = place.stop
    if start != size:
        raise _damaged(path, f"it should have {start} bytes and has {size}")


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is cut off or damaged: {reason}; fetch it again")
