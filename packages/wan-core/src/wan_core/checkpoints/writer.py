"""Safetensors files, written tensor by tensor: whole or not at all, with one tensor in memory at a time."""

import ctypes
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from wan_core.checkpoints.readers.safetensors_header import DTYPES
from wan_core.checkpoints.readers.sources import TensorInfo, TensorSource, cast
from wan_core.drafts import replaced_file, write_text
from wan_core.errors import CheckpointError, RequestError

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
DEFAULT_SHARD_BYTES = 10_000_000_000


def write_file(
    source: TensorSource,
    path: str | Path,
    *,
    dtypes: Mapping[str, torch.dtype] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write all tensors to one safetensors file, replacing it in one step.

    ``dtypes`` overrides the stored dtype by name; ``metadata`` replaces that of the source. Raises MediaError when the
    disk refuses, CheckpointError for a dtype that the format does not have; nothing half-written stays.
    """
    path = Path(path)
    with replaced_file(path) as draft, draft.open("wb") as file:
        _write(cast(source, dtypes or {}), source.keys(), file, source.metadata if metadata is None else metadata)


def write_shards(
    source: TensorSource,
    folder: str | Path,
    *,
    stem: str = "diffusion_pytorch_model",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    dtypes: Mapping[str, torch.dtype] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> list[str]:
    """Write all tensors into a folder: one file, or numbered shards of at most ``max_shard_bytes`` with an index.

    Returns the file names. A tensor larger than a shard gets one for itself. The index comes last, so that a folder
    cut off in the middle is never taken for a model. Errors as in :func:`write_file`; RequestError for a shard size
    below 1.
    """
    if max_shard_bytes < 1:
        raise RequestError(f"the shard size must be at least 1 byte, got {max_shard_bytes}")
    folder, source = Path(folder), cast(source, dtypes or {})
    metadata = source.metadata if metadata is None else metadata
    groups = _grouped(source, max_shard_bytes)
    if len(groups) == 1:
        write_file(source, folder / f"{stem}.safetensors", metadata=metadata)
        return [f"{stem}.safetensors"]
    names = [f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    for name, group in zip(names, groups, strict=True):
        with replaced_file(folder / name) as draft, draft.open("wb") as file:
            _write(source, group, file, metadata)
    index = {
        "metadata": {"total_size": source.nbytes},
        "weight_map": {key: name for name, group in zip(names, groups, strict=True) for key in group},
    }
    write_text(folder / f"{stem}.safetensors.index.json", json.dumps(index, indent=2, sort_keys=True) + "\n")
    return names


def _grouped(source: TensorSource, limit: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    filled = 0
    for name in source:
        size = source.info(name).nbytes
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _write(source: TensorSource, names: Sequence[str], file: BinaryIO, metadata: Mapping[str, str]) -> None:
    # Wide dtypes first keep every tensor aligned; the format's own library orders so, too.
    order = sorted(names, key=lambda name: -source.info(name).dtype.itemsize)
    file.write(_header({name: source.info(name) for name in order}, metadata))
    for name in order:
        tensor = source.read(name).contiguous()
        file.write(tensor_bytes(tensor))
        del tensor
        source.release(name)


def _header(infos: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    start = 0
    for name, info in infos.items():
        if info.dtype not in _NAMES:
            raise CheckpointError(f"tensor {name} has dtype {info.dtype}, which safetensors files cannot hold")
        entries[name] = {
            "dtype": _NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [start, start + info.nbytes],
        }
        start += info.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy; they live as long as the tensor."""
    size = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B") if size else memoryview(b"")
