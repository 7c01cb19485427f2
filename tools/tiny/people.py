"""The stick-person world: one person of thick limbs who moves in the plane of the picture, on a plain background.

Everything follows from integers: ``training_person(seed)`` always draws the same clip, caption, picture and poses. One
combination in ten of clothing and background is held back, and the held-back clips of `evaluation_people` move by seeds
of their own. Forearms, shins and head have colours of their own that are the same for everybody, so that a detector by
colour (`tools.tiny.person_detect`) finds joints and tells left from right; the body, upper arms and thighs are the
clothing, whose colour the prompt names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from selfforcing_unianimate.keypoints import INVISIBLE, NUM_POINTS, Poses
from tools.tiny.drawing import Floats, coverage, paint, pixel_grid
from tools.tiny.world import BACKGROUNDS, COLORS, TEMPLATES, Video

Color = tuple[int, int, int]

PEOPLE_VERSION = "1"
SIZE = 64
FRAMES = 17

CLOTHES = ("green", "purple", "yellow", "white")
GROUNDS = ("black", "white", "green")
PARTS: dict[str, tuple[int, int, int]] = {
    "head": BACKGROUNDS["pink"],
    "right_arm": COLORS["orange"],
    "left_arm": COLORS["cyan"],
    "right_leg": COLORS["red"],
    "left_leg": COLORS["blue"],
}
"""Colours of what nobody's clothing covers; right and left are the person's own."""
STYLES = ("suit", "dress")
"""The first clothing is what the teacher learns; the second one is for its LoRA."""
MOTIONS = ("wave", "walk", "squat", "jump", "free")

# Lengths and half widths in pixels, for a person of scale 1.
_NECK, _SHOULDER, _TORSO, _HIP = 7.5, 6.0, 14.0, 4.0
_UPPER, _FORE, _THIGH, _SHIN = 8.0, 10.0, 9.0, 11.5
_HEAD_RADIUS, _LIMB, _FOREARM, _BODY = 5.0, 2.8, 3.3, 3.6
_WAIST = 0.4  # how far up from the hips trousers reach, of the torso
_DRESS_LENGTH, _DRESS_HALF = 7.5, 11.5


@dataclass(frozen=True, order=True)
class Look:
    """Who is seen: clothing and background by name, and the style of the clothing."""

    clothing: str
    background: str
    style: str = STYLES[0]


@dataclass(frozen=True)
class Person:
    """A clip: ``video`` [F, 64, 64, 3] uint8, ``body`` [F, 18, 2] joints of OpenPose in pixels, ``picture`` [64, 64, 3]
    of the same person in another pose, a caption and the look."""

    video: Video
    body: Floats
    picture: NDArray[np.uint8]
    caption: str
    look: Look

    @property
    def poses(self) -> Poses:
        """The joints as a pose file holds them; toes, face and hands are not seen."""
        return poses_of_body(self.body)


@cache
def looks(*, held_back: bool, style: str = STYLES[0]) -> tuple[Look, ...]:
    """The looks of one side of the split, in a fixed order; clothing and background differ, and one pair in five is
    held back."""
    every = [Look(clothing, ground, style) for clothing in CLOTHES for ground in GROUNDS if clothing != ground]
    return tuple(look for number, look in enumerate(every) if (number % 5 == 2) == held_back)


def caption_of(look: Look, template: int = 0) -> str:
    """Describe a look in one of the wordings of the tiny world; the plainest is 0."""
    motion = "moves"
    return TEMPLATES[template].format(color=look.clothing, shape="person", motion=motion, background=look.background)


def poses_of_body(body: Floats) -> Poses:
    """Joints [F, 18, 2] in pixels of a 64x64 picture as the poses of a pose file."""
    frames = len(body)
    points = np.full((frames, 20, 2), INVISIBLE)
    points[:, :18] = body / SIZE
    subset = np.full((frames, 20), -1.0)
    subset[:, :18] = np.arange(18)
    return Poses(
        body=points,
        subset=subset,
        faces=np.full((frames, 68, 2), INVISIBLE),
        hands=np.full((frames, 2, 21, 2), INVISIBLE),
        scores=np.concatenate([np.ones((frames, 18)), np.zeros((frames, NUM_POINTS - 18))], axis=1),
    )


@dataclass(frozen=True)
class _Angles:
    """Angles [F] in radians from straight down, outwards positive, of upper arm, elbow, thigh and knee, each for the
    right and the left side [F, 2], and the place of the hips [F, 2]."""

    arm: Floats
    elbow: Floats
    thigh: Floats
    knee: Floats
    root: Floats


def _wave(rng: np.random.Generator, t: Floats, low: float, high: float) -> Floats:
    """A smooth motion between about ``low`` and ``high``: a slow and a faster part of random phase."""
    period = rng.uniform(26, 46)
    phase, other = rng.uniform(0, 2 * np.pi, 2)
    share = rng.uniform(0.75, 1.0)
    swing = share * np.sin(2 * np.pi * t / period + phase) + (1 - share) * np.sin(4 * np.pi * t / period + other)
    return ((low + high) / 2 + (high - low) / 2 * swing).astype(np.float32)


def _angles(motion: str, rng: np.random.Generator, t: Floats) -> _Angles:
    """Draw a motion at the times ``t`` [F], in frames."""

    def both(low: float, high: float) -> Floats:
        return np.stack([_wave(rng, t, low, high), _wave(rng, t, low, high)], axis=1)

    still = np.ones((len(t), 1), np.float32)
    pair = np.ones((1, 2), np.float32)
    arm, elbow = both(0.35, 0.75), both(0.0, 0.5)
    thigh, knee = both(0.12, 0.25), both(-0.1, 0.1)
    center = rng.uniform((28, 31.5), (36, 33.5))
    root = center + np.stack([_wave(rng, t, -1.5, 1.5), _wave(rng, t, -0.5, 0.5)], axis=1)
    if motion == "wave":
        side = int(rng.integers(2))
        arm[:, side], elbow[:, side] = _wave(rng, t, 1.3, 1.9), _wave(rng, t, 0.6, 1.6)
        if rng.random() < 0.4:
            arm[:, 1 - side], elbow[:, 1 - side] = _wave(rng, t, 1.2, 1.8), _wave(rng, t, 0.3, 1.4)
    elif motion == "walk":
        swing = _wave(rng, t, -1, 1)[:, None] * np.float32([[1, -1]])
        thigh, knee = 0.32 + 0.26 * swing, -0.35 - 0.35 * swing
        arm, elbow = 0.75 - 0.35 * swing, 0.5 - 0.4 * swing
        root = root + np.stack([_wave(rng, t, -4, 4), 0.8 * np.abs(swing[:, 0])], axis=1)
    elif motion == "squat":
        down = _wave(rng, t, 0, 1)[:, None]
        thigh, knee = 0.2 + 0.85 * down * pair, -0.25 - 0.95 * down * pair
        arm, elbow = (0.5 + 1.1 * down) * pair, (0.2 + 0.4 * still) * pair
        root = root + np.stack([0 * t, 6.0 * down[:, 0]], axis=1)
    elif motion == "jump":
        up = _wave(rng, t, 0, 1)[:, None]
        arm, elbow = (0.5 + 1.9 * up) * pair, (0.1 + 0.3 * up) * pair
        thigh, knee = (0.12 + 0.5 * up) * pair, 0.05 * still * pair
        root = root + np.stack([0 * t, -1.5 * up[:, 0]], axis=1)
    else:
        arm, elbow = both(0.4, 2.2), both(-0.2, 1.5)
        thigh, knee = both(0.1, 0.8), both(-0.8, 0.1)
        root = root + np.stack([_wave(rng, t, -3, 3), _wave(rng, t, 0, 3)], axis=1)
    return _Angles(*(np.asarray(each, np.float32) for each in (arm, elbow, thigh, knee, root)))


def _direction(angle: Floats, side: int) -> Floats:
    """Unit vectors [F, 2] of angles from straight down, outwards; the person's right is left in the picture."""
    outwards = -1 if side == 0 else 1
    return np.stack([outwards * np.sin(angle), np.cos(angle)], axis=-1)


