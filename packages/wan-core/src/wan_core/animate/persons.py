"""The person in every frame of a driving video, and in single pictures: detected, then its points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wan_core.animate.detect import PersonDetector
from wan_core.animate.driving_video import Counted, DrivingVideo
from wan_core.animate.keypoints import NUM_BODY, NUM_FACE, NUM_HAND, PosePoints
from wan_core.animate.pose import PoseEstimator
from wan_core.errors import MediaError

if TYPE_CHECKING:
    from torch import Tensor

    from wan_core.kept_clips import KeptParts
    from wan_core.media import FrameSize

Pixels = NDArray[np.uint8]
Progress = Callable[[Iterable[Any], str], Iterable[Any]]

PART = 64
"""Frames whose points are kept together."""
_SURE = 0.5
_FEWEST = NUM_BODY // 2
_TOLERATED = 0.1
_SPLITS = np.cumsum([NUM_BODY, NUM_HAND, NUM_HAND])
_POINTS, _PERSONS = "points", "persons"
_NUM_POINTS = int(_SPLITS[-1]) + NUM_FACE


@dataclass(frozen=True)
class Sighting:
    """Who was found in a frame: the ``points``, and how many persons are surely there."""

    points: PosePoints
    num_persons: int

    @property
    def is_person(self) -> bool:
        """Whether somebody is there: detected, or at least half of the body's points are sure."""
        return self.num_persons > 0 or int((self.points.body[:, 2] >= _SURE).sum()) >= _FEWEST


class PersonFinder:
    """Both networks; ``device`` "cpu" keeps them off an accelerator. Raises as `wan_core.runtime.OnnxNetwork`."""

    def __init__(self, detector: Path, poses: Path, *, device: str) -> None:
        self._detector = PersonDetector(detector, device=device)
        self._estimator = PoseEstimator(poses, device=device)

    @property
    def providers(self) -> tuple[str, ...]:
        """What runs them, in onnxruntime's words."""
        return self._estimator.providers

    def look(self, picture: Pixels, previous: PosePoints | None = None) -> Sighting:
        """Who is in a picture [H, W, 3]; without a detection the whole of it is looked at, as in the release.

        Raises MediaError where nobody is seen and there is no ``previous`` person, CheckpointError for other networks.
        """
        person = self._detector.find(picture)
        return Sighting(self._estimator.estimate(picture, person.box, previous), person.num_persons)

    def follow(self, video: DrivingVideo, kept: KeptParts, progress: Progress) -> list[Sighting]:
        """Who is in every frame of a video; what earlier runs found is taken from ``kept``, and the rest goes there.

        Raises MediaError where nobody is seen in the first frame, or in any.
        """
        starts = range(0, len(video), PART)
        found: list[Sighting] = []
        for number, start in enumerate(starts):
            before = _unpacked(kept, number, min(PART, len(video) - start), video.size)
            if before is None:
                break
            found += before
        rest = range(len(found), len(video))
        frames = iter(progress(Counted(video.frames(rest), len(rest)), "poses"))
        while len(found) < len(video):
            part: list[Sighting] = []
            for frame in islice(frames, PART):
                before_it = [*found[-1:], *part[-1:]]
                part.append(self.look(frame, before_it[-1].points if before_it else None))
            kept.write(len(found) // PART, _packed(part))
            found += part
        if not any(sighting.is_person for sighting in found):
            raise MediaError(
                f"no person was found in any of the {len(found)} frames of the video; show a whole person, larger and "
                "brighter"
            )
        return found


def check_alone(sightings: Sequence[Sighting]) -> None:
    """Raise MediaError where more than a tenth of the frames show several persons: one alone can be masked."""
    crowded = [index for index, sighting in enumerate(sightings) if sighting.num_persons > 1]
    if len(crowded) > _TOLERATED * len(sightings):
        raise MediaError(
            f"{len(crowded)} of {len(sightings)} frames show more than one person, the first at {crowded[0]}; "
            "--replace_flag replaces the one person of a video: cut or crop it to that one"
        )


def _packed(sightings: Sequence[Sighting]) -> dict[str, Tensor]:
    import torch

    rows = [
        np.concatenate([each.points.body, each.points.left_hand, each.points.right_hand, each.points.face])
        for each in sightings
    ]
    persons = torch.tensor([each.num_persons for each in sightings])
    return {_POINTS: torch.from_numpy(np.stack(rows)), _PERSONS: persons}


def _unpacked(kept: KeptParts, number: int, count: int, size: FrameSize) -> list[Sighting] | None:
    """The sightings of one part, where they are kept."""
    found = kept.read(number, {_POINTS: (count, _NUM_POINTS, 3), _PERSONS: (count,)})
    if found is None:
        return None
    people = []
    for row, num_persons in zip(found[_POINTS].double().numpy(), found[_PERSONS].tolist(), strict=True):
        body, left, right, face = np.split(row, _SPLITS)
        points = PosePoints(
            body=body, left_hand=left, right_hand=right, face=face, width=size.width, height=size.height
        )
        people.append(Sighting(points, int(num_persons)))
    return people
