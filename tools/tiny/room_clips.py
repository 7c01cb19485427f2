"""Camera moves in rendered rooms: the clips that the tiny 3D-guided model learns from and is judged on. numpy only.

Everything follows from one integer: ``room_clip(seed)`` always renders the same 17 frames of 64x64 pixels, the camera
looking at one point in the middle of a room while it moves in one of six ways. A move is always as long as its name
says in `MOVES`, so the first image and the caption determine the video but for what was hidden. A clip read backwards
is another training clip (`opposite`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tools.tiny.rooms import Floats, Room, look_at, make_room, render

CLIPS_VERSION = "1"
TRAINING_SEEDS = range(1_000_000, 1_001_600)
EVALUATION_SEEDS = range(9_100_000, 9_100_060)
"""The held-back scenes, ten per move. Fixed before the first training run; training never uses a seed from here on."""

FRAMES, SIZE = 17, 64
FIELD_OF_VIEW = 64.0  # degrees, that of every clip
_NEAREST = 0.35  # metres: a start from where the camera would touch something is drawn again

# What each move is called; the first wording is the plainest and the one that evaluation uses.
MOVES: dict[str, tuple[str, ...]] = {
    "left": ("the camera moves to the left", "a video of a room, the camera goes to the left"),
    "right": ("the camera moves to the right", "a video of a room, the camera goes to the right"),
    "up": ("the camera rises", "a video of a room, the camera moves up"),
    "down": ("the camera falls", "a video of a room, the camera moves down"),
    "closer": ("the room becomes larger, the camera moves in", "a video of a room, the camera moves in, bigger"),
    "away": ("the room becomes smaller, the camera moves away", "a video of a room, the camera moves away, smaller"),
}
_OPPOSITES = {"left": "right", "right": "left", "up": "down", "down": "up", "closer": "away", "away": "closer"}
ARC, RISE, STEP = 0.55, 0.7, 0.6  # radians around the middle; metres of height; metres towards the middle


@dataclass(frozen=True)
class RoomClip:
    """One move: ``video`` uint8 [F, H, W, 3], ``poses`` float32 [F, 4, 4] camera-to-world, ``intrinsics`` float32
    [3, 3] in pixels, the ``room``, and the name of the ``move``."""

    video: NDArray[np.uint8]
    poses: Floats
    intrinsics: Floats
    room: Room
    move: str

    @property
    def caption(self) -> str:
        """The plainest wording of the move."""
        return MOVES[self.move][0]

    def depth(self, frame: int, height: int, width: int) -> Floats:
        """True depth [height, width] of a frame at the pixel centres of another size."""
        return render(self.room, self.poses[frame], resized(self.intrinsics, height, width), height, width)[1]


def opposite(clip: RoomClip) -> RoomClip:
    """The clip read backwards, with the name of that move."""
    return replace(clip, video=clip.video[::-1], poses=clip.poses[::-1], move=_OPPOSITES[clip.move])


def resized(intrinsics: Floats, height: int, width: int) -> Floats:
    """Intrinsics of SIZE x SIZE pixels for the same image at another size."""
    factors = np.array([[width / SIZE], [height / SIZE], [1.0]], dtype=np.float32)
    return intrinsics * factors


def fixed_intrinsics() -> Floats:
    """The pinhole camera of every clip [3, 3]: square pixels, its axis through the middle."""
    focal = SIZE / 2 / np.tan(np.radians(FIELD_OF_VIEW) / 2)
    return np.array([[focal, 0, SIZE / 2], [0, focal, SIZE / 2], [0, 0, 1]], dtype=np.float32)


def move_cameras(generator: np.random.Generator, move: str) -> Floats:
    """Poses [F, 4, 4] of a move from a random start, looking at one point near the middle of the room."""
    share = np.linspace(0.0, 1.0, FRAMES)
    progress = share if move in ("right", "up", "away") else 1 - share
    angle = np.full(FRAMES, generator.uniform(0, 2 * np.pi))
    radius = np.full(FRAMES, generator.uniform(1.55, 2.15))
    height = np.full(FRAMES, generator.uniform(1.15, 1.75))
    target = generator.uniform(-0.2, 0.2, 3) - np.array([0.0, 0.6, 0.0])
    if move in ("left", "right"):
        angle = angle + ARC * progress
    elif move in ("up", "down"):
        height = generator.uniform(1.1, 1.2) + RISE * progress
    else:
        radius = generator.uniform(1.5, 1.6) + STEP * progress
    positions = np.stack([radius * np.sin(angle), -height, -radius * np.cos(angle)], axis=1)
    return np.stack([look_at(position.astype(np.float32), target.astype(np.float32)) for position in positions])


def room_clip(seed: int, *, smooth: int = 2) -> RoomClip:
    """The clip of a seed; moves take turns. Colours are means over ``smooth`` x ``smooth`` rays."""
    move = list(MOVES)[seed % len(MOVES)]
    intrinsics = fixed_intrinsics()
    for attempt in range(100):
        generator = np.random.default_rng([seed, attempt])
        room = make_room(generator)
        poses = move_cameras(generator, move)
        if min(render(room, pose, resized(intrinsics, 16, 16), 16, 16)[1].min() for pose in poses[::4]) > _NEAREST:
            break
    fine, side = resized(intrinsics, SIZE * smooth, SIZE * smooth), SIZE * smooth
    frames = np.empty((FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    for index, pose in enumerate(poses):
        colours = render(room, pose, fine, side, side)[0]
        colours = colours.reshape(SIZE, smooth, SIZE, smooth, 3).mean(axis=(1, 3))
        frames[index] = np.clip(np.round(colours), 0, 255)
    return RoomClip(frames, poses, intrinsics, room, move)