def body_of(angles: _Angles, scale: float) -> Floats:
    """Joints [F, 18, 2] in pixels, in OpenPose's order."""
    body = np.zeros((len(angles.root), 18, 2), np.float32)
    neck = angles.root - np.float32([0, _TORSO]) * scale
    nose = neck - np.float32([0, _NECK]) * scale
    body[:, 0], body[:, 1] = nose, neck
    for side, (arm, leg, eye, ear) in enumerate(((2, 8, 14, 16), (5, 11, 15, 17))):
        outwards = np.float32([-1 if side == 0 else 1, 0]) * scale
        body[:, arm] = neck + _SHOULDER * outwards
        body[:, arm + 1] = body[:, arm] + _UPPER * scale * _direction(angles.arm[:, side], side)
        fore = angles.arm[:, side] + angles.elbow[:, side]
        body[:, arm + 2] = body[:, arm + 1] + _FORE * scale * _direction(fore, side)
        body[:, leg] = angles.root + _HIP * outwards
        body[:, leg + 1] = body[:, leg] + _THIGH * scale * _direction(angles.thigh[:, side], side)
        shin = angles.thigh[:, side] + angles.knee[:, side]
        body[:, leg + 2] = body[:, leg + 1] + _SHIN * scale * _direction(shin, side)
        body[:, eye] = nose + 1.6 * outwards - np.float32([0, 1.2]) * scale
        body[:, ear] = nose + 3.8 * outwards - np.float32([0, 0.6]) * scale
    return body


