"""A judge of videos of the speaker world, by image analysis alone: how far the mouth is open, which colours are shown.

It knows the palette and where a face is, nothing of the sound that was asked for. A pixel of the mouth counts by where
its colour lies between that of the face around it and the dark of a mouth, so that soft edges count in part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tools.tiny.detect import border_color, nearest_name
from tools.tiny.drawing import Floats
from tools.tiny.speakers import DARK, FACES, GROUNDS, MOUTH, MOUTH_CLOSED, MOUTH_HALF_WIDTH, MOUTH_RANGE, Face
from tools.tiny.world import BACKGROUNDS, COLORS, Video

BARS = {"correlation": 0.7, "colours": 95.0}
"""What the model is to reach: mean correlation of opening and loudness, percentage of videos with the right colours."""

_AREA = np.pi * MOUTH_HALF_WIDTH  # of a mouth, by its half height
_LEFT, _RIGHT = int(MOUTH[0] - MOUTH_HALF_WIDTH) - 1, int(MOUTH[0] + MOUTH_HALF_WIDTH) + 2
_TOP, _BOTTOM = int(MOUTH[1] - MOUTH_CLOSED - MOUTH_RANGE), int(MOUTH[1] + MOUTH_CLOSED + MOUTH_RANGE) + 1
_SKIN = (slice(12, 20), slice(26, 39))  # the forehead
_FARTHEST = 70.0  # RGB distance at which a colour is no longer the one that it is nearest to


@dataclass(frozen=True)
class Verdict:
    """What a video shows: ``openings`` [F] of the mouth, 0 to 1, and its face; a colour that is none has no name."""

    openings: Floats
    color: str | None
    background: str | None

    def shows(self, face: Face) -> bool:
        """Whether both colours are those of ``face`` in every frame."""
        return (self.color, self.background) == (face.color, face.background)


def judge(video: Video) -> Verdict:
    """Look at a clip [F, 64, 64, 3] of a face. A colour has a name if every frame has the same."""
    pixels = video.astype(np.float32)
    skin = np.median(pixels[:, *_SKIN].reshape(len(pixels), -1, 3), axis=1)
    region = pixels[:, _TOP:_BOTTOM, _LEFT:_RIGHT]
    towards = np.float32(DARK) - skin
    dark = ((region - skin[:, None, None]) * towards[:, None, None]).sum(-1) / (towards**2).sum(-1)[:, None, None]
    half = dark.clip(0, 1).sum((1, 2)) / _AREA
    grounds = [border_color(frame[None]) for frame in pixels]
    return Verdict(
        openings=((half - MOUTH_CLOSED) / MOUTH_RANGE).astype(np.float32),
        color=_one_name(list(skin), {name: COLORS[name] for name in FACES}),
        background=_one_name(grounds, {name: BACKGROUNDS[name] for name in GROUNDS}),
    )


def _one_name(colors: Sequence[Floats], palette: dict[str, tuple[int, int, int]]) -> str | None:
    """The name that all colours have; None where they differ, or one is far from all of the palette."""
    names = {nearest_name(color, palette) for color in colors}
    name = names.pop()
    if names or name is None:
        return None
    far = max(float(np.linalg.norm(np.asarray(color) - palette[name])) for color in colors)
    return None if far > _FARTHEST else name


def correlation(opening: Floats, loud: Floats) -> float:
    """Pearson's correlation of the openings and the loudness of the same frames; 0 where either never changes."""
    if min(float(np.std(opening)), float(np.std(loud))) < 1e-6:
        return 0.0
    return float(np.corrcoef(opening, loud)[0, 1])
