"""The second scene of the tiny world: a clothed stick person of 18 known keypoints, for pose work.

Keypoints are in the OpenPose COCO-18 order (KEYPOINTS); the person faces the viewer, so "right" joints are on the left
of the picture. Clips, captions and keypoints follow from integers, like those of `tools.tiny.world`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tools.tiny.drawing import Floats, capsule_distance, coverage, paint, pixel_grid
from tools.tiny.world import BACKGROUNDS, COLORS

KEYPOINTS = (
    *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("right_eye", "left_eye", "right_ear", "left_ear"),
)
ACTIONS = {
    "walk": ("walks", "walks on the spot", "is walking"),
    "wave": ("waves", "waves a hand", "is waving"),
    "jump": ("jumps", "jumps up", "is jumping"),
    "squat": ("squats", "bends the knees", "is squatting"),
}
_SKIN = (235, 190, 150)
_FIGURE_BACKGROUNDS = ("black", "gray", "blue", "green")
_SHIRTS = ("red", "yellow", "purple", "cyan", "white")
_TROUSERS = ("orange", "purple", "cyan", "white", "yellow")


@dataclass(frozen=True)
class PersonClip:
    """A clip of the person: ``video`` ``[F, H, W, 3]`` uint8 and ``keypoints`` ``[F, 18, 2]`` (x, y) in pixels."""

    video: NDArray[np.uint8]
    keypoints: Floats
    caption: str
    action: str
    shirt: str
    trousers: str
    background: str


def pose_angles(action: str, phase: Floats) -> dict[str, Floats]:
    """Joint angles and body lift of an action.

    ``phase`` ``[F]`` is 0..1 over the clip. Limb angles are radians from straight down, outwards positive; ``lift`` is
    upwards, in body heights. Raises KeyError for an unknown action.
    """
    zero = np.zeros_like(phase)
    swing, wave = np.sin(4 * np.pi * phase), np.sin(np.pi * phase)
    rest = {
        "right_arm": zero + 0.25,
        "left_arm": zero + 0.25,
        "right_forearm": zero + 0.15,
        "left_forearm": zero + 0.15,
    }
    legs = {"right_thigh": zero + 0.12, "left_thigh": zero + 0.12, "right_shin": zero + 0.05, "left_shin": zero + 0.05}
    pose = {**rest, **legs, "lift": zero}
    if action == "walk":
        pose |= {"right_thigh": 0.1 + 0.4 * swing, "left_thigh": 0.1 - 0.4 * swing}
        pose |= {"right_arm": 0.3 - 0.4 * swing, "left_arm": 0.3 + 0.4 * swing}
    elif action == "wave":
        pose |= {"left_arm": zero + 2.0, "left_forearm": 2.7 + 0.5 * swing}
    elif action == "jump":
        pose |= {"lift": 0.18 * wave, "right_arm": 0.25 + 1.6 * wave, "left_arm": 0.25 + 1.6 * wave}
        pose |= {"right_forearm": 0.15 + 1.9 * wave, "left_forearm": 0.15 + 1.9 * wave}
    elif action == "squat":
        pose |= {"right_thigh": 0.12 + 0.9 * wave, "left_thigh": 0.12 + 0.9 * wave}
        pose |= {"right_shin": 0.05 - 0.5 * wave, "left_shin": 0.05 - 0.5 * wave}
    else:
        raise KeyError(action)
    return pose


def place_keypoints(pose: dict[str, Floats], center_x: float, ground_y: float, body: float) -> Floats:
    """Place the 18 keypoints ``[F, 18, 2]`` of a pose; ``body`` is the standing height in pixels."""
    frames = len(pose["lift"])
    points = np.zeros((frames, 18, 2), np.float32)
    at = {name: index for index, name in enumerate(KEYPOINTS)}

    def hang(parent: str, child: str, angle: Floats, length: float) -> None:
        side = -1.0 if child.startswith("right") else 1.0
        step = np.stack([side * np.sin(angle), np.cos(angle)], -1) * length * body
        points[:, at[child]] = points[:, at[parent]] + step

    # The hips stand above the lower ankle: bending the knees lowers the body, as in a squat.
    thigh, shin = 0.24, 0.24
    reach = [np.cos(pose[f"{s}_thigh"]) * thigh + np.cos(pose[f"{s}_shin"]) * shin for s in ("right", "left")]
    hip_y = ground_y - (np.maximum(*reach) + pose["lift"]) * body
    neck = np.stack([np.full(frames, center_x), hip_y - 0.3 * body], -1)
    points[:, at["neck"]] = neck
    head = {"nose": (0, -0.1), "right_eye": (-0.03, -0.13), "left_eye": (0.03, -0.13)}
    head |= {"right_ear": (-0.07, -0.12), "left_ear": (0.07, -0.12), "right_shoulder": (-0.12, 0.02)}
    head |= {"left_shoulder": (0.12, 0.02), "right_hip": (-0.07, 0.3), "left_hip": (0.07, 0.3)}
    for name, offset in head.items():
        points[:, at[name]] = neck + np.asarray(offset, np.float32) * body
    for side in ("right", "left"):
        hang(f"{side}_shoulder", f"{side}_elbow", pose[f"{side}_arm"], 0.16)
        hang(f"{side}_elbow", f"{side}_wrist", pose[f"{side}_forearm"], 0.15)
        hang(f"{side}_hip", f"{side}_knee", pose[f"{side}_thigh"], thigh)
        hang(f"{side}_knee", f"{side}_ankle", pose[f"{side}_shin"], shin)
    return points


def render_person(
    keypoints: Floats, colors: tuple[str, str, str], height: int, width: int, body: float
) -> NDArray[np.uint8]:
    """Draw the person: ``colors`` are the names of shirt, trousers and background; uint8 ``[F, H, W, 3]``."""
    shirt, trousers, background = COLORS[colors[0]], COLORS[colors[1]], BACKGROUNDS[colors[2]]
    x, y = pixel_grid(height, width)
    canvas = np.broadcast_to(np.float32(background), (len(keypoints), height, width, 3))
    at = {name: index for index, name in enumerate(KEYPOINTS)}

    def limb(start: str, end: str, thickness: float, color: tuple[int, int, int]) -> None:
        nonlocal canvas
        ends = keypoints[:, at[start]], keypoints[:, at[end]]
        canvas = paint(canvas, coverage(capsule_distance(x, y, *ends, thickness * body)), color)

    for side in ("right", "left"):
        limb(f"{side}_hip", f"{side}_knee", 0.11, trousers)
        limb(f"{side}_knee", f"{side}_ankle", 0.1, trousers)
    limb("right_shoulder", "left_hip", 0.14, shirt)
    limb("left_shoulder", "right_hip", 0.14, shirt)
    for side in ("right", "left"):
        limb(f"{side}_shoulder", f"{side}_elbow", 0.09, shirt)
        limb(f"{side}_elbow", f"{side}_wrist", 0.08, _SKIN)
    limb("neck", "nose", 0.08, _SKIN)
    limb("nose", "nose", 0.18, _SKIN)
    return canvas.round().astype(np.uint8)


def person_clip(seed: int, *, frames: int = 17, height: int = 64, width: int = 64) -> PersonClip:
    """Draw person clip number ``seed``: action, clothes, background, place and size follow from it."""
    rng = np.random.default_rng([3, seed])
    action, background = str(rng.choice(list(ACTIONS))), str(rng.choice(_FIGURE_BACKGROUNDS))
    shirt = str(rng.choice(_SHIRTS))
    trousers = str(rng.choice([color for color in _TROUSERS if color != shirt]))
    body = rng.uniform(0.68, 0.78) * height
    center_x, ground_y = width * rng.uniform(0.4, 0.6), height * rng.uniform(0.9, 0.94)
    phase = np.linspace(0, 1, frames, dtype=np.float32) if frames > 1 else np.zeros(1, np.float32)
    keypoints = place_keypoints(pose_angles(action, phase), center_x, ground_y, body)
    video = render_person(keypoints, (shirt, trousers, background), height, width, body)
    clothes, doing = f"a {shirt} shirt and {trousers} trousers", rng.choice(ACTIONS[action])
    caption = f"a person in {clothes} {doing} on a {background} background"
    return PersonClip(video, keypoints, caption.replace("a orange", "an orange"), action, shirt, trousers, background)
