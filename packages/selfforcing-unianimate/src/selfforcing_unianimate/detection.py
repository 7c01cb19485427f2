"""Poses in pictures and videos: YOLOX finds the person, DWPose's RTMPose the points, both as ONNX files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selfforcing_unianimate import body_points, person_boxes
from selfforcing_unianimate.keypoints import NUM_DETECTED, Poses, poses_of
from wan_core import CheckpointError, MediaError
from wan_core.files import plain_text
from wan_core.runtime import OnnxNetwork

PERSON_MODEL = "yolox_l.onnx"
POINT_MODEL = "dw-ll_ucoco_384.onnx"
"""File names of the two detectors in the repository ZheWang123/UniAnimate-DiT."""

_LARGEST = 10
"""Pictures that a box may reach over; beyond, points would leave the range of drawing."""

Pixels = NDArray[np.uint8]
Array = NDArray[np.float32]


class PoseDetector:
    """Both detectors of a folder.

    ``device`` "cpu" keeps them off an accelerator; otherwise one that onnxruntime offers is tried first. Raises
    CheckpointError for files that are missing, damaged or of other networks, BackendError without onnxruntime.
    """

    def __init__(self, folder: Path, *, device: str = "auto") -> None:
        if not folder.is_dir():
            raise CheckpointError(
                f"there is no folder {plain_text(folder)} with {PERSON_MODEL} and {POINT_MODEL}; fetch them with "
                "'sfu download --only detectors'"
            )
        side, (width, height) = person_boxes.INPUT_SIZE, body_points.INPUT_SIZE
        source: dict[str, str] = {
            "remedy": "with 'sfu download --only detectors'", "extra": "selfforcing-unianimate[pose]"
        }  # fmt: skip
        self._persons = OnnxNetwork(folder / PERSON_MODEL, (side, side), device=device, **source)
        self._points = OnnxNetwork(folder / POINT_MODEL, (height, width), device=device, **source)

    @property
    def providers(self) -> tuple[str, ...]:
        """What runs them, in onnxruntime's words."""
        return self._points.providers

    def points(self, picture: Pixels) -> tuple[Array, Array]:
        """The points [133, 2], in pixels, and scores [133] of the surest person in an RGB picture [H, W, 3].

        Without a person the whole picture is looked at, as the reference does; the scores tell.
        """
        swapped = np.ascontiguousarray(picture[:, :, ::-1])  # the networks were trained on blue, green, red
        square, ratio = person_boxes.letterbox(swapped)
        cells = (1, person_boxes.num_cells(), person_boxes.NUM_VALUES)
        (found,) = self._persons.run(square[None], [cells])
        boxes = person_boxes.person_boxes(found, ratio)
        crop = body_points.with_aspect(body_points.padded_crop(_surest(boxes, *picture.shape[:2])))
        lengths = (int(side * body_points.SPLIT) for side in body_points.INPUT_SIZE)
        along_x, along_y = self._points.run(
            body_points.network_input(swapped, crop), [(1, NUM_DETECTED, length) for length in lengths]
        )
        inside, scores = body_points.decode_positions(along_x, along_y)
        return body_points.in_picture(inside, crop)[0], scores[0]

    def poses_or_none(self, pictures: Iterable[Pixels]) -> Poses:
        """The poses of one or more pictures [H, W, 3], RGB, one person in each; no joint is seen where there is none.

        Raises MediaError without a picture.
        """
        found = []
        for picture in pictures:
            points, scores = self.points(picture)
            found.append(poses_of(points[None], scores[None], picture.shape[1], picture.shape[0]))
        if not found:
            raise MediaError("there is no picture to look for a person in")
        return joined(found)

    def poses(self, pictures: Iterable[Pixels]) -> Poses:
        """:meth:`poses_or_none` of pictures in which somebody is. Raises MediaError when nobody is in any."""
        poses = self.poses_or_none(pictures)
        if not poses.has_person.any():
            raise MediaError(
                "no person was found: no joint is seen with a score above 0.3; show a whole person, larger and brighter"
            )
        return poses


def _surest(boxes: Array, height: int, width: int) -> Array:
    """The first box, or that of the whole picture where there is none that a person could have."""
    whole = np.array([0, 0, width, height], dtype=np.float32)
    first = boxes[0] if len(boxes) else whole
    is_sane = (first[2:] - first[:2] >= 1).all() and np.abs(first).max() <= _LARGEST * max(height, width)
    return np.asarray(first) if is_sane else whole


def joined(poses: Sequence[Poses]) -> Poses:
    """Poses one after the other."""
    names = ("body", "subset", "faces", "hands", "scores")
    return Poses(**{name: np.concatenate([getattr(each, name) for each in poses]) for name in names})
