"""Where each component lives, and when: loaded at first use, on the device while used, elsewhere between uses."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from wan_core.checkpoints import Division
from wan_core.runtime.host_copy import HostCopy

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
    ``load_through`` HOST is as DROP. Not thread safe.
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
        self.device = device
        self.between = between
        self.adjust: Callable[[ModuleT], None] | None = None
        self.loads = 0

    @property
    def is_loaded(self) -> bool:
        """Whether the module is on its device."""
        return self._module is not None and not self._is_away

    def module(self) -> ModuleT:
        """The module on its device; it stays there until :meth:`rest` is called, or while it is held."""
        if self._module is None:
            self._module = self._fresh()
            self._note_weights()
        elif self._is_away:
            if self._host is not None:
                self._host.enter()
            else:
                self._module.to(self.device)
            self._is_away = False
            self._note_weights()
        if self.adjust is not None:
            self.adjust(self._module)
        return self._module

    def rest(self) -> None:
        """Free the device of this module, as ``between`` says, unless it is held."""
        if self._module is None or self._is_away or self._users or self.between is Between.KEEP:
            return
        changed = self._changes()
        if self._host is not None:
            self._host.leave(changed.values())
            self._is_away = True
        elif set(self._read) != set(_named(self._module)):  # layers were added, which no load would bring back
            self._module.to("cpu")
            self._is_away = True
        else:
            self._changed.update({name: tensor.detach().to("cpu", copy=True) for name, tensor in changed.items()})
            self._module = None
            changed.clear()
            gc.collect()
        release_cached_memory(self.device)

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
        if self.between is Between.HOST and self._load_through is not None:
            self._host = HostCopy(self.device)
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
