"""How much memory this process has used."""

import contextlib
import resource
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, UntypedStorage
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_memory() -> int:
    """Bytes of the largest resident set since :func:`reset_peak`, or since the start."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> int:
    """Forget the peak where the system can (Linux), so that the next one is seen; the peak now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that were made while it is active and are still there, and their largest sum.

    Each storage counts once, whoever views it or saved it for a backward pass, with the size that it has at the time;
    of a tensor that is divided among processes the part that is here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._held: dict[int, StorageWeakRef] = {}

    @property
    def now(self) -> int:
        """Bytes that are there."""
        self._held = {key: each for key, each in self._held.items() if not each.expired()}
        there = (UntypedStorage._new_with_weak_ptr(each.cdata) for each in self._held.values())
        return sum(storage.nbytes() for storage in there if storage is not None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(leaf)._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        made = [_storage(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        new = {storage._cdata: StorageWeakRef(storage) for storage in made if storage._cdata not in given}
        if new:
            self._held |= new
            self.peak = max(self.peak, self.now)
        return out


def _storage(tensor: Tensor) -> UntypedStorage:
    return getattr(tensor, "_local_tensor", tensor).untyped_storage()
