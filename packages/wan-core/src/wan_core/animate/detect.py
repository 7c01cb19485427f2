"""Persons in pictures: YOLOv10 finds them, of which one is looked at.

YOLOv10 (Wang et al. 2024, arXiv 2405.14458) with the published weights, or a network with YOLOv8's output. The rules
are those of Wan-Animate's release, the code is our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wan_core.animate.boxes import without_overlaps
from wan_core.animate.opencv import EXTRA, REMEDY, opencv
from wan_core.errors import CheckpointError
from wan_core.files import plain_text
from wan_core.runtime import OnnxNetwork

Pixels = NDArray[np.uint8]
Array = NDArray[np.float32]
Floats = NDArray[np.float64]

DETECTOR_FILE = "det/yolov10m.onnx"
"""Where the detector is in a folder of Wan-Animate's preprocessing."""
INPUT_SIDE = 640

_PERSON = 0
_POSSIBLE = 0.05
_OVERLAP = 0.5
_SHORTEST = 0.4
_SURE = 0.5
_FARTHEST = 100  # sides of the picture; beyond is an error of the network, and no whole number for long
_NUM_VALUES = 6
_NUM_YOLOV8 = 84


@dataclass(frozen=True)
class Person:
    """The person that is looked at: ``box`` [5], left, top, right, bottom in pixels and the score.

    Without anybody the box is the whole picture and the score -1. ``num_persons`` counts those that are surely there.
    """

    box: Floats
    num_persons: int


class PersonDetector:
    """The detector of an ONNX file, which takes [1, 3, 640, 640].

    ``device`` "cpu" keeps it off an accelerator. Raises CheckpointError for a file that is missing, damaged or of
    another network, BackendError without onnxruntime.
    """

    def __init__(self, path: Path, *, device: str = "auto") -> None:
        self._network = OnnxNetwork(path, (INPUT_SIDE, INPUT_SIDE), device=device, remedy=REMEDY, extra=EXTRA)

    @property
    def providers(self) -> tuple[str, ...]:
        """What runs it, in onnxruntime's words."""
        return self._network.providers

    def find(self, picture: Pixels) -> Person:
        """The person of an RGB picture [H, W, 3]. Raises CheckpointError for a network with another output."""
        outputs = self._network.run(network_input(picture))
        height, width = picture.shape[:2]
        found = decode_detections(outputs[0], height, width) if len(outputs) == 1 else None
        if found is None:
            shapes = [list(output.shape) for output in outputs]
            raise CheckpointError(
                f"{plain_text(self._network.path)} is another network: its outputs are {shapes}, not [1, N, 6] or "
                "[1, 84, N]"
            )
        return choose_person(found, height, width)


def network_input(picture: Pixels, side: int = INPUT_SIDE) -> Array:
    """An RGB picture [H, W, 3] as [1, 3, side, side] in 0..1, stretched whatever its aspect."""
    square = opencv().resize(picture, (side, side))
    return np.ascontiguousarray(square.transpose(2, 0, 1)[None] / 255.0, dtype=np.float32)


def decode_detections(output: Array, height: int, width: int, side: int = INPUT_SIDE) -> Floats | None:
    """What is in a picture of this size: rows [N, 6] of left, top, right, bottom in whole pixels, score, class.

    ``output`` is [1, N, 6] (the same in pixels of the input; YOLOv10), or [1, 84, N] or [1, N, 84] (centre, sides and
    the scores of 80 classes; YOLOv8); None for another shape. Rows are the surest first, scores above 0.05, none shares
    more than half of its area with a surer one of any class.
    """
    scale = np.array([width / side, height / side] * 2)
    if output.ndim == 3 and output.shape[::2] == (1, _NUM_VALUES):
        rows = output[0]
        corners, scores, classes = (rows[:, :4] * scale).astype(np.float32), rows[:, 4], rows[:, 5]
        places = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    elif output.ndim == 3 and output.shape[0] == 1 and _NUM_YOLOV8 in output.shape[1:]:
        rows = output[0].T if output.shape[1] == _NUM_YOLOV8 else output[0]
        places = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, 2:4]], axis=1) * scale
        scores, classes = rows[:, 4:].max(axis=1), rows[:, 4:].argmax(axis=1)
    else:
        return None
    known = (scores > np.float32(_POSSIBLE)) & (np.abs(places) < _FARTHEST * max(height, width)).all(axis=1)
    whole = np.trunc(places[known]).astype(np.float64)
    boxes = np.concatenate([whole[:, :2], whole[:, :2] + whole[:, 2:]], axis=1)
    found = np.column_stack([boxes, scores[known], classes[known]]).astype(np.float64)
    kept = without_overlaps(boxes, np.argsort(-scores[known], kind="stable"), _OVERLAP)
    return np.asarray(found[kept])


def choose_person(found: Floats, height: int, width: int) -> Person:
    """The largest person of rows [N, 6] as `decode_detections` gives them, of those that are not far too short.

    In the order of the rows a larger box takes the place of the one before, unless its longer side is below 0.4 of a
    yardstick: first the longest side of all persons, then that of the box that was taken last. Surely there are those
    with a score of at least 0.5 whose longer side is at least 0.4 of the longest one.
    """
    persons = found[(found[:, 5] == _PERSON) & (found[:, 4] > _POSSIBLE)]
    sides = persons[:, 2:4] - persons[:, :2]
    longest, areas = sides.max(axis=1, initial=0.0), sides.prod(axis=1)
    yardstick = most = float(longest.max(initial=0.0))
    box, largest = np.array([0.0, 0.0, width, height, -1.0]), -np.inf
    for person, long, area in zip(persons, longest, areas, strict=True):
        if area > largest and long >= yardstick * _SHORTEST:
            box, largest, yardstick = person[:5], area, long
    sure = (persons[:, 4] >= _SURE) & (longest >= most * _SHORTEST)
    return Person(np.asarray(box, dtype=np.float64), int(sure.sum()))
