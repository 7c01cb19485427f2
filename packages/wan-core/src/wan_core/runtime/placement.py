"""Where each component lives, and when: loaded at first use, on the device while used, elsewhere between uses."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Generic, TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Between(Enum):
    """What happens to a component between two uses."""

    KEEP = "keep"  # stays on the device
    HOST = "host"  # moves to host memory
    DROP = "drop"  # is forgotten; its next use loads it again


class Placed(Generic[ModuleT]):
    """A component that loads itself when it is first used.

    ``load`` builds the module on the device it is given; ``load_trainable`` one more, in a dtype, to be trained.
    ``with placed.active() as module`` guarantees that the module is on ``device``; afterwards ``between`` decides. Not
    thread safe.
    """

    def __init__(
        self,
        load: Callable[[torch.device], ModuleT],
        device: torch.device,
        *,
        between: Between = Between.KEEP,
        load_trainable: Callable[[torch.dtype], ModuleT] | None = None,
    ) -> None:
        self._load = load
        self._load_trainable = load_trainable
        self._module: ModuleT | None = None
        self._users = 0
        self.device = device
        self.between = between

    @property
    def is_loaded(self) -> bool:
        return self._module is not None

    def module(self) -> ModuleT:
        """The module on its device; it stays there until :meth:`rest` is called, or while it is held."""
        if self._module is None:
            self._module = self._load(self.device)
        elif self.between is Between.HOST:
            self._module.to(self.device)
        return self._module

    def rest(self) -> None:
        """Free the device of this module, as ``between`` says, unless it is held."""
        if self._module is None or self._users or self.between is Between.KEEP:
            return
        if self.between is Between.HOST:
            self._module.to("cpu")
        else:
            self._module = None
            gc.collect()
        release_cached_memory(self.device)

    def trainable(self, dtype: torch.dtype) -> ModuleT:
        """Another module of the same weights on the device, in ``dtype``, which belongs to the caller.

        Raises TypeError where the module can only be used.
        """
        if self._load_trainable is None:
            raise TypeError("this part of the model cannot be trained")
        return self._load_trainable(dtype)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Between uses within a ``with`` block the module stays where it is; it need not be loaded."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self.rest()

    @contextmanager
    def active(self) -> Iterator[ModuleT]:
        """The module on its device for the duration of a ``with`` block."""
        with self.held():
            yield self.module()


def release_cached_memory(device: torch.device) -> None:
    """Give freed blocks of the device's caching allocator back, so that the next component finds room."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
