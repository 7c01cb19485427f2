"""The actors' world: a stick person in a coloured shirt and trousers, who moves as another one does in a driving video.

Everything follows from integers: ``training_scene(seed)`` always draws the same scene. Limbs, motions and the colours
that are everybody's are those of `tools.tiny.people`; new are the trousers and a mouth that opens and shuts. Two pairs
of shirt and trousers in twelve are held back, and the 50 held-back scenes move by seeds of their own. The looks of who
drives and who acts are drawn apart: the driving video does not tell the actor's colours.
``python -m tools.tiny.actors FOLDER`` writes a driving folder as 'wan prepare-animate' does, that of tests/data.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tools.tiny.drawing import Floats, paint
from tools.tiny.people import CLOTHES, Color, disc, draw_motion, draw_standing, paint_person
from tools.tiny.world import BACKGROUNDS, COLORS, Video
from wan_core.animate.draw import draw_pose
from wan_core.animate.face import FaceBox, crop_face
from wan_core.animate.keypoints import NUM_BODY, NUM_HAND, Skeleton
from wan_core.animate.mask import augment_mask, background
from wan_core.media import write_image, write_video

ACTORS_VERSION = "1"
SIZE = 64
FACE_SIZE = 32
"""Pixels of the sides of a face crop."""
FPS = 16
GROUNDS = ("black", "white", "green")
DARK: Color = (20, 20, 25)
"""The colour of an open mouth."""
HEAD_RADIUS, MOUTH_RADIUS = 6.5, 2.5
"""In pixels; that of a mouth that is wide open."""

_FACE_HALF = 8  # pixels around the nose that a face crop shows
_JITTER = 30.0  # RGB steps by which half of the training colours differ from those of the palette
_JITTERED = 0.5


@dataclass(frozen=True, order=True)
class Look:
    """Who is seen, and where: colours of shirt, trousers and background by name."""

    shirt: str
    trousers: str
    ground: str

    @property
    def colors(self) -> dict[str, Color]:
        """What `paint_person` takes."""
        ground = BACKGROUNDS[self.ground]
        return {"shirt": COLORS[self.shirt], "trousers": COLORS[self.trousers], "ground": ground}


@dataclass(frozen=True)
class Drive:
    """How to move: ``body`` [F, 18, 2] joints of OpenPose in pixels, ``mouth`` [F] how far it is open, 0 to 1."""

    body: Floats
    mouth: Floats

    def __getitem__(self, frames: slice) -> Drive:
        return Drive(self.body[frames], self.mouth[frames])


@dataclass(frozen=True)
class Scene:
    """A reference and a driving video: ``look`` is who acts, ``driver`` who is filmed, ``colors`` what the actor really
    wears, ``standing`` [1, 18, 2] how the actor stands in the picture."""

    look: Look
    driver: Look
    colors: dict[str, Color]
    drive: Drive
    standing: Floats

    @property
    def picture(self) -> NDArray[np.uint8]:
        """The reference [64, 64, 3], mouth shut."""
        return render(self.colors, Drive(self.standing, np.zeros(1, np.float32)))[0]

    def target(self, *, replaced: bool = False) -> Video:
        """What is to come out [F, 64, 64, 3]: the actor before its own background, or before the driver's."""
        ground = self.driver.colors["ground"] if replaced else self.colors["ground"]
        return render({**self.colors, "ground": ground}, self.drive)


@cache
def outfits(*, held_back: bool) -> tuple[tuple[str, str], ...]:
    """Pairs of shirt and trousers of one side of the split, in a fixed order: one in six is held back."""
    every = [(shirt, trousers) for shirt in CLOTHES for trousers in CLOTHES if shirt != trousers]
    return tuple(pair for number, pair in enumerate(every) if (number % 6 == 4) == held_back)


@cache
def looks(*, held_back: bool) -> tuple[Look, ...]:
    """The looks of one side of the split; no two of its colours are the same."""
    return tuple(
        Look(*pair, ground) for pair in outfits(held_back=held_back) for ground in GROUNDS if ground not in pair
    )


def render(colors: dict[str, Color], drive: Drive) -> Video:
    """Draw who wears ``colors``: uint8 [F, 64, 64, 3]."""
    canvas = paint_person(drive.body, **colors, head_radius=HEAD_RADIUS).astype(np.float32)
    # A mouth that is all but shut is no pixel at all.
    cover = disc(drive.body[:, 0], (MOUTH_RADIUS * drive.mouth)[:, None, None]) * (drive.mouth > 0.05)[:, None, None]
    return paint(canvas, cover, DARK).round().astype(np.uint8)


def skeletons(body: Floats) -> Video:
    """The pose video [F, 64, 64, 3] of joints [F, 18, 2], as the preprocessing draws it."""
    return np.stack([draw_pose(np.zeros((SIZE, SIZE, 3), np.uint8), _skeleton(joints)) for joints in body])


