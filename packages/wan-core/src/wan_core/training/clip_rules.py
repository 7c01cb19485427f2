"""Which clips are cut from a video, by the names that musubi-tuner gives to the ways."""

from __future__ import annotations

import random
from dataclasses import dataclass

from wan_core.errors import RequestError

_PLAIN, _NUMBERED = ("head", "chunk", "full"), ("slide", "uniform", "random")
CLIP_WAYS = (*_PLAIN, *(f"{way}:N" for way in _NUMBERED))


@dataclass(frozen=True)
class ClipRule:
    """``head``: one clip, from the start. ``chunk``: one after the other. ``slide``: one every ``number`` frames.
    ``uniform``: ``number`` clips spread evenly. ``random``: ``number`` clips drawn by a seed. ``full``: one clip of all
    frames, at most as many as a clip may have. Frames are those at the rate of the clips."""

    way: str = "head"
    number: int = 1

    def starts(self, count: int, length: int, seed: str) -> list[int]:
        """The first frames of clips of ``length`` frames in a video of ``count``, in order and each once."""
        room = max(0, count - length)
        match self.way:
            case "chunk":
                return list(range(0, room + 1, length))
            case "slide":
                return list(range(0, room + 1, self.number))
            case "uniform":
                return list(dict.fromkeys(room * index // max(1, self.number - 1) for index in range(self.number)))
            case "random":
                return sorted(random.Random(seed).sample(range(room + 1), min(self.number, room + 1)))
            case _:
                return [0]

    def __str__(self) -> str:
        return f"{self.way}:{self.number}" if self.way in _NUMBERED else self.way


def parse_clips(text: str) -> ClipRule:
    """Read ``head``, ``chunk``, ``full``, ``slide:N``, ``uniform:N`` or ``random:N``. Raises RequestError."""
    way, colon, number = text.strip().partition(":")
    if way in _PLAIN and not colon:
        return ClipRule(way)
    if way in _NUMBERED and number.isascii() and number.isdigit() and 1 <= int(number) <= 10_000:
        return ClipRule(way, int(number))
    raise RequestError(f"clips must be one of {', '.join(CLIP_WAYS)} with N from 1 to 10000, got {text!r}")
