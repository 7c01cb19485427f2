"""The world of subjects: figures of a shape, two colours and a texture, shown as pictures; prompts say how they move.

Everything follows from integers: ``training_scene(seed)`` always draws the same scene. A prompt names motions and at
most the background, never a look, so what a subject looks like is in its picture alone. One look in ten is held back
from training, and `evaluation_scenes` shows only those, by seeds of their own (`EVALUATION_SEEDS`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tools.tiny.drawing import Floats, coverage, figure_distance, paint, pixel_grid
from tools.tiny.world import BACKGROUNDS, MOTIONS, Path, Video
from tools.tiny.world import COLORS as WORLD_COLORS

SUBJECTS_VERSION = "1"
SIZE = 64
FRAMES = 13
MOST_SUBJECTS = 3
EVALUATION_SEEDS = range(100)
"""Scenes of one subject that are scored: the first seeds of a sequence that training never draws from."""
PAIR_SEEDS = range(100, 150)
"""Scenes of two subjects that are scored, from the same sequence."""

FIGURES: dict[str, tuple[float, float, float]] = {
    "circle": (1.0, 1.0, 1.0),
    "square": (0.86, 0.86, 0.86),
    "triangle": (1.04, 1.2, 0.6),
}
"""How far a figure reaches to both sides, up and down, in radii."""
COLORS = {name: rgb for name, rgb in WORLD_COLORS.items() if name != "orange"}  # too near to yellow in thin parts
TEXTURES = ("plain", "halves", "layers", "dot")
GROUNDS = ("black", "gray", "white")
WAYS = ("right", "left", "up", "down", "grow", "shrink", "still")
"""The motions of `tools.tiny.world` that subjects make."""

_LEAST_CONTRAST, _LEAST_DIFFERENCE = 125.0, 150.0  # RGB distance to the background, and between the two colours
_LEAST_SEAM = 80.0
_SHARES = (0.5, 0.35, 0.15)  # of training scenes with one, two and three subjects
_GAP = 3.0  # pixels between what two subjects sweep over
_RADII = ((12.0, 15.0), (9.0, 10.0), (8.2, 8.8))  # by number of subjects
_SIZES = (((9.0, 10.0), (14.5, 16.0)), ((7.6, 8.2), (11.0, 11.8)), ((7.0, 7.4), (9.8, 10.2)))  # small and large ones
_DISTANCES = ((18.0, 26.0), (14.0, 17.0), (13.5, 15.0))
_ORDINALS = ("first", "second", "third")
_GROUND_PHRASES = ("{} on a {} background", "{} in front of a {} background", "on a {1} background, {0}")


@dataclass(frozen=True, order=True)
class Look:
    """What a subject looks like: names out of FIGURES, TEXTURES and COLORS; plain ones have one colour twice."""

    shape: str
    texture: str
    first: str
    second: str

    @property
    def key(self) -> str:
        """The four names joined by slashes."""
        return f"{self.shape}/{self.texture}/{self.first}/{self.second}"


@dataclass(frozen=True)
class Subject:
    """A look and one of WAYS."""

    look: Look
    motion: str


@dataclass(frozen=True)
class Cast:
    """What a scene is asked to show: subjects, a picture [64, 64, 3] uint8 of each, the background and the prompt.

    ``is_named``: whether the prompt names the background.
    """

    subjects: tuple[Subject, ...]
    background: str
    prompt: str
    pictures: tuple[NDArray[np.uint8], ...]
    is_named: bool


@dataclass(frozen=True)
class Scene(Cast):
    """A cast and the clip of it, ``video`` [F, 64, 64, 3] uint8."""

    video: Video


def _distance(first: ArrayLike, second: ArrayLike) -> float:
    return float(np.linalg.norm(np.subtract(first, second)))


@cache
def grounds_of(look: Look) -> tuple[str, ...]:
    """The backgrounds on which both colours of a look can be seen, and the seam where they blend into one another."""
    first, second = np.float32(COLORS[look.first]), np.float32(COLORS[look.second])
    return tuple(
        name
        for name in GROUNDS
        if min(_distance(color, BACKGROUNDS[name]) for color in (first, second)) >= _LEAST_CONTRAST
        and _distance((first + second) / 2, BACKGROUNDS[name]) >= _LEAST_SEAM
    )


@cache
def looks(texture: str, *, held_back: bool) -> tuple[Look, ...]:
    """The looks of a texture on one side of the split: one in eight of each shape is held back, by hash."""
    pairs = [
        (first, second)
        for first, one in COLORS.items()
        for second, other in COLORS.items()
        if (first == second if texture == "plain" else _distance(one, other) >= _LEAST_DIFFERENCE)
    ]
    found: list[Look] = []
    for shape in FIGURES:
        every = [look for pair in pairs if grounds_of(look := Look(shape, texture, *pair))]
        every.sort(key=lambda look: hashlib.sha256(f"tiny-subjects/{look.key}".encode()).digest())
        held = max(1, len(every) // 8)
        found += every[:held] if held_back else every[held:]
    return tuple(found)


def second_part(texture: str, x: Floats, y: Floats, radius: Floats) -> Floats:
    """Signed distance in pixels to the part of a figure that has the second colour, at offsets from its centre."""
    if texture == "halves":
        return -x + 0 * radius
    if texture == "layers":
        return -y + 0 * radius
    if texture == "dot":
        return np.hypot(x, y) - 0.5 * radius
    return np.full(np.broadcast(x, radius).shape, np.inf, np.float32)


def render(canvas: Floats, look: Look, path: Path) -> Floats:
    """A figure painted along its path over a canvas [F, H, W, 3]."""
    x, y = pixel_grid(*canvas.shape[1:3])
    dx, dy = x - path.center[:, 0, None, None], y - path.center[:, 1, None, None]
    radius = path.radius[:, None, None]
    outline = figure_distance(look.shape, dx, dy, radius, np.zeros_like(radius))
    painted = paint(canvas, coverage(outline), COLORS[look.first])
    if look.texture == "plain":
        return painted
    inner = np.maximum(outline, second_part(look.texture, dx, dy, radius))
    return paint(painted, coverage(inner), COLORS[look.second])


def draw_picture(look: Look, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture of a look: large, near the middle, on one of its backgrounds."""
    grounds = grounds_of(look)
    center = np.float32([[SIZE / 2 - 0.5, SIZE / 2 - 0.5]]) + rng.uniform(-4, 4, (1, 2)).astype(np.float32)
    path = Path(center, np.float32([rng.uniform(15, 22)]), np.zeros(1, np.float32))
    ground = BACKGROUNDS[grounds[rng.integers(len(grounds))]]
    canvas = np.broadcast_to(np.float32(ground), (1, SIZE, SIZE, 3))
    return render(canvas, look, path)[0].round().astype(np.uint8)


