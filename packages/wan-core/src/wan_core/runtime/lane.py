"""Copies to a device beside its work: on a stream of their own, with marks by which either side waits for the other.

The host never waits here. Memory that one side frees may be handed to it again while the other still uses it, so who
frees what both have used first lets the freeing side wait for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from wan_core.runtime.devices import has_streams

Pairs = Iterable[tuple[Tensor, Tensor]]
"""Tensors on the device, and those in host memory whose values they get."""


class Lane:
    """The copies of a device that makes them in the order of its work: marks mean nothing, and nothing runs beside."""

    is_beside = False

    def copying(self) -> AbstractContextManager[Any]:
        """What is copied to the device within, and allocated there, belongs to the lane."""
        return nullcontext()

    def copy(self, pairs: Pairs) -> None:
        """Copy on the lane."""
        with self.copying(), torch.no_grad():
            for target, source in pairs:
                target.copy_(source, non_blocking=True)

    def work_mark(self) -> Any:
        """A mark behind all work that the device was given so far."""

    def copy_mark(self) -> Any:
        """A mark behind all copies that it was given so far."""

    def work_waits(self, mark: Any) -> None:
        """What the device is given next waits for a mark of the copies."""

    def copies_wait(self, mark: Any) -> None:
        """What is copied next waits for a mark of the work."""

    def begin(self, make: Callable[[], None]) -> Future[Any]:
        """Run ``make``, which reads and copies, beside this thread; gives the mark behind its copies."""
        done: Future[Any] = Future()
        done.set_result(self._made(make))
        return done

    def _made(self, make: Callable[[], None]) -> Any:
        with self.copying(), torch.no_grad():
            make()
        return self.copy_mark()


class StreamLane(Lane):
    """Copies of a CUDA device, on a stream and, where files are read, on a thread of their own."""

    is_beside = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="copies")

    def copying(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream)

    def work_mark(self) -> Any:
        return torch.cuda.current_stream(self._device).record_event()

    def copy_mark(self) -> Any:
        return self._stream.record_event()

    def work_waits(self, mark: Any) -> None:
        torch.cuda.current_stream(self._device).wait_event(mark)

    def copies_wait(self, mark: Any) -> None:
        self._stream.wait_event(mark)

    def begin(self, make: Callable[[], None]) -> Future[Any]:
        return self._thread.submit(self._made, make)


@cache
def lane_of(device: torch.device) -> Lane:
    """The one lane of a device."""
    return StreamLane(device) if has_streams(device) else Lane()
