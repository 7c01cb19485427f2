"""Files of weights as a :class:`TensorSource`: what kind a file is, is decided by its content, never by its name.

This is the only place that unpickles, and only through torch's ``weights_only`` loader, which builds tensors, plain
values and records of arguments (``argparse.Namespace``), and nothing else.
"""

import pickle
import re
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wan_core.checkpoints.readers.archives import Record, storage_records
from wan_core.checkpoints.readers.file_source import FileSource, StoredTensor, file_size, unreadable
from wan_core.checkpoints.readers.file_systems import is_on_network
from wan_core.checkpoints.readers.gguf_file import read_gguf
from wan_core.checkpoints.readers.safetensors_header import read_header
from wan_core.checkpoints.readers.shards import is_index, read_folder, read_index, read_shards, variant_notes
from wan_core.checkpoints.readers.sources import TensorInfo, TensorSource
from wan_core.checkpoints.readers.trainer_folders import DCP_ENDING, LIST_OF_TENSORS, refuse_trainer_folder
from wan_core.errors import CheckpointError

_GLOBAL = re.compile(r"(?:GLOBAL|global) (\S+)")
_MAX_DEPTH = 8


def read_weights(path: str | Path, *, mmap: bool | None = None) -> TensorSource:
    """The tensors of a file, or of a folder with one model's shards; nothing but names and shapes is read yet.

    Files: safetensors, GGUF, what ``torch.save`` wrote (nested dicts get dotted names), an index of shards, or one of
    numbered shards, which stands for all of them. Folders: such an index, numbered shards, or a single file. ``mmap``
    maps files; None: except on network file systems.
    Raises CheckpointError for files that are missing, damaged, unsafe to read or not weights.
    """
    path = Path(path)
    source = _read(path, partial(_read_file, mmap=mmap))
    source.remarks = variant_notes(path)
    return source


def _read(path: Path, read_file: Callable[[Path], TensorSource]) -> TensorSource:
    if path.is_dir():
        return read_folder(path, read_file)
    if is_index(path.name):
        return read_index(path, read_file)
    if path.suffix == DCP_ENDING:
        refuse_trainer_folder(path.parent, [path.name])
    return read_shards(path, read_file)


def _read_file(path: Path, *, mmap: bool | None) -> TensorSource:
    use_mmap = not is_on_network(path) if mmap is None else mmap
    kind = file_kind(path)
    if kind == "torch":
        return _read_torch(path, use_mmap)
    if kind == "gguf":
        return read_gguf(path, use_mmap=use_mmap)
    stored, metadata = read_header(path)
    return FileSource(path, stored, metadata=metadata, use_mmap=use_mmap)


def file_kind(path: Path) -> Literal["safetensors", "torch", "gguf"]:
    """What a file of weights is, by its first bytes. Raises CheckpointError for anything else, saying what it is."""
    size = file_size(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise unreadable(path, error) from error
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes); its copy or download has failed")
    if start.startswith(b"PK\3\4"):
        return "torch"
    if start.startswith(b"GGUF"):
        return "gguf"
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run 'git lfs pull' where it came from")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page, not weights; its download has failed")
    if start[8:9] == b"{":  # before the pickle marks: they may be the first byte of the length that stands in front
        return "safetensors"
    if start[:1] == b"\x80" or b"ustar" in start:
        raise CheckpointError(f"{path} is a pickle of an old format that cannot be read safely; save it as safetensors")
    raise CheckpointError(f"{path} holds no weights that we know: neither safetensors, GGUF nor a file of torch.save")


def _read_torch(path: Path, use_mmap: bool) -> TensorSource:
    records = storage_records(path)
    loaded = _load(path)
    if isinstance(loaded, Tensor):
        loaded = {"tensor": loaded}
    if isinstance(loaded, list | tuple) and any(isinstance(item, dict) for item in loaded):  # weights and a step, say
        loaded = dict(enumerate(loaded))
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not tensors by name")
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for name, value in _flattened(path, loaded):
        if isinstance(value, Tensor):
            if name in tensors:
                raise CheckpointError(f"{path} has {name!r} twice, at its own level and in a dict; save it with one")
            tensors[name] = value
        elif isinstance(value, str | int | float | bool):
            metadata[name] = str(value)
        elif isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
            metadata[name] = f"{LIST_OF_TENSORS}{len(value)}"
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    return FileSource(path, _places(path, tensors, records), metadata=metadata, use_mmap=use_mmap)


def _load(path: Path) -> Any:
    """The pickled objects, with tensors that only map the file."""
    if path.suffix.lower() == ".safetensors":  # which torch would hand to another library
        raise CheckpointError(f"{path} was written by torch.save; rename it to {path.with_suffix('.pth').name}")
    try:
        # Trainers put their arguments beside the weights: a record of plain values, which is passed over.
        with warnings.catch_warnings(), torch.serialization.safe_globals([Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        match = _GLOBAL.search(str(error))
        what = f" ({match.group(1)[:80]})" if match else ""
        raise CheckpointError(
            f"{path} holds Python objects{what} besides tensors, which could run code; it was not loaded. "
            "Get the weights as safetensors"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except MemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError, ArithmeticError) as error:
        # A damaged pickle makes the unpickler fail in any of these ways; none of its objects is used.
        reason = str(error).partition("\n")[0][:80]
        raise CheckpointError(f"{path} is cut off or damaged ({reason}); fetch it again") from error


def _flattened(path: Path, value: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts and lists under dotted names."""
    if depth > _MAX_DEPTH:
        raise CheckpointError(f"{path} is no file of weights: it is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flattened(path, item, f"{prefix}.{key}" if prefix else str(key), depth + 1)
    else:
        yield prefix, value


def _places(path: Path, tensors: dict[str, Tensor], records: list[Record]) -> dict[str, StoredTensor]:
    """Where in the file each mapped tensor lies.

    torch does not say, but all storages are cuts of one mapping: the address of one and its offset give the rest.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(f"{path}: tensor {name!r} is sparse or quantised; save it as a plain tensor")
    filled = [tensor for tensor in tensors.values() if tensor.untyped_storage().nbytes()]
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in filled}
    base = _mapping_address(sizes, records)
    if base is None:
        raise CheckpointError(f"{path} is damaged: its tensors are not where its directory says; fetch it again")
    return {name: _place(tensor, base) for name, tensor in tensors.items()}


def _mapping_address(sizes: dict[int, int], records: list[Record]) -> int | None:
    if not sizes:
        return 0
    known = {record.start: record.length for record in records}
    first = min(sizes)
    for record in records:
        base = first - record.start
        if all(known.get(address - base, -1) >= size for address, size in sizes.items()):
            return base
    return None


def _place(tensor: Tensor, base: int) -> StoredTensor:
    info = TensorInfo(tuple(tensor.shape), tensor.dtype)
    if tensor.numel() == 0:
        return StoredTensor(info, 0)
    start = tensor.untyped_storage().data_ptr() - base + int(tensor.storage_offset()) * tensor.element_size()
    return StoredTensor(info, start, None if tensor.is_contiguous() else tuple(tensor.stride()))