def choose_paths(subjects: tuple[Subject, ...], rng: np.random.Generator, frames: int = FRAMES) -> tuple[Path, ...]:
    """Paths on which no two subjects meet and all stay in the picture."""
    while True:
        paths, boxes = [], []
        for subject in subjects:
            path, box = _choose_path(subject, len(subjects) - 1, rng, frames)
            paths.append(path)
            boxes.append(box)
        if all(_are_apart(boxes[i], boxes[j]) for i in range(len(boxes)) for j in range(i)):
            return tuple(paths)


def _choose_path(
    subject: Subject, crowd: int, rng: np.random.Generator, frames: int
) -> tuple[Path, tuple[float, float, float, float]]:
    """A path in the picture, and the box (left, top, right, bottom) that is swept over."""
    t = np.linspace(0, 1, frames, dtype=np.float32)
    start = end = rng.uniform(*_RADII[crowd])
    if subject.motion in ("grow", "shrink"):
        small, large = (rng.uniform(*limits) for limits in _SIZES[crowd])
        start, end = (small, large) if subject.motion == "grow" else (large, small)
    travel = np.zeros((frames, 2), np.float32)
    if subject.motion in ("right", "left", "up", "down"):
        axis, sign = (
            (0 if subject.motion in ("right", "left") else 1),
            (1 if subject.motion in ("right", "down") else -1),
        )
        travel[:, axis] = sign * rng.uniform(*_DISTANCES[crowd]) * t
    side, up, down = (reach * max(start, end) for reach in FIGURES[subject.look.shape])
    low = np.array([side, up]) + 1.5 - travel.min(0)
    high = SIZE - 1 - np.array([side, down]) - 1.5 - travel.max(0)
    origin = rng.uniform(low, np.maximum(low, high))
    (left, top), (right, bottom) = origin + travel.min(0), origin + travel.max(0)
    path = Path((origin + travel).astype(np.float32), (start + (end - start) * t).astype(np.float32), np.zeros_like(t))
    return path, (left - side, top - up, right + side, bottom + down)


