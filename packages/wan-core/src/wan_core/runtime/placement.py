"""Where each component lives, and when: loaded at first use, on the device while used, elsewhere between uses."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from wan_core.checkpoints import Division
from wan_core.runtime.host_copy import HostCopy
from wan_core.runtime.lane import lane_of

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Between(Enum):
    """What happens to a component between two uses."""

    KEEP = "keep"  # stays on the device
    HOST = "host"  # one copy of its weights, made while they are read, waits in host memory
    DROP = "drop"  # is forgotten; its next use loads it again


class Placed(Generic[ModuleT]):
    """A component that loads itself when it is first used.

    ``load`` builds the module on the device it is given; ``load_through`` one whose weights come there through the
    host copy; ``load_trainable`` one more, in a dtype, to be trained, under a division where there is one. ``with
    placed.active() as module`` guarantees that the module is on ``device``; afterwards ``between`` decides. Weights are
    never copied down from the device, but for those that were changed there, which keep their values. Without
    ``load_through`` HOST is as DROP. ``in_blocks``, for what can be loaded so and has blocks, lets these pass through
    the device while it runs. ``on_use`` is called whenever it is there to be used. Not thread safe.
    """

    def __init__(
        self,
        load: Callable[[torch.device], ModuleT],
        device: torch.device,
        *,
        between: Between = Between.KEEP,
        load_through: Callable[[HostCopy], ModuleT] | None = None,
        load_trainable: Callable[[torch.dtype, Division | None], ModuleT] | None = None,
    ) -> None:
        self._load = load
        self._load_through = load_through
        self._load_trainable = load_trainable
        self._module: ModuleT | None = None
        self._host: HostCopy | None = None
        self._read: dict[str, tuple[int, int]] = {}
        self._changed: dict[str, Tensor] = {}
        self._is_away = False
        self._users = 0
        self._coming: Future[Any] | None = None
        self.device = device
        self.between = between
        self.in_blocks = False
        self.lane = lane_of(device)
        self.adjust: Callable[[ModuleT], None] | None = None
        self.on_use: Callable[[Placed[ModuleT]], None] | None = None
        self.loads = 0

    @property
    def is_loaded(self) -> bool:
        """Whether the module is on its device."""
        return self._module is not None and not self._is_away and self._coming is None

    def module(self) -> ModuleT:
        """The module on its device; it stays there until :meth:`rest` is called, or while it is held."""
        self._settle()
        if not self.is_loaded:
            self._bring()
        if self._module is None:
            raise RuntimeError("a part was brought to its device and is not there")
        if self.adjust is not None:
            self.adjust(self._module)
        if self.on_use is not None:
            self.on_use(self)
        return self._module

    def prefetch(self) -> None:
        """Begin to bring the module to its device while that computes something else; :meth:`module` waits for it.

        Where copies do not run beside the work of the device nothing happens.
        """
        if self.lane.is_beside and self._coming is None and not self.is_loaded:
            self.lane.copies_wait(self.lane.work_mark())  # the memory that it gets may still be read
            self._coming = self.lane.begin(self._bring)

    def rest(self) -> None:
        """Free the device of this module, as ``between`` says, unless it is held; what is on its way comes first."""
        self._settle()
        if self._module is None or self._is_away or self._users or self.between is Between.KEEP:
            return
        changed = self._changes()
        self.lane.copies_wait(self.lane.work_mark())  # its memory may be that of the lane, and will be used again
        has_more_layers = set(self._read) != set(_named(self._module))  # which no load would bring back
        if self._host is not None and (self.between is Between.HOST or has_more_layers):
            self._host.leave(changed.values())
            self._is_away = True
        elif has_more_layers:
            self._module.to("cpu")
            self._is_away = True
        else:
            self._changed.update({name: tensor.detach().to("cpu", copy=True) for name, tensor in changed.items()})
            if self._host is not None:
                self._host.leave(changed.values())
            self._module = self._host = None
            changed.clear()
            gc.collect()
        release_cached_memory(self.device)

    def _settle(self) -> None:
        """Wait for what is on its way; where the device had no room for it beside its work, it is brought later."""
        coming, self._coming = self._coming, None
        if coming is None:
            return
        with suppress(torch.OutOfMemoryError):
            self.lane.work_waits(coming.result())

    def _bring(self) -> None:
        """Load the module, or copy it to the device again."""
        if self._module is None:
            self._module = self._fresh()
        elif self._host is not None:
            self._host.enter()
        else:
            self._module.to(self.device)
        self._is_away = False
        self._note_weights()

    def trainable(self, dtype: torch.dtype, division: Division | None = None) -> ModuleT:
        """Another module of the same weights on the device, in ``dtype``, which belongs to the caller.

        Under a ``division`` it has this process's part of them. Raises TypeError where the module can only be used.
        """
        if self._load_trainable is None:
            raise TypeError("this part of the model cannot be trained")
        return self._load_trainable(dtype, division)

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

    def _fresh(self) -> ModuleT:
        """The module as its files have it, with what was changed in it later."""
        self.loads += 1
        if self._load_through is not None and (self.in_blocks or self.between is Between.HOST):
            self._host = HostCopy(self.device, in_blocks=self.in_blocks)
            module = self._load_through(self._host)
        else:
            self._host = None
            module = self._load(self.device)
        tensors = _named(module)
        with torch.no_grad():
            for name, tensor in self._changed.items():
                tensors[name].copy_(tensor)
        return module

    def _note_weights(self) -> None:
        self._read = {} if self._module is None else {name: _state(each) for name, each in _named(self._module).items()}

    def _changes(self) -> dict[str, Tensor]:
        """Weights that are not as they came: written to, or others in their place."""
        named = {} if self._module is None else _named(self._module)
        return {name: tensor for name, tensor in named.items() if self._read.get(name) != _state(tensor)}


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _state(tensor: Tensor) -> tuple[int, int]:
    """What tells that a tensor is the same and was not written to; tensors of inference mode do not count writes."""
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def release_cached_memory(device: torch.device) -> None:
    """Give freed blocks of the device's caching allocator back, so that the next component finds room."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
