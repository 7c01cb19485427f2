"""The procedural world of the bundled tiny models: one plain figure that moves on a plain background.

Everything follows from integers: ``training_clip(seed)`` always draws the same clip and caption. One combination in ten
of colour, shape, motion and background is held back from training (`is_held_back`); evaluation uses only those.
The world is kept easy on purpose: large figures, at most about 2.5 pixels of motion per frame at 64x64, no similar
figure and background colours, no spin of round figures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tools.tiny.drawing import EXTENT, SHAPES, Floats, coverage, figure_distance, paint, pixel_grid

WORLD_VERSION = "1"

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 40),
    "green": (35, 165, 65),
    "blue": (40, 75, 215),
    "yellow": (245, 220, 45),
    "orange": (245, 135, 20),
    "purple": (140, 45, 175),
    "cyan": (50, 210, 220),
    "white": (245, 245, 245),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (15, 15, 20),
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "blue": (40, 75, 215),
    "green": (35, 165, 65),
    "pink": (250, 165, 190),
}
_LEAST_CONTRAST = 125.0  # RGB distance below which a figure is too close to its background

# The first phrase of each motion is its name; all are used in captions.
MOTIONS: dict[str, tuple[str, ...]] = {
    "right": ("moves to the right", "moves right", "slides to the right", "goes right"),
    "left": ("moves to the left", "moves left", "slides to the left", "goes left"),
    "up": ("moves up", "rises", "goes up", "moves upwards"),
    "down": ("moves down", "falls", "goes down", "moves downwards"),
    "grow": ("grows", "gets bigger", "becomes larger", "grows bigger"),
    "shrink": ("shrinks", "gets smaller", "becomes smaller", "shrinks down"),
    "still": ("stays still", "does not move", "stands still", "rests"),
    "bounce": ("bounces", "bounces once", "falls and bounces up", "bounces on the ground"),
    "spin": ("spins", "rotates", "turns around", "spins clockwise"),
}

TEMPLATES = (
    "a {color} {shape} {motion} on a {background} background",
    "a {color} {shape} {motion} in front of a {background} background",
    "on a {background} background, a {color} {shape} {motion}",
    "there is a {color} {shape} that {motion} on a {background} background",
    "a video of a {color} {shape} that {motion} on a {background} background",
    "{color} {shape} {motion}, {background} background",
    "the {color} {shape} {motion} and the background is {background}",
)


Video = NDArray[np.uint8]
"""A clip as bytes [F, H, W, 3]."""


@dataclass(frozen=True, order=True)
class Combination:
    """What a clip shows: names out of COLORS, SHAPES, MOTIONS and BACKGROUNDS."""

    color: str
    shape: str
    motion: str
    background: str

    @property
    def key(self) -> str:
        """The four names joined by slashes."""
        return f"{self.color}/{self.shape}/{self.motion}/{self.background}"


@dataclass(frozen=True)
class Clip:
    """One rendered clip: ``video`` ``[F, H, W, 3]`` uint8, its caption and what is in it."""

    video: Video
    caption: str
    combination: Combination


def is_held_back(combination: Combination) -> bool:
    """Tell whether a combination is kept for evaluation: one in ten, by the hash of its names."""
    return hashlib.sha256(f"tiny-world/{combination.key}".encode()).digest()[0] % 10 == 0


def is_legible(combination: Combination) -> bool:
    """Tell whether figure and background differ enough, and the motion can be seen on the shape."""
    contrast = np.subtract(COLORS[combination.color], BACKGROUNDS[combination.background])
    visible = combination.motion != "spin" or combination.shape not in ("circle", "ring")
    return visible and float(np.linalg.norm(contrast)) >= _LEAST_CONTRAST


@cache
def combinations(*, held_back: bool) -> tuple[Combination, ...]:
    """List the legible combinations of one side of the split, in a fixed order."""
    every = (Combination(c, s, m, b) for c in COLORS for s in SHAPES for m in MOTIONS for b in BACKGROUNDS)
    return tuple(c for c in every if is_legible(c) and is_held_back(c) == held_back)


def write_caption(combination: Combination, *, template: int = 0, phrase: int = 0) -> str:
    """Describe a combination; ``template`` and ``phrase`` choose the wording, (0, 0) is the plainest."""
    text = TEMPLATES[template].format(
        color=combination.color,
        shape=combination.shape,
        motion=MOTIONS[combination.motion][phrase],
        background=combination.background,
    )
    return text.replace("a orange", "an orange")


@cache
def vocabulary() -> tuple[str, ...]:
    """List every word and mark that captions use, sorted."""
    words: set[str] = set()
    for template in TEMPLATES:
        words.update(template.replace(",", " , ").replace("{", " {").split())
    words = {word for word in words if not word.startswith("{")} | {"an"}
    for phrases in MOTIONS.values():
        words.update(" ".join(phrases).split())
    return tuple(sorted(words | set(COLORS) | set(SHAPES) | set(BACKGROUNDS)))


@dataclass(frozen=True)
class Path:
    """Where a figure is: centre ``[F, 2]`` (x, y), ``radius`` ``[F]`` and ``angle`` ``[F]``, in pixels and radians."""

    center: Floats
    radius: Floats
    angle: Floats


def choose_path(combination: Combination, frames: int, height: int, width: int, rng: np.random.Generator) -> Path:
    """Draw a path for a combination; the whole figure stays inside the image. Speeds are per clip of 17 frames."""
    unit = min(height, width) / 64
    motion = combination.motion
    t = np.arange(frames, dtype=np.float32) / 16  # 1 at the last frame of a 17-frame clip
    t = t / max(1.0, float(t[-1]))  # longer clips move more slowly instead of leaving the image
    if motion in ("grow", "shrink"):
        small, large = rng.uniform(8.5, 9.5), rng.uniform(14.5, 16)
        start, end = (small, large) if motion == "grow" else (large, small)
    else:
        start = end = (
            rng.uniform(11, 14) if motion in ("right", "left", "up", "down", "bounce") else rng.uniform(12, 15)
        )
    radius = (start + (end - start) * t) * unit
    angle = t * rng.uniform(1.5, 1.9) if motion == "spin" else np.zeros_like(t)
    travel = np.zeros((frames, 2), np.float32)
    margin = max(start, end) * EXTENT[combination.shape] + 1.5
    if motion in ("right", "left", "up", "down"):
        distance = min(rng.uniform(24, 36), 63 - 2 * margin)
        axis, sign = (0 if motion in ("right", "left") else 1), (1 if motion in ("right", "down") else -1)
        travel[:, axis] = sign * distance * t
    elif motion == "bounce":
        distance = min(rng.uniform(16, 20), 63 - 2 * margin)
        travel[:, 1] = distance * (1 - np.abs(1 - 2 * t))
    low = margin - travel.min(0)
    high = np.array([width, height]) / unit - 1 - margin - travel.max(0)
    origin = rng.uniform(low, np.maximum(low, high))
    return Path(((origin + travel) * unit).astype(np.float32), radius.astype(np.float32), angle.astype(np.float32))


def render(combination: Combination, path: Path, height: int, width: int) -> Video:
    """Draw a figure along its path: uint8 ``[F, H, W, 3]``."""
    x, y = pixel_grid(height, width)
    dx, dy = x - path.center[:, 0, None, None], y - path.center[:, 1, None, None]
    distance = figure_distance(combination.shape, dx, dy, path.radius[:, None, None], path.angle[:, None, None])
    canvas = np.broadcast_to(np.float32(BACKGROUNDS[combination.background]), (*distance.shape, 3))
    return paint(canvas, coverage(distance), COLORS[combination.color]).round().astype(np.uint8)


def draw_clip(
    combination: Combination, rng: np.random.Generator, *, frames: int = 17, height: int = 64, width: int = 64
) -> Clip:
    """Draw one clip of a combination with a random path and wording."""
    path = choose_path(combination, frames, height, width, rng)
    caption = write_caption(
        combination,
        template=int(rng.integers(len(TEMPLATES))),
        phrase=int(rng.integers(len(MOTIONS[combination.motion]))),
    )
    return Clip(render(combination, path, height, width), caption, combination)


def _choose(rng: np.random.Generator, *, held_back: bool) -> Combination:
    """Pick a combination so that every motion and every shape is equally frequent."""
    shape, motion = SHAPES[rng.integers(len(SHAPES))], tuple(MOTIONS)[rng.integers(len(MOTIONS))]
    fitting = [c for c in combinations(held_back=held_back) if c.shape == shape and c.motion == motion]
    return fitting[rng.integers(len(fitting))] if fitting else _choose(rng, held_back=held_back)


def training_clip(seed: int, *, frames: int = 17, height: int = 64, width: int = 64) -> Clip:
    """Draw training clip number ``seed``; never a held-back combination."""
    rng = np.random.default_rng([1, seed])
    return draw_clip(_choose(rng, held_back=False), rng, frames=frames, height=height, width=width)


def evaluation_clips(count: int, *, frames: int = 17, height: int = 64, width: int = 64) -> Iterator[Clip]:
    """Draw ``count`` clips of held-back combinations, each once before any repeats; always the same ones."""
    held = combinations(held_back=True)
    order = np.random.default_rng(2026).permutation(len(held))
    for index in range(count):
        rng = np.random.default_rng([2, index])
        yield draw_clip(held[order[index % len(held)]], rng, frames=frames, height=height, width=width)
