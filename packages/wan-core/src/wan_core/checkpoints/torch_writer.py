"""Files as ``torch.save`` writes them, tensor by tensor: a dict of tensors that the original code loads.

``torch.save`` itself wants the whole model in memory. Format: a zip archive of stored records aligned to 64 bytes, of
which one is a pickle (protocol 2) of the dict; as documented in torch's notes on serialisation.
"""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from wan_core.checkpoints.readers.sources import TensorInfo, TensorSource
from wan_core.checkpoints.writer import tensor_bytes
from wan_core.drafts import replaced_file
from wan_core.errors import CheckpointError

_STORAGES = {
    torch.float64: "DoubleStorage",
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.int16: "ShortStorage",
    torch.int8: "CharStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
}
_ALIGNMENT = 64
_LOCAL_HEADER, _ZIP64_EXTRA = 30, 20
_ZIP64_FROM = 2**31 - 1


def write_torch_file(
    source: TensorSource, path: str | Path, *, dtypes: Mapping[str, torch.dtype] | None = None
) -> None:
    """Write all tensors to one file, replacing it in one step. ``dtypes`` overrides the stored dtype by name.

    Raises MediaError when the disk refuses, CheckpointError for a dtype that old torch files do not have; nothing
    half-written stays.
    """
    path = Path(path)
    infos = {name: source.info(name) for name in source}
    infos = {name: TensorInfo(info.shape, (dtypes or {}).get(name, info.dtype)) for name, info in infos.items()}
    for name, info in infos.items():
        if info.dtype not in _STORAGES:
            raise CheckpointError(f"tensor {name} has dtype {info.dtype}, which torch files of this kind cannot hold")
    root = path.stem
    with replaced_file(path) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, f"{root}/data.pkl", _pickled(infos))
        _add(archive, f"{root}/byteorder", b"little")
        for number, (name, info) in enumerate(infos.items()):
            tensor = source.read(name).to(info.dtype).contiguous()
            _add(archive, f"{root}/data/{number}", tensor_bytes(tensor))
            del tensor
            source.release(name)
        _add(archive, f"{root}/version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    entry = zipfile.ZipInfo(name)
    entry.file_size = len(content)
    wide = len(content) >= _ZIP64_FROM
    start = archive.start_dir + _LOCAL_HEADER + len(name.encode()) + (_ZIP64_EXTRA if wide else 0)
    entry.extra = _padding(-(start + 4) % _ALIGNMENT)
    with archive.open(entry, "w", force_zip64=wide) as record:
        record.write(content)


def _padding(count: int) -> bytes:
    """An extra field of a zip header that only takes up room: four bytes and ``count`` more."""
    return struct.pack("<2sH", b"FB", count) + b"Z" * count


def _pickled(infos: Mapping[str, TensorInfo]) -> bytes:
    """The opcodes of {name: tensor}: every tensor is rebuilt from a storage of its own, contiguous."""
    parts = [b"\x80\x02}("]
    for number, (name, info) in enumerate(infos.items()):
        parts += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(("]
        parts += [_text("storage"), f"ctorch\n{_STORAGES[info.dtype]}\n".encode(), _text(str(number)), _text("cpu")]
        parts += [_number(info.numel), b"tQK\0", _tuple(info.shape), _tuple(_strides(info.shape))]
        parts += [b"\x89ccollections\nOrderedDict\n)RtR"]
    return b"".join([*parts, b"u."])


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", errors="surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def _number(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + raw


def _tuple(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for side in reversed(shape[1:]):
        strides.append(strides[-1] * max(side, 1))
    return tuple(reversed(strides)) if shape else ()
