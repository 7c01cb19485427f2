"""Faces in pictures: SCRFD finds them with five points each, ArcFace or a network like it tells whose they are.

Guo et al., "Sample and Computation Redistribution for Efficient Face Detection" (2021); Deng et al., "ArcFace" (2019).
Files, sizes and numbers are those of insightface's model packs, such as buffalo_l and antelopev2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wan_core import CheckpointError
from wan_core.animate import without_overlaps
from wan_core.files import folder_files, plain_text
from wan_core.runtime import OnnxNetwork, optional_package

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[np.float32]
Pixels = NDArray[np.uint8]

_EXTRA = "bindweave[evaluate]"
_STRIDES = (8, 16, 32)
_ANCHORS = 2
_SIDE = 640
_SURE, _OVERLAP = 0.5, 0.4
_FACE = 112
_POINTS = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
"""Where eyes, nose and corners of the mouth lie in a face of 112 x 112 pixels (insightface)."""
_BORDER, _GREY = 0.25, 128


class FaceEncoder:
    """The detector and the recogniser among the ONNX files of a folder, told by what goes in and comes out.

    ``device`` "cpu" keeps them off an accelerator. Raises CheckpointError for a folder without them or with several,
    BackendError without onnxruntime.
    """

    def __init__(self, folder: Path, device: str) -> None:
        remedy = "with a model pack of insightface"
        files = folder_files(folder, (".onnx",))
        networks = [OnnxNetwork(each, None, device=device, remedy=remedy, extra=_EXTRA) for each in files]
        self._detector = _only(folder, "detector of faces with five points", [n for n in networks if _is_detector(n)])
        self._recogniser = _only(folder, "recogniser of faces", [n for n in networks if _is_recogniser(n)])
        self._side = self._detector.input_shape[2] or _SIDE

    def embed_faces(self, image: Image) -> Array:
        """Vectors [N, D] of the faces in a picture, the largest first. Raises CheckpointError, BackendError."""
        pixels = np.asarray(image.convert("RGB"))
        boxes, points = self._detect(pixels)
        order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")
        vectors = [self._recogniser.run(_as_input(_aligned(pixels, points[each]), 127.5))[0][0] for each in order]
        return np.stack(vectors) if vectors else np.zeros((0, 0), dtype=np.float32)

    def embed_main_face(self, image: Image) -> Array | None:
        """The vector [D] of the largest face; a picture that is all face is looked at with a border, too."""
        from PIL import ImageOps

        found = self.embed_faces(image)
        if not len(found):
            border = int(image.width * _BORDER), int(image.height * _BORDER)
            found = self.embed_faces(ImageOps.expand(image.convert("RGB"), border, (_GREY,) * 3))
        return found[0] if len(found) else None

    def _detect(self, pixels: Pixels) -> tuple[Array, Array]:
        """Boxes [N, 4] (left, top, right, bottom) and points [N, 5, 2] in pixels of a picture."""
        cv2 = _opencv()
        height, width = pixels.shape[:2]
        scale = self._side / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        square = np.zeros((self._side, self._side, 3), dtype=np.uint8)
        square[: size[1], : size[0]] = cv2.resize(pixels, size)
        outputs = self._detector.run(_as_input(square, 128.0))
        boxes, points, scores = _decoded(outputs, self._side, plain_text(self._detector.path))
        kept = without_overlaps(boxes, np.argsort(-scores, kind="stable"), _OVERLAP)
        return boxes[kept] / scale, points[kept] / scale


def _is_detector(network: OnnxNetwork) -> bool:
    return network.num_outputs == 3 * len(_STRIDES)


def _is_recogniser(network: OnnxNetwork) -> bool:
    return network.num_outputs == 1 and network.input_shape[2:] == (_FACE, _FACE)


def _only(folder: Path, what: str, found: Sequence[OnnxNetwork]) -> OnnxNetwork:
    if len(found) != 1:
        names = ", ".join(plain_text(each.path.name) for each in found) or "none"
        raise CheckpointError(f"{plain_text(folder)} must hold one {what}, and holds {names}; see insightface's packs")
    return found[0]


def _opencv() -> Any:
    return optional_package("cv2", "opencv-python-headless", what="Measures of faces", extra=_EXTRA)


def _as_input(pixels: Pixels, deviation: float) -> Array:
    """[1, 3, H, W], red, green, blue, about -1 to 1."""
    values = (pixels.astype(np.float32) - 127.5) / np.float32(deviation)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def _decoded(outputs: Sequence[Array], side: int, shown: str) -> tuple[Array, Array, Array]:
    """Boxes, points and scores of the sure ones, in pixels of the square: scores, boxes and points by strides come
    one after the other, distances in strides from the corner of a cell, two at each."""
    found = []
    for index, stride in enumerate(_STRIDES):
        cells = side // stride
        centres = np.stack(np.meshgrid(np.arange(cells), np.arange(cells)), axis=-1).reshape(-1, 1, 2) * stride
        corners = np.broadcast_to(centres, (cells * cells, _ANCHORS, 2)).reshape(-1, 2).astype(np.float32)
        parts = []
        for kind, width in enumerate((1, 4, 10)):
            values = outputs[kind * len(_STRIDES) + index]
            if values.size != len(corners) * width:
                raise CheckpointError(f"{shown} is another network than SCRFD: it gives {list(values.shape)}")
            parts.append(values.reshape(len(corners), width))
        scores, distances, offsets = parts[0][:, 0], parts[1] * stride, parts[2] * stride
        sure = scores >= _SURE
        boxes = np.concatenate([corners - distances[:, :2], corners + distances[:, 2:]], axis=1)
        points = corners[:, None] + offsets.reshape(-1, 5, 2)
        found.append((boxes[sure], points[sure], scores[sure]))
    boxes, points, scores = (np.concatenate(each) for each in zip(*found, strict=True))
    return boxes, points, scores


def similarity(points: NDArray[np.floating[Any]], target: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The turn, scale and shift [2, 3] that bring points [N, 2] nearest to those of the target, in least squares."""
    z, w = (each[:, 0] + 1j * each[:, 1] for each in (points.astype(np.float64), target.astype(np.float64)))
    spread = float((np.abs(z - z.mean()) ** 2).sum())
    turn = complex((np.conj(z - z.mean()) * (w - w.mean())).sum() / spread) if spread else 1.0 + 0j
    shift = complex(w.mean() - turn * z.mean())
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def _aligned(pixels: Pixels, points: Array) -> Pixels:
    """The face at five points, upright, [112, 112, 3]."""
    face: Pixels = _opencv().warpAffine(pixels, similarity(points, _POINTS), (_FACE, _FACE), borderValue=0.0)
    return face