def draw_motion(rng: np.random.Generator, frames: int) -> Floats:
    """Joints [frames, 18, 2] of a random motion."""
    motion = MOTIONS[int(rng.integers(len(MOTIONS)))]
    scale = float(rng.uniform(0.92, 1.0))
    return body_of(_angles(motion, rng, np.arange(frames, dtype=np.float32)), scale)


def draw_standing(rng: np.random.Generator) -> Floats:
    """Joints [1, 18, 2] of somebody who stands in the middle with hanging arms, a little different each time."""

    def about(low: float, high: float) -> Floats:
        return rng.uniform(low, high, (1, 2)).astype(np.float32)

    arm, elbow, thigh, knee = about(0.35, 0.6), about(0.0, 0.3), about(0.12, 0.22), about(-0.05, 0.05)
    root = np.float32([[32, 32]]) + about(-1, 1)
    return body_of(_Angles(arm, elbow, thigh, knee, root), float(rng.uniform(0.94, 1.0)))


def render(look: Look, body: Floats) -> Video:
    """Draw the person of joints [F, 18, 2]: uint8 [F, 64, 64, 3]."""
    clothing = COLORS[look.clothing]
    skirt = clothing if look.style == "dress" else None
    return paint_person(body, ground=BACKGROUNDS[look.background], shirt=clothing, trousers=clothing, skirt=skirt)