def _skeleton(joints: Floats) -> Skeleton:
    """Joints [18, 2] as the preprocessing has them; toes and hands are not seen."""
    body = np.full((NUM_BODY, 3), np.nan)
    body[: len(joints)] = np.concatenate([joints, np.ones((len(joints), 1))], axis=1)
    nothing = np.full((NUM_HAND, 3), np.nan)
    return Skeleton(body=body, left_hand=nothing, right_hand=nothing)


def face_crops(video: Video, body: Floats) -> Video:
    """The face video [F, 32, 32, 3]: a square around each head, within the picture."""
    crops = []
    for frame, (x, y) in zip(video, body[:, 0].round().astype(int), strict=True):
        left, top = (int(np.clip(at - _FACE_HALF, 0, SIZE - 2 * _FACE_HALF)) for at in (x, y))
        crops.append(crop_face(frame, FaceBox(left, top, left + 2 * _FACE_HALF, top + 2 * _FACE_HALF), FACE_SIZE))
    return np.stack(crops)


def masks(driver: Look, drive: Drive, parts: int = 1) -> NDArray[np.uint8]:
    """Where somebody is [F, 64, 64], 0 or 1: the box, or those of its ``parts`` x ``parts`` cells that are hit."""
    ground = np.float32(driver.colors["ground"])
    there = np.abs(render(driver.colors, drive) - ground).max(axis=-1) > 8
    return np.stack([augment_mask(mask.astype(np.uint8), 1, 3, parts, parts) for mask in there])


def draw_drive(rng: np.random.Generator, frames: int) -> Drive:
    """A random motion, and a mouth that opens every 12 to 20 frames."""
    body = draw_motion(rng, frames)
    wave = np.sin(2 * np.pi * np.arange(frames) / rng.uniform(12, 20) + rng.uniform(0, 2 * np.pi))
    return Drive(body, np.clip(0.5 + 0.6 * wave, 0, 1).astype(np.float32))


def training_scene(seed: int, frames: int) -> Scene:
    """Draw training scene number ``seed``; nobody in it wears a held-back pair.

    In half of them the actor's colours are not quite those of the palette, so that copying is worth more than naming.
    """
    rng = np.random.default_rng([61, seed])
    look, driver = _pair(looks(held_back=False), rng)
    strength = _JITTER * (rng.random() < _JITTERED)
    colors = {name: _near(color, strength, rng) for name, color in look.colors.items()}
    return Scene(look, driver, colors, draw_drive(rng, frames), draw_standing(rng))


def _pair(actors: tuple[Look, ...], rng: np.random.Generator) -> tuple[Look, Look]:
    """An actor, and who drives; before the driver's background the actor is seen, too."""
    look, known = actors[rng.integers(len(actors))], looks(held_back=False)
    drivers = [each for each in known if each.ground not in (look.shirt, look.trousers)]
    return look, drivers[rng.integers(len(drivers))]


def _near(color: Color, strength: float, rng: np.random.Generator) -> Color:
    red, green, blue = np.clip(np.add(color, strength * rng.uniform(-1, 1, 3)), 0, 255).round().astype(int).tolist()
    return red, green, blue


EVALUATION_SEEDS = range(50)
EVALUATION_FRAMES = 25


def evaluation_scenes(frames: int = EVALUATION_FRAMES) -> Iterator[Scene]:
    """Draw the 50 held-back scenes: motions that no training scene has, actors in held-back pairs."""
    held = looks(held_back=True)
    for seed in EVALUATION_SEEDS:
        rng = np.random.default_rng([62, seed])
        look, driver = _pair(held[seed % len(held) :][:1], rng)
        yield Scene(look, driver, look.colors, draw_drive(rng, frames), draw_standing(rng))


def write_driving(folder: Path, scene: Scene, *, replaced: bool = False, parts: int = 1) -> None:
    """Write a scene as files that 'wan generate' takes; for replacement also background and mask."""
    filmed = render(scene.driver.colors, scene.drive)
    videos = {"src_pose": skeletons(scene.drive.body), "src_face": face_crops(filmed, scene.drive.body)}
    if replaced:
        mask = masks(scene.driver, scene.drive, parts)
        videos["src_bg"] = np.stack([background(*pair) for pair in zip(filmed, mask, strict=True)])
        videos["src_mask"] = np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1)
    folder.mkdir(parents=True, exist_ok=True)
    for name, video in videos.items():
        write_video([_as_tensor(video)], folder / f"{name}.mp4", fps=FPS)
    write_image(torch.from_numpy(scene.picture).permute(2, 0, 1), folder / "src_ref.png")


def _as_tensor(video: Video) -> Tensor:
    return torch.from_numpy(video).permute(3, 0, 1, 2).float() / 127.5 - 1


EXAMPLE_FRAMES = 37


def example_scene() -> Scene:
    """The scene of tests/data/driving, which no training and no score saw."""
    rng = np.random.default_rng([63, 0])
    look, driver = _pair(looks(held_back=True), rng)
    return Scene(look, driver, look.colors, draw_drive(rng, EXAMPLE_FRAMES), draw_standing(rng))


def main() -> None:
    """Write the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_driving(parser.parse_args().folder, example_scene(), replaced=True)


if __name__ == "__main__":
    main()
