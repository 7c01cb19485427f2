"""Training state of divided weights, through torch.distributed.checkpoint: every process writes and reads its part.

That library costs as much time to import as torch, so it is imported where it is used.

A folder can be read by any number of processes, also by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from wan_core.files import hash_file
from wan_core.runtime import divided_as, is_divided

_INDEX = ".metadata"


def is_sharded_folder(folder: Path) -> bool:
    """Whether a checkpoint was written by several processes."""
    return (folder / _INDEX).is_file()


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Write tensors, divided ones by their parts; every process calls it. Gives the SHA-256 of the files by name.

    Raises OSError when a disk refuses.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        save(dict(tensors), storage_writer=FileSystemWriter(folder, sync_files=True))
    except CheckpointException as error:
        raise OSError(_reason(error)) from error
    rank, world = distributed.get_rank(), distributed.get_world_size()
    files = sorted(path for path in folder.iterdir() if path.is_file())
    digests: list[Any] = [None] * world
    distributed.all_gather_object(digests, {path.name: hash_file(path) for path in files[rank::world]})
    return {name: digest for each in digests for name, digest in each.items()}


def read_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors of any division, in place. Raises OSError when the folder is damaged or lacks one."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    alone = not distributed.is_initialized()
    try:
        load(dict(tensors), storage_reader=FileSystemReader(folder), no_dist=alone)
    except (CheckpointException, RuntimeError, KeyError, ValueError, EOFError) as error:
        raise OSError(_reason(error)) from error


def zeros_of(shape: Sequence[int], like: Tensor) -> Tensor:
    """Room for a saved tensor: divided as ``like`` where it has its shape, else whole."""
    if tuple(shape) == tuple(like.shape):
        return torch.zeros_like(like, dtype=torch.float32, requires_grad=False)
    return torch.zeros(tuple(shape))


def copy_whole(target: Tensor, source: Tensor) -> None:
    """Copy a whole tensor into one that may be divided; every process has the whole."""
    if is_divided(target) and not is_divided(source):
        source = divided_as(target, source.to(target.device, target.dtype))
    target.copy_(source)


def _reason(error: BaseException) -> str:
    failures: Mapping[int, Any] = getattr(error, "failures", {})
    first = next(iter(failures.values()), (error,))
    return str(first[0] if isinstance(first, tuple) else first).splitlines()[0][:200]