def paint_person(
    body: Floats,
    *,
    ground: Color,
    shirt: Color,
    trousers: Color,
    skirt: Color | None = None,
    head_radius: float = _HEAD_RADIUS,
) -> Video:
    """Draw who has joints [F, 18, 2] in any colours: uint8 [F, 64, 64, 3]; those of `PARTS` are everybody's."""
    x, y = pixel_grid(SIZE, SIZE)
    canvas = np.broadcast_to(np.float32(ground), (len(body), SIZE, SIZE, 3))

    def piece(start: Floats, end: Floats, radius: float, color: Color) -> None:
        nonlocal canvas
        canvas = paint(canvas, coverage(_capsule(x, y, start, end) - radius), color)

    def limb(first: int, last: int, radius: float, color: Color) -> None:
        piece(body[:, first], body[:, last], radius, color)

    for hip in (8, 11):
        limb(hip, hip + 1, _LIMB + 0.4, trousers)
    if skirt is not None:
        canvas = paint(canvas, coverage(_skirt(x, y, (body[:, 8] + body[:, 11]) / 2)), skirt)
    for hip, part in ((8, "right_leg"), (11, "left_leg")):
        limb(hip + 1, hip + 2, _FOREARM, PARTS[part])
    limb(1, 1, _LIMB, shirt)
    for first, last in ((2, 5), (2, 11), (5, 8), (2, 8), (5, 11), (8, 11)):
        limb(first, last, _BODY, shirt)
    if trousers != shirt:
        hips = body[:, [8, 11]]
        waist = hips + _WAIST * (body[:, [2, 5]] - hips)
        for start, end in ((hips[:, 0], hips[:, 1]), *((waist[:, i], hips[:, j]) for i in (0, 1) for j in (0, 1))):
            piece(start, end, _BODY, trousers)
    canvas = paint(canvas, disc(body[:, 0], head_radius), PARTS["head"])
    for shoulder, part in ((2, "right_arm"), (5, "left_arm")):
        limb(shoulder, shoulder + 1, _LIMB, shirt)
        limb(shoulder + 1, shoulder + 2, _FOREARM, PARTS[part])
    return canvas.round().astype(np.uint8)


def disc(center: Floats, radius: float | Floats) -> Floats:
    """Coverage [F, 64, 64] of discs around points [F, 2] in pixels."""
    return coverage(np.hypot(*_offset(*pixel_grid(SIZE, SIZE), center)) - radius)


def _offset(x: Floats, y: Floats, point: Floats) -> tuple[Floats, Floats]:
    return x - point[:, 0, None, None], y - point[:, 1, None, None]


def _capsule(x: Floats, y: Floats, start: Floats, end: Floats) -> Floats:
    """Distance [F, H, W] to the line from ``start`` to ``end``, each [F, 2]."""
    dx, dy = _offset(x, y, start)
    along = end - start
    length = np.maximum((along**2).sum(axis=1), 1e-6)[:, None, None]
    ax, ay = along[:, 0, None, None], along[:, 1, None, None]
    share = np.clip((dx * ax + dy * ay) / length, 0, 1)
    return np.hypot(dx - share * ax, dy - share * ay)


def _skirt(x: Floats, y: Floats, hips: Floats) -> Floats:
    """Signed distance [F, H, W], about, to a skirt that gets wider below the hips."""
    dx, dy = _offset(x, y, hips)
    half = 6.0 + (_DRESS_HALF - 6.0) * np.clip((dy + 4) / (_DRESS_LENGTH + 4), 0, 1)
    return np.maximum(np.maximum(np.abs(dx) - half, dy - _DRESS_LENGTH), -4 - dy)


def _person(look: Look, rng: np.random.Generator, frames: int, template: int) -> Person:
    body = draw_motion(rng, frames)
    picture = render(look, draw_motion(rng, 1))[0]
    return Person(render(look, body), body, picture, caption_of(look, template), look)


def training_person(seed: int, *, style: str = STYLES[0], frames: int = FRAMES) -> Person:
    """Draw training clip number ``seed``; its look is never a held-back one, its wording is random."""
    rng = np.random.default_rng([31, STYLES.index(style), seed])
    known = looks(held_back=False, style=style)
    return _person(known[rng.integers(len(known))], rng, frames, int(rng.integers(len(TEMPLATES))))


EVALUATION_SEEDS = range(60)
"""Of the held-back clips; their generators are not those of training clips."""


def evaluation_people(*, style: str = STYLES[0], frames: int = FRAMES) -> Iterator[Person]:
    """Draw the 60 held-back clips: motions that no training clip has, in held-back looks and plain words."""
    held = looks(held_back=True, style=style)
    for seed in EVALUATION_SEEDS:
        rng = np.random.default_rng([32, seed])
        yield _person(held[seed % len(held)], rng, frames, 0)
