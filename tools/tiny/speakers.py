"""The speaker world: a face on a plain background whose mouth opens with the loudness of a sound.

Everything follows from integers: ``training_speech(seed)`` always draws the same sound and look. One look in five is
held back, and the 50 held-back sounds of `evaluation_speeches` come from seeds of their own. The mouth follows the
sound itself, not what it was made of: its opening at a video frame is the loudness there, by that of the whole sound.
``python -m tools.tiny.speakers FOLDER`` writes ``face.png`` and ``syllables.ogg``, those of tests/data.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from tools.tiny.drawing import Floats, coverage, paint, pixel_grid
from tools.tiny.world import BACKGROUNDS, COLORS, Video

SPEAKERS_VERSION = "1"
SIZE = 64
FPS = 16
RATE = 16_000
FACES = ("red", "green", "yellow", "orange", "purple", "cyan")
GROUNDS = ("black", "white", "gray", "blue", "pink")
DARK = (20, 20, 25)
"""The colour of eyes and mouth."""

MOUTH = (32.0, 44.0)
MOUTH_HALF_WIDTH, MOUTH_CLOSED, MOUTH_RANGE = 10.0, 1.0, 7.0
"""In pixels; half heights of a closed mouth, and what is added to it when it is open."""
_HEAD = (32.0, 32.0, 25.0)
_EYES = ((23.0, 24.0), (41.0, 24.0))
_EYE_RADIUS = 3.5
_LEAST_CONTRAST = 125.0
_FULL = 2.0  # loudness, by that of the whole sound, at which a mouth is open
_WINDOW = RATE // FPS  # samples whose loudness a frame shows


@dataclass(frozen=True, order=True)
class Face:
    """Who speaks: the colours of face and background by name."""

    color: str
    background: str


@dataclass(frozen=True)
class Speech:
    """A sound: ``waveform`` [N] float32 at 16 kHz, and the look of who says it."""

    waveform: Floats
    face: Face


@cache
def faces(*, held_back: bool) -> tuple[Face, ...]:
    """The looks of one side of the split, in a fixed order; face and background differ clearly."""
    every = [
        Face(color, ground)
        for color in FACES
        for ground in GROUNDS
        if np.linalg.norm(np.subtract(COLORS[color], BACKGROUNDS[ground])) >= _LEAST_CONTRAST
    ]
    return tuple(face for number, face in enumerate(every) if (number % 5 == 2) == held_back)


def draw_voice(rng: np.random.Generator, seconds: float) -> Floats:
    """A sound of syllables [N]: a hum of random pitch and colour, and some noise, that swells, fades and pauses."""
    count = round(seconds * RATE)
    time = np.arange(count) / RATE
    knots = np.cumsum(rng.uniform(0.22, 0.45, int(seconds / 0.22) + 4)) - rng.uniform(0, 0.4)
    heights = np.where(rng.random(len(knots)) < 0.25, 0.0, rng.uniform(0.15, 1.0, len(knots)))
    place = np.clip(np.searchsorted(knots, time) - 1, 0, len(knots) - 2)
    share = np.clip((time - knots[place]) / (knots[place + 1] - knots[place]), 0, 1)
    blend = (1 - np.cos(np.pi * share)) / 2
    swell = heights[place] * (1 - blend) + heights[place + 1] * blend
    pitch = rng.uniform(90, 280) * (1 + 0.03 * np.sin(2 * np.pi * rng.uniform(2, 5) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    hum = sum(
        rng.uniform(0.2, 1) / harmonic * np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi))
        for harmonic in range(1, 7)
    )
    noise = np.convolve(rng.standard_normal(count), np.ones(3) / 3, mode="same")
    mixture = hum / np.std(hum) + rng.uniform(0.05, 0.5) * noise / np.std(noise)
    loud = rng.uniform(0.05, 0.2)
    return (loud * swell * mixture + 1e-4 * rng.standard_normal(count)).clip(-1, 1).astype(np.float32)


def loudness(waveform: Floats, frames: int) -> Floats:
    """Root mean square [frames] of the samples within 1/32 s of each video frame, by that of the whole sound."""
    squares = np.concatenate([[0.0], np.cumsum(waveform.astype(np.float64) ** 2)])
    middles = np.arange(frames) * _WINDOW
    first, last = (np.clip(middles + shift, 0, len(waveform)) for shift in (-_WINDOW // 2, _WINDOW // 2))
    means = (squares[last] - squares[first]) / np.maximum(last - first, 1)
    whole = max(float(np.sqrt(squares[-1] / max(len(waveform), 1))), 1e-6)
    return np.sqrt(means).astype(np.float32) / whole


def openings(waveform: Floats, frames: int) -> Floats:
    """How far the mouth is open at each of the first video frames [frames], 0 to 1."""
    return np.clip(loudness(waveform, frames) / _FULL, 0, 1)


def render(face: Face, opening: Floats) -> Video:
    """Draw the face with a mouth open by ``opening`` [F], 0 to 1: uint8 [F, 64, 64, 3]."""
    x, y = pixel_grid(SIZE, SIZE)
    canvas = np.broadcast_to(np.float32(BACKGROUNDS[face.background]), (len(opening), SIZE, SIZE, 3))
    center_x, center_y, radius = _HEAD
    canvas = paint(canvas, coverage((np.hypot(x - center_x, y - center_y) - radius)[None]), COLORS[face.color])
    for eye_x, eye_y in _EYES:
        canvas = paint(canvas, coverage((np.hypot(x - eye_x, y - eye_y) - _EYE_RADIUS)[None]), DARK)
    half = (MOUTH_CLOSED + MOUTH_RANGE * np.asarray(opening, np.float32))[:, None, None]
    along, across = (x - MOUTH[0]) / MOUTH_HALF_WIDTH, (y - MOUTH[1]) / half
    distance = (np.hypot(along, across) - 1) * np.minimum(half, MOUTH_HALF_WIDTH)
    return paint(canvas, coverage(distance), DARK).round().astype(np.uint8)


def picture_of(face: Face, opening: float = 0.0) -> NDArray[np.uint8]:
    """The picture [64, 64, 3] of a face, whose mouth is shut unless said otherwise."""
    return render(face, np.float32([opening]))[0]


def training_speech(seed: int) -> Speech:
    """Draw training sound number ``seed``, 2 to 5 s long; its look is never a held-back one."""
    rng = np.random.default_rng([41, seed])
    known = faces(held_back=False)
    return Speech(draw_voice(rng, float(rng.uniform(2, 5))), known[rng.integers(len(known))])


EVALUATION_SEEDS = range(50)
EVALUATION_SECONDS = 2.5


def evaluation_speeches() -> Iterator[Speech]:
    """Draw the 50 held-back sounds of 2.5 s; no training clip has such a look."""
    held = faces(held_back=True)
    for seed in EVALUATION_SEEDS:
        yield Speech(draw_voice(np.random.default_rng([42, seed]), EVALUATION_SECONDS), held[seed % len(held)])


def write_sample(folder: Path) -> None:
    """Write a picture and a sound of 2.5 s that no training saw, for examples and tests."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture_of(faces(held_back=True)[2])).save(folder / "face.png")
    soundfile.write(folder / "syllables.ogg", draw_voice(np.random.default_rng([46, 0]), EVALUATION_SECONDS), RATE)


def main() -> None:
    """Write the sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_sample(parser.parse_args().folder)


if __name__ == "__main__":
    main()
