"""How true generated persons are to their poses: the metrics of the package with a detector by colour.

Fixed before the first training run: the 60 held-back clips (`tools.tiny.people.EVALUATION_SEEDS`), the joints that
count, the detector and the metrics. Bars: the student's PCK@0.1 at least 0.95 times the teacher's, its warp error at
most 1.1 times the teacher's, and in a video of ten times the length PCK of the last tenth 0.9 times the first's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from selfforcing_unianimate.metrics import Keypoints, evaluate_clip
from tools.tiny.detect import border_color, nearest_name
from tools.tiny.people import CLOTHES, GROUNDS, Person
from tools.tiny.person_detect import JOINTS, detect_joints, name_pixels
from tools.tiny.world import BACKGROUNDS, COLORS, Video
from wan_core.metrics import interval

SHOWN = ("pck_0.1", "pck_0.05", "akd", "missing_rate", "warp_error", "flicker", "psnr", "look", "dress")
"""What the table has."""


class ColourDetector:
    """A `KeypointDetector` of this world."""

    def keypoints(self, frames: NDArray[np.uint8]) -> Keypoints:
        """The joints of every frame [T, H, W, 3]."""
        points, seen = detect_joints(frames)
        return Keypoints(points, seen.astype(np.float64))


def target_of(person: Person) -> Keypoints:
    """The joints that count."""
    scores = np.zeros(person.body.shape[:2])
    scores[:, list(JOINTS)] = 1
    return Keypoints(person.body.astype(np.float64), scores)


def score_clip(video: Video, person: Person, block_starts: Sequence[int] = ()) -> dict[str, float | None]:
    """The metrics of a video that should show ``person``; ``look`` and ``dress`` are 1 or 0."""
    found = ColourDetector().keypoints(video)
    values = evaluate_clip(video, target_of(person), found, truth=person.video, block_starts=block_starts)
    return values | {"look": float(has_look(video, person)), "dress": float(wears_dress(video, person))}


def has_look(video: Video, person: Person) -> bool:
    """Whether background and clothing have the colours that the prompt names."""
    pixels = video.astype(np.float32)
    ground = nearest_name(border_color(pixels), {name: BACKGROUNDS[name] for name in GROUNDS})
    chest = np.concatenate([frame[y : y + 5, x - 2 : x + 3].reshape(-1, 3) for frame, x, y in _necks(pixels, person)])
    clothing = nearest_name(np.median(chest, axis=0), {name: COLORS[name] for name in CLOTHES})
    return ground == person.look.background and clothing == person.look.clothing


def wears_dress(video: Video, person: Person) -> bool:
    """Whether there is clothing beside the hips, where only a skirt is, in most of the frames."""
    names, named = name_pixels(video.astype(np.float32))
    cloth = named == names.index(f"cloth {person.look.clothing}")
    height, width = video.shape[1:3]
    found = []
    for frame, body in enumerate(person.body):
        x, y = body[[8, 11]].mean(axis=0) + np.float32([0, 4])
        row = min(height - 1, round(float(y)))
        columns = [min(width - 1, max(0, round(float(x + side * 8.5)))) for side in (-1, 1)]
        found.append(cloth[frame, row, columns].mean())
    return float(np.mean(found)) > 0.5


def _necks(pixels: NDArray[np.float32], person: Person) -> list[tuple[NDArray[np.float32], int, int]]:
    return [
        (frame, *(int(value) for value in np.clip(body[1].round(), 3, 56)))
        for frame, body in zip(pixels, person.body, strict=True)
    ]


def tenths(video: Video, person: Person) -> tuple[float, float]:
    """PCK@0.1 of the first and the last tenth of a long video."""
    found, target = ColourDetector().keypoints(video), target_of(person)
    tenth = len(video) // 10
    first, last = (
        evaluate_clip(video[part], target[part], found[part])["pck_0.1"] or 0.0
        for part in (slice(0, tenth), slice(len(video) - tenth, len(video)))
    )
    return first, last


def means(scores: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """The mean of every metric over clips, of those that have it."""
    found: dict[str, float] = {}
    for name in scores[0]:
        values = [value for row in scores if (value := row[name]) is not None]
        if values:
            found[name] = round(float(np.mean(values)), 4)
    return found


def table(scores: Mapping[str, Sequence[Mapping[str, float | None]]]) -> list[str]:
    """Rows of Markdown: means of every arm, with 95 % intervals over clips."""
    rows = ["| | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for name, clips in scores.items():
        cells = []
        for metric in SHOWN:
            values = [value for row in clips if (value := row.get(metric)) is not None]
            cells.append(_cell(values))
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


def _cell(values: Sequence[float]) -> str:
    found = interval(values)
    if found is None or found.low is None or found.high is None:
        return ""
    digits = 1 if max(values) > 10 else 4 if max(values) < 0.1 else 3
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def with_style(person: Person, style: str) -> Person:
    """The same person and motion in the other clothing."""
    from tools.tiny.people import render

    look = replace(person.look, style=style)
    return replace(person, video=render(look, person.body), look=look)
