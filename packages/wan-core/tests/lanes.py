"""Lanes of copies that keep to the letter: nothing is copied before somebody waits for it."""

from collections.abc import Callable
from typing import Any

from wan_core.runtime.lane import Lane, Pairs


class LateLane(Lane):
    """Copies run when the work waits for a mark behind them, at the latest time that a device may choose.

    ``log`` has what happened, in its order. ``done`` counts the work that was given so far, ``awaited`` how much of it
    the next copy waits for.
    """

    is_beside = True

    def __init__(self) -> None:
        self.log: list[str] = []
        self.done = 0
        self.awaited = -1
        self._queue: list[Callable[[], None]] = []
        self._ran = 0

    def copy(self, pairs: Pairs) -> None:
        listed = list(pairs)
        self._queue.append(lambda: super(LateLane, self).copy(listed))

    def work_mark(self) -> int:
        return self.done

    def copy_mark(self) -> int:
        return len(self._queue)

    def work_waits(self, mark: Any) -> None:
        while self._ran < mark:
            self._queue[self._ran]()
            self._ran += 1

    def copies_wait(self, mark: Any) -> None:
        self.awaited = max(self.awaited, mark)

    def begin(self, make: Callable[[], None]) -> Any:
        self.log.append("begun")
        return Later(self, make)


class Later:
    """What is made when somebody asks for it."""

    def __init__(self, lane: LateLane, make: Callable[[], None]) -> None:
        self._lane, self._make = lane, make

    def result(self) -> Any:
        self._lane.log.append("made")
        self._make()
        return self._lane.copy_mark()
