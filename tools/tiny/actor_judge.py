"""A judge of videos of the actors' world, by image analysis alone: where joints are, who is seen, how the mouth moves.

It knows the palette and the build of an actor. Joints are found by `tools.tiny.person_detect`; clothes are looked at
where the joints of the driving video say that they should be, so somebody who stands elsewhere wears nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from selfforcing_unianimate.metrics import Keypoints, evaluate_clip
from tools.tiny.actors import DARK, GROUNDS, MOUTH_RADIUS, SIZE, Drive, Scene
from tools.tiny.detect import border_color, nearest_name
from tools.tiny.drawing import Floats
from tools.tiny.people import CLOTHES, PARTS, disc
from tools.tiny.person_detect import JOINTS, detect_joints
from tools.tiny.speaker_judge import correlation
from tools.tiny.world import BACKGROUNDS, COLORS, Video

BARS = {"pck_0.1": 0.85, "colours": 95.0}
"""What the model is to reach on the 50 held-back scenes, moved in the scene of the picture: mean PCK@0.1, and the
percentage of videos in which shirt, trousers and background all have the colours of the reference picture."""

_SHIRT_DOWN = 0.12  # of the way from the neck to the hips: the middle of the shirt


def judge(video: Video, scene: Scene, *, replaced: bool = False) -> dict[str, float]:
    """The scores of a video that should show a scene; colours are 100 or 0, those ``kept`` of shirt and trousers alone.

    ``mouth``: Pearson's correlation of how far it is open with how far it should be.
    """
    drive = scene.drive[: len(video)]
    points, seen = detect_joints(video)
    wanted = np.zeros(seen.shape)
    wanted[:, list(JOINTS)] = 1
    target = Keypoints(drive.body.astype(np.float64), wanted)
    found = evaluate_clip(video, target, Keypoints(points, seen.astype(np.float64)))
    names = {"ground": scene.driver.ground if replaced else scene.look.ground}
    names |= {"shirt": scene.look.shirt, "trousers": scene.look.trousers}
    right = {name: float(color == names[name]) * 100 for name, color in colors_of(video, drive).items()}
    return {
        **{name: float(found[name] or 0.0) for name in ("pck_0.1", "pck_0.05", "missing_rate")},
        "colours": min(right.values()),
        "kept": min(right["shirt"], right["trousers"]),
        **right,
        "mouth": correlation(openings(video, drive), drive.mouth),
    }


def colors_of(video: Video, drive: Drive) -> Mapping[str, str | None]:
    """Names of what is seen at shirt and trousers, by the median of all frames, and of the background; or None."""
    pixels = video.astype(np.float32)
    hips = drive.body[:, [8, 11]].mean(axis=1)
    shirt = drive.body[:, 1] + _SHIRT_DOWN * (hips - drive.body[:, 1])
    clothes = {name: COLORS[name] for name in CLOTHES}
    return {
        "shirt": nearest_name(_color_at(pixels, shirt), clothes),
        "trousers": nearest_name(_color_at(pixels, hips), clothes),
        "ground": nearest_name(border_color(pixels), {name: BACKGROUNDS[name] for name in GROUNDS}),
    }


def _color_at(pixels: Floats, points: Floats) -> Floats:
    """The median colour of 3x3 pixels around a point (x, y) [F, 2] of every frame."""
    places = points.round().astype(int).clip(1, SIZE - 2)
    around = [frame[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3) for frame, (x, y) in zip(pixels, places, strict=True)]
    return np.asarray(np.median(np.concatenate(around), axis=0), np.float32)


def openings(video: Video, drive: Drive) -> Floats:
    """How far the mouth is open [F], by how dark the middle of the head is: 0 to 1, about."""
    skin = np.float32(PARTS["head"])
    towards = np.float32(DARK) - skin
    dark = ((video.astype(np.float32) - skin) @ towards / (towards**2).sum()).clip(0, 1)
    area = (dark * disc(drive.body[:, 0], MOUTH_RADIUS + 0.5)).sum((1, 2))
    return np.asarray(np.sqrt(area / np.pi) / MOUTH_RADIUS, np.float32)
