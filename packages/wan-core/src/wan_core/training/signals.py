"""SIGTERM and Ctrl-C in a training run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from wan_core.errors import Terminated


class AbandonedError(Exception):
    """A signal came during work that changes nothing."""


class Signals:
    """SIGTERM and SIGINT, noted instead of dying, so that the loop can save and leave.

    Alone, work that changes nothing is abandoned at once, and a second signal ends the process; one of several ranks
    only notes them, for the others may wait for it.
    """

    def __init__(self, is_alone: bool) -> None:
        self.noted: list[int] = []
        self._is_alone = is_alone
        self._may_abandon = False

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted.append(number)
        if self._is_alone and len(self.noted) > 1:
            raise Terminated if self.first() == signal.SIGTERM else KeyboardInterrupt
        self._check()

    def _check(self) -> None:
        if self._may_abandon and self._is_alone and self.noted:
            raise AbandonedError

    def first(self) -> int:
        """The signal that came first, here or, where none did, in another rank."""
        return self.noted[0] if self.noted else signal.SIGTERM

    @contextmanager
    def abandoning(self) -> Iterator[None]:
        """Work that may end anywhere: :class:`AbandonedError` is raised where a signal comes, or came before."""
        self._may_abandon = True
        try:
            self._check()
            yield
        finally:
            self._may_abandon = False
