"""133 points of a person: what goes into ViTPose and what its heat maps mean.

ViTPose (Xu et al. 2022, arXiv 2204.12484) for whole bodies with the published weights; heat maps are read as in DARK
(Zhang et al. 2020, arXiv 1910.06278). The rules are those of Wan-Animate's release, the code is our own.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wan_core.animate.keypoints import NUM_DETECTED, PosePoints, split_points
from wan_core.animate.opencv import EXTRA, REMEDY, opencv
from wan_core.runtime import OnnxNetwork

Pixels = NDArray[np.uint8]
Array = NDArray[np.float32]
Floats = NDArray[np.float64]

POSE_FILE = "pose2d/vitpose_h_wholebody.onnx"
"""Where the network is in a folder of Wan-Animate's preprocessing."""
INPUT_SIZE = (256, 192)
"""Height and width of the network's input."""
MAP_SIZE = (64, 48)
"""Height and width of its heat maps."""

_ROOM = 1.25
_UNIT = 200.0  # pixels that a scale of 1 is long, as in MPII's annotations
_SMALLEST = 10
_BLUR = 11
_FLOOR = 1e-10
# Of RGB (ImageNet), and put on BGR: the release does so, and Wan-Animate was trained with what it finds.
_MEAN = np.array([0.485, 0.456, 0.406])
_DEVIATION = np.array([0.229, 0.224, 0.225])


class PoseCrop(NamedTuple):
    """What is looked at: its centre (x, y) in pixels, and its sides (width, height) in units of 200 pixels."""

    centre: Floats
    scale: Floats


class PoseEstimator:
    """The network of an ONNX file, which makes [1, 133, 64, 48] of [1, 3, 256, 192].

    ``device`` "cpu" keeps it off an accelerator. Raises CheckpointError for a file that is missing, damaged or of
    another network, BackendError without onnxruntime.
    """

    def __init__(self, path: Path, *, device: str = "auto") -> None:
        self._network = OnnxNetwork(path, INPUT_SIZE, device=device, remedy=REMEDY, extra=EXTRA)

    @property
    def providers(self) -> tuple[str, ...]:
        """What runs it, in onnxruntime's words."""
        return self._network.providers

    def points(self, picture: Pixels, box: Floats) -> Floats:
        """The points [133, 3] of the person in a ``box`` [5] of an RGB picture [H, W, 3]: x, y in pixels, score."""
        crop = crop_of(box, *picture.shape[:2])
        (maps,) = self._network.run(network_input(picture, crop)[None], [(1, NUM_DETECTED, *MAP_SIZE)])
        return decode_heatmaps(maps[0], crop)

    def estimate(self, picture: Pixels, box: Floats, previous: PosePoints | None = None) -> PosePoints:
        """The person in a ``box`` [5] of an RGB picture [H, W, 3]; ``previous`` as in `split_points`.

        Raises MediaError where nobody is seen and there is no ``previous`` one.
        """
        height, width = picture.shape[:2]
        return split_points(self.points(picture, box), width, height, previous)


def crop_of(box: Floats, height: int, width: int) -> PoseCrop:
    """What is looked at for a box [5] (left, top, right, bottom, score) of a picture of this size.

    A box below 10 pixels in width or height, or without a positive score, is the whole picture.
    """
    if box[4] <= 0 or min(box[2] - box[0], box[3] - box[1]) < _SMALLEST:
        box = np.array([0.0, 0.0, width, height])
    aspect = INPUT_SIZE[0] / INPUT_SIZE[1]
    high = max((box[2] - box[0]) * aspect, box[3] - box[1])
    centre = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], dtype=np.float64)
    return PoseCrop(centre, np.array([high / aspect, high]) / _UNIT * _ROOM)


def network_input(picture: Pixels, crop: PoseCrop) -> Array:
    """The crop of an RGB picture [H, W, 3] as the network sees it: [3, 256, 192].

    Blue comes first, with red's mean and deviation, as in the release.
    """
    return normalised_crop(picture[:, :, ::-1], crop)


