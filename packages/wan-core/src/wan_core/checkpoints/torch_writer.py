"""Files as ``torch.save`` writes them, tensor by tensor: a dict of tensors that the original code loads.

``torch.save`` itself wants the whole model in memory. Format: a zip archive of stored records aligned to 64 bytes, of
which one is a pickle (protocol 2) of the dict; as documented in torch's notes on serialisation.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch._utils import _rebuild_tensor_v2

from wan_core.checkpoints.readers.sources import TensorInfo, TensorSource
from wan_core.checkpoints.writer import tensor_bytes
from wan_core.drafts import replaced_file
from wan_core.errors import CheckpointError

_STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}
_ALIGNMENT = 64
_LOCAL_HEADER, _ZIP64_EXTRA = 30, 20
_ZIP64_FROM = 2**31 - 1


def write_torch_file(
    source: TensorSource, path: str | Path, *, levels: Sequence[str] = (), values: Mapping[str, float] | None = None
) -> None:
    """Write all tensors to one file, replacing it in one step.

    Tensors whose names begin with one of ``levels`` and a dot go into a dict of that name, without it; ``values`` are
    numbers beside them. Raises MediaError when the disk refuses, CheckpointError for a dtype that old torch files do
    not have; nothing half-written stays.
    """
    path = Path(path)
    infos = {name: source.info(name) for name in source}
    for name, info in infos.items():
        if info.dtype not in _STORAGES:
            raise CheckpointError(f"tensor {name} has dtype {info.dtype}, which torch files of this kind cannot hold")
    root = path.stem
    with replaced_file(path) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, f"{root}/data.pkl", _pickled(infos, levels, values or {}))
        _add(archive, f"{root}/byteorder", b"little")
        for number, name in enumerate(infos):
            tensor = source.read(name).contiguous()
            _add(archive, f"{root}/data/{number}", tensor_bytes(tensor))
            del tensor
            source.release(name)
        _add(archive, f"{root}/version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    entry = zipfile.ZipInfo(name)
    entry.file_size = len(content)
    wide = len(content) >= _ZIP64_FROM
    start = archive.start_dir + _LOCAL_HEADER + len(name.encode()) + (_ZIP64_EXTRA if wide else 0)
    padding = -(start + 4) % _ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding  # a field that only takes up room
    with archive.open(entry, "w", force_zip64=wide) as record:
        record.write(content)


class _Storage(tuple[Any, ...]):
    """What a pickle says in place of a tensor's bytes: their type, record and count."""


class _Stored:
    """A tensor in the pickle: rebuilt from a storage of its own, contiguous."""

    def __init__(self, record: int, info: TensorInfo) -> None:
        self._storage = _Storage(("storage", _STORAGES[info.dtype], str(record), "cpu", info.numel))
        self._shape = info.shape

    def __reduce__(self) -> Any:
        strides = torch.empty(self._shape, device="meta").stride()
        return _rebuild_tensor_v2, (self._storage, 0, self._shape, strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, item: Any) -> Any:
        return tuple(item) if isinstance(item, _Storage) else None


def _pickled(infos: Mapping[str, TensorInfo], levels: Sequence[str], values: Mapping[str, float]) -> bytes:
    tensors = {name: _Stored(number, infos[name]) for number, name in enumerate(infos)}
    inside = {
        level: {n[len(level) + 1 :]: t for n, t in tensors.items() if n.startswith(f"{level}.")} for level in levels
    }
    outside = {n: t for n, t in tensors.items() if n.partition(".")[0] not in levels}
    content = io.BytesIO()
    _Pickler(content, protocol=2).dump({**outside, **inside, **values})
    return content.getvalue()
