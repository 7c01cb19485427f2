"""The order in which the parts of a model are needed: while one computes, the next may already come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wan_core.runtime.placement import Placed


@dataclass(frozen=True)
class Stop:
    """A time of a run: the parts that are used together, and those for which there is room while they compute."""

    parts: tuple[Placed[Any], ...]
    early: tuple[Placed[Any], ...] = ()


@dataclass
class Route:
    """The stops of a video, which may be gone through again; a part that came early and is passed by leaves."""

    stops: Sequence[Stop] = ()
    _at: int = 0
    _sent: list[Placed[Any]] = field(default_factory=list)

    def used(self, part: Placed[Any]) -> None:
        """``part`` is on its device and is about to be used."""
        ahead = [(self._at + step) % len(self.stops) for step in range(len(self.stops))]
        found = next((index for index in ahead if any(part is each for each in self.stops[index].parts)), None)
        if found is None:
            return
        self._at = found
        stop = self.stops[found]
        self._leave(lambda each: not any(each is other for other in (*stop.parts, *stop.early)))
        self._sent = [each for each in self._sent if each is not part]
        for each in stop.early:
            if not each.is_loaded and not any(each is other for other in self._sent):
                each.prefetch()
                self._sent.append(each)

    def end(self) -> None:
        """What came early and was not used leaves; the next video begins in front."""
        self._leave(lambda each: True)
        self._at = 0

    def _leave(self, leaves: Callable[[Placed[Any]], bool]) -> None:
        for each in [each for each in self._sent if leaves(each)]:
            self._sent = [other for other in self._sent if other is not each]
            each.rest()