def normalised_crop(picture: Pixels, crop: PoseCrop, size: tuple[int, int] = INPUT_SIZE) -> Array:
    """The crop of a picture [H, W, 3] at a ``size`` (height, width): [3, height, width] by ImageNet's statistics.

    Its height is the longer side, black lies around the picture. Raises BackendError without OpenCV.
    """
    height, width = picture.shape[:2]
    (left, top), (right, bottom) = _corners(crop, size)
    part = np.zeros((bottom - top, right - left, 3), dtype=np.float32)
    low_x, high_x = np.clip([left, right], 0, width)
    low_y, high_y = np.clip([top, bottom], 0, height)
    part[low_y - top : high_y - top, low_x - left : high_x - left] = picture[low_y:high_y, low_x:high_x]
    scaled = opencv().resize(part, size[::-1], interpolation=opencv().INTER_LINEAR)
    normal = (scaled / 255 - _MEAN) / _DEVIATION
    return np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)


def _corners(crop: PoseCrop, size: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The crop's upper left and lower right corner (x, y) in whole pixels of the picture, the latter outside.

    By the inverse of the affine map from the picture to the input: many corners are halves, and what is lost in the
    inverse says whether they are rounded up or down.
    """
    rows, columns = size
    high = _UNIT * float(crop.scale.max())
    wide = high / (rows / columns)
    forward = np.array(
        [
            [columns / wide, 0.0, columns * (-crop.centre[0] / wide + 0.5)],
            [0.0, rows / high, rows * (-crop.centre[1] / high + 0.5)],
            [0.0, 0.0, 1.0],
        ]
    )
    back = np.linalg.inv(forward)
    first, last = (np.round(np.dot(back, np.array([x, y, 1.0]))[:2]) for x, y in ((0, 0), (columns, rows)))
    return first.astype(np.int64), last.astype(np.int64)


def decode_heatmaps(maps: Array, crop: PoseCrop) -> Floats:
    """Points [K, 3] from heat maps [K, h, w]: x, y in pixels of the picture that the crop is of, and the maximum.

    A map without a positive value has its point at (-1, -1) of the map. The others go from the highest cell to the
    peak of the blurred map by a Newton step on its logarithm. Raises BackendError without OpenCV.
    """
    count, height, width = maps.shape
    flat = maps.reshape(count, -1)
    highest, scores = flat.argmax(axis=1), flat.max(axis=1)
    places = np.stack([highest % width, highest // width], axis=1).astype(np.float32)
    places[scores <= 0] = -1
    inner = ((places > 1) & (places < (width - 2, height - 2))).all(axis=1)
    for index in np.nonzero(inner)[0]:
        x, y = map(int, places[index])
        places[index] += _newton_step(_log_blurred(maps[index]), x, y)
    sides = crop.scale * _UNIT
    points = places * (sides / (width, height)) + crop.centre - sides / 2
    return np.concatenate([points, scores[:, None]], axis=1).astype(np.float64)


def _log_blurred(heatmap: Array) -> Array:
    """The logarithm of a map [h, w] after a Gaussian of 11 cells (deviation 2), its maximum as before."""
    cv2 = opencv()
    blurred = cv2.GaussianBlur(heatmap, (_BLUR, _BLUR), 0, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(np.log(np.maximum(blurred * (heatmap.max() / blurred.max()), np.float32(_FLOOR))))


def _newton_step(values: Array, x: int, y: int) -> Array:
    """How far (x, y) the maximum of a map [h, w] is from a cell, by differences over one and two cells."""
    slope = np.array([values[y, x + 1] - values[y, x - 1], values[y + 1, x] - values[y - 1, x]]) / 2
    across = (values[y + 1, x + 1] - values[y - 1, x + 1] - values[y + 1, x - 1] + values[y - 1, x - 1]) / 4
    bend_x = (values[y, x + 2] - 2 * values[y, x] + values[y, x - 2]) / 4
    bend_y = (values[y + 2, x] - 2 * values[y, x] + values[y - 2, x]) / 4
    if bend_x * bend_y - across**2 == 0:
        return np.zeros(2, dtype=np.float32)
    hessian = np.array([[bend_x, across], [across, bend_y]])
    return np.asarray(-np.linalg.inv(hessian) @ slope, dtype=np.float32)