def _are_apart(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    across = max(one[0] - other[2], other[0] - one[2])
    along = max(one[1] - other[3], other[1] - one[3])
    return max(across, along) >= _GAP


def write_prompt(motions: tuple[str, ...], background: str | None, rng: np.random.Generator) -> str:
    """Say how each subject moves, by its number where there are several, and where, if that is to be said."""
    said = [MOTIONS[motion][rng.integers(len(MOTIONS[motion]))] for motion in motions]
    if len(said) == 1:
        text = f"it {said[0]}"
    else:
        clauses = [f"the {ordinal} {phrase}" for ordinal, phrase in zip(_ORDINALS, said, strict=False)]
        text = ", ".join(clauses)
    if background is None:
        return text
    return _GROUND_PHRASES[rng.integers(len(_GROUND_PHRASES))].format(text, background)


def draw_cast(rng: np.random.Generator, count: int, *, held_back: bool) -> Cast:
    """``count`` subjects of different looks, and a background that fits all."""
    while True:
        chosen = [looks(TEXTURES[rng.integers(len(TEXTURES))], held_back=held_back) for _ in range(count)]
        found = [each[rng.integers(len(each))] for each in chosen]
        fitting = [name for name in GROUNDS if all(name in grounds_of(look) for look in found)]
        if fitting and len(set(found)) == count:
            break
    subjects = tuple(Subject(look, WAYS[rng.integers(len(WAYS))]) for look in found)
    background = fitting[rng.integers(len(fitting))]
    is_named = bool(rng.random() < 0.8)
    prompt = write_prompt(tuple(each.motion for each in subjects), background if is_named else None, rng)
    return Cast(subjects, background, prompt, tuple(draw_picture(look, rng) for look in found), is_named)


def draw_scene(rng: np.random.Generator, count: int, *, held_back: bool, frames: int = FRAMES) -> Scene:
    """A scene of ``count`` subjects."""
    cast = draw_cast(rng, count, held_back=held_back)
    canvas: Floats = np.broadcast_to(np.float32(BACKGROUNDS[cast.background]), (frames, SIZE, SIZE, 3))
    for subject, path in zip(cast.subjects, choose_paths(cast.subjects, rng, frames), strict=True):
        canvas = render(canvas, subject.look, path)
    return Scene(**vars(cast), video=canvas.round().astype(np.uint8))


def subjects_in(seed: int) -> int:
    """How many subjects training scene ``seed`` has."""
    return 1 + int(np.random.default_rng([50, seed]).choice(MOST_SUBJECTS, p=_SHARES))


def training_scene(seed: int) -> Scene:
    """Draw training scene number ``seed``; never a held-back look."""
    return draw_scene(np.random.default_rng([51, seed]), subjects_in(seed), held_back=False)


def training_cast(seed: int) -> Cast:
    """What training scene number ``seed`` is asked to show."""
    return draw_cast(np.random.default_rng([51, seed]), subjects_in(seed), held_back=False)


def evaluation_scenes(seeds: range, count: int = 1) -> list[Scene]:
    """Scenes of held-back looks, ``count`` subjects each; always the same ones."""
    return [draw_scene(np.random.default_rng([52, seed]), count, held_back=True) for seed in seeds]


def reworded(cast: Cast, rng: np.random.Generator) -> str:
    """Another wording of a prompt."""
    return write_prompt(tuple(each.motion for each in cast.subjects), cast.background if cast.is_named else None, rng)
