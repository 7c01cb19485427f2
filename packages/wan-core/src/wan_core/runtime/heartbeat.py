"""Signs of life of the processes of a run: a collective waits for one that hangs as long as for one that is slow."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any

_BEAT = 5.0
"""Seconds between two signs of a process."""

_SILENT = 6
"""So many of its own beats a process waits for a sign of another: a run that is stopped and goes on has lost nobody."""

_HAS_LEFT = 2**32


@contextmanager
def watched(store: Any, rank: int, world: int, lost: Callable[[Sequence[int]], None]) -> Iterator[None]:
    """Give signs of life of process ``rank`` in ``store``, and watch for those of the others, in threads.

    ``lost`` gets the numbers of those that have given no sign for half a minute, though they have not left this
    context. Where the store itself does not answer, that is process 0: it, or its torchrun, holds the store. Nobody's
    number is given where the launcher that started this process has ended. ``store`` is that of `torch.distributed`, a
    connection that nobody else uses.
    """
    stop, counts = Event(), [0] * world
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    threads = [
        Thread(target=_beat, args=(store, rank, counts, stop), daemon=True),
        Thread(target=_watch, args=(rank, counts, stop, lost, launcher), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        with suppress(RuntimeError):
            store.add(_key(rank), _HAS_LEFT)
        stop.set()
        for thread in threads:
            thread.join(_BEAT)


def has_left(store: Any, rank: int) -> bool:
    """Whether a process has left `watched`, by its own way or by an error of its own; also where nobody can say."""
    try:
        return bool(store.add(_key(rank), 0) >= _HAS_LEFT)
    except RuntimeError:
        return True


def _key(rank: int) -> str:
    return f"wan-alive-{rank}"


def _beat(store: Any, rank: int, counts: list[int], stop: Event) -> None:
    """One sign after the other, and how many each process has given; until the store is gone with who held it."""
    with suppress(RuntimeError):
        while not stop.is_set():
            for each in range(len(counts)):
                counts[each] = store.add(_key(each), int(each == rank))
            stop.wait(_BEAT)
    counts[:] = [_HAS_LEFT] * len(counts)


def _watch(
    rank: int, counts: list[int], stop: Event, lost: Callable[[Sequence[int]], None], launcher: int | None
) -> None:
    seen, beats = list(counts), [0] * len(counts)
    while not stop.wait(_BEAT):
        if launcher is not None and os.getppid() != launcher:
            lost([])
            return
        for each, count in enumerate(counts):
            beats[each] = beats[each] + 1 if count == seen[each] and count < _HAS_LEFT else 0
            seen[each] = count
        silent = [each for each, number in enumerate(beats) if number >= _SILENT]
        if silent:
            lost([0] if rank in silent else silent)
            return
