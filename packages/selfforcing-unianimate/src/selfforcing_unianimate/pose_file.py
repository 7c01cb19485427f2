"""Poses on disk: an ``.npz`` without pickles, checked when it is read as a stranger's file is."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfforcing_unianimate.keypoints import NUM_POINTS, Floats, Poses
from wan_core import MediaError, RequestError
from wan_core.drafts import write_bytes
from wan_core.files import DECODE_ERRORS, existing_file, plain_text
from wan_core.media import Provenance

VERSION = 1
MAX_FRAMES = 100_000
"""Of one file: 55 minutes at 30 frames a second."""
ALIGNMENTS = ("none", "reference", "validated")
"""How the driving poses were brought to the reference: not at all, as UniAnimate does, or minding hidden points."""

_SHAPES: Mapping[str, tuple[int, ...]] = {
    "body": (20, 2), "subset": (20,), "faces": (68, 2), "hands": (2, 21, 2), "scores": (NUM_POINTS,),
}  # fmt: skip
_REFERENCE = "reference_"
_MAX_BYTES = 1 << 30
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1
_MAX_TEXT = 1 << 20
_MAX_SIDE = 1 << 16
MAX_FPS = 1000.0
_FARTHEST = 100.0
"""Pictures that a point may be away: what is drawn stays in integers of 32 bits."""


@dataclass(frozen=True, kw_only=True)
class PoseFile:
    """What a pose file holds: the ``driving`` poses, of a video of ``size`` (width, height) in pixels and ``fps``.

    ``reference`` is one pose, None where there is none; ``alignment`` is one of ALIGNMENTS; ``provenance`` says how it
    was made.
    """

    driving: Poses
    reference: Poses | None
    size: tuple[int, int]
    fps: float
    alignment: str
    provenance: Provenance | None = None


def write_pose_file(poses: PoseFile, path: str | os.PathLike[str]) -> None:
    """Write an ``.npz``, whole or not at all. Raises RequestError for another ending, MediaError when it cannot be."""
    if Path(path).suffix.lower() != ".npz":
        raise RequestError(f"a pose file ends in .npz, got {plain_text(path)}")
    arrays: dict[str, NDArray[Any]] = {
        "version": np.array(VERSION),
        "size": np.array(poses.size),
        "fps": np.array(poses.fps),
        "alignment": np.array(poses.alignment),
    }
    if poses.provenance is not None:
        arrays["provenance"] = np.array(poses.provenance.to_json())
    for name in _SHAPES:
        arrays[name] = getattr(poses.driving, name)
        if poses.reference is not None:
            arrays[_REFERENCE + name] = getattr(poses.reference, name)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_bytes(path, content.getvalue())


def read_pose_file(path: str | os.PathLike[str]) -> PoseFile:
    """Read what :func:`write_pose_file` wrote.

    Raises RequestError when there is no such file, MediaError for one that is damaged, of another kind, or whose values
    make no sense.
    """
    file = existing_file(path, "pose file")
    try:
        return _pose_file(_arrays(file))
    except _WrongError as error:
        raise MediaError(f"{plain_text(file)} is no pose file: {error}; make one with 'sfu pose'") from error
    except (*DECODE_ERRORS, zipfile.BadZipFile, NotImplementedError) as error:
        raise MediaError(
            f"{plain_text(file)} is no pose file or damaged: {plain_text(error)[:100]}; make one with 'sfu pose'"
        ) from error


class _WrongError(Exception):
    """What is wrong with a pose file."""


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    known = {"version", "size", "fps", "alignment", "provenance", *_SHAPES, *(_REFERENCE + name for name in _SHAPES)}
    with zipfile.ZipFile(file) as archive:
        members = [each for each in archive.infolist() if each.filename.removesuffix(".npy") in known]
        if sum(each.file_size for each in members) > _MAX_BYTES:
            raise _WrongError(f"it would take more than {_MAX_BYTES >> 20} MiB")
        if any(each.compress_type not in _PACKINGS or each.flag_bits & _ENCRYPTED for each in members):
            raise _WrongError("it is packed in a way that numpy does not write")
        arrays = {}
        for each in members:
            content = archive.read(each)  # never more than the size that was counted
            arrays[each.filename.removesuffix(".npy")] = _array(content, each.filename)
    return arrays


def _array(content: bytes, name: str) -> NDArray[Any]:
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise _WrongError(f"{plain_text(name)} has another version of numpy's format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or dtype.kind not in "fiuU":
        raise _WrongError(f"{plain_text(name)} holds no numbers")
    size = dtype.itemsize
    for side in shape:
        size *= side
    if size != len(content) - stream.tell():
        raise _WrongError(f"{plain_text(name)} does not have the size that it says")
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))


def _pose_file(arrays: Mapping[str, NDArray[Any]]) -> PoseFile:
    version = _number(arrays, "version")
    if version != VERSION:
        raise _WrongError(f"its version is {version:g}, and {VERSION} is read here")
    alignment, fps = _text(arrays, "alignment"), _number(arrays, "fps")
    if alignment not in ALIGNMENTS:
        raise _WrongError(f"alignment is {plain_text(alignment)[:40]!r}, not one of {', '.join(ALIGNMENTS)}")
    if not 0 < fps <= MAX_FPS:
        raise _WrongError(f"fps is {fps:g}, not above 0 and at most {MAX_FPS:g}")
    driving = _poses(arrays, "")
    has_reference = any(name.startswith(_REFERENCE) for name in arrays)
    reference = _poses(arrays, _REFERENCE) if has_reference else None
    if reference is not None and len(reference) != 1:
        raise _WrongError(f"it holds {len(reference)} reference poses, not one")
    return PoseFile(
        driving=driving, reference=reference, size=_size(arrays), fps=fps, alignment=alignment,
        provenance=_provenance(arrays),
    )  # fmt: skip


def _poses(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Poses:
    values: dict[str, Floats] = {}
    for name, shape in _SHAPES.items():
        array = _member(arrays, prefix + name)
        if array.dtype.kind != "f" or array.shape[1:] != shape or not 1 <= len(array) <= MAX_FRAMES:
            wanted = ", ".join(str(side) for side in ("1 to 100,000 frames", *shape))
            raise _WrongError(f"{prefix}{name} is {array.dtype} {list(array.shape)}, not [{wanted}]")
        if not np.isfinite(array).all():
            raise _WrongError(f"{prefix}{name} holds NaN or infinity")
        values[name] = array.astype(np.float64)
    if len({len(array) for array in values.values()}) > 1:
        raise _WrongError("its arrays differ in their number of frames")
    for name in ("body", "faces", "hands"):
        if np.abs(values[name]).max() > _FARTHEST:
            raise _WrongError(f"{prefix}{name} holds points more than {_FARTHEST:g} pictures away")
    if not ((values["subset"] == -1) | (values["subset"] == np.arange(20))).all():
        raise _WrongError(f"{prefix}subset holds another number than a joint's own or -1")
    return Poses(**values)


def _member(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in arrays:
        raise _WrongError(f"it has no {name}")
    return arrays[name]


def _number(arrays: Mapping[str, NDArray[Any]], name: str) -> float:
    array = _member(arrays, name)
    if array.shape != () or array.dtype.kind not in "fiu":
        raise _WrongError(f"{name} is no single number")
    return float(array)


def _text(arrays: Mapping[str, NDArray[Any]], name: str) -> str:
    array = _member(arrays, name)
    if array.shape != () or array.dtype.kind != "U" or array.nbytes > _MAX_TEXT:
        raise _WrongError(f"{name} is no single text")
    return str(array)


def _size(arrays: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
    array = _member(arrays, "size")
    if array.shape != (2,) or array.dtype.kind not in "iu" or not (1 <= array.min() <= array.max() <= _MAX_SIDE):
        raise _WrongError(f"size is no width and height of 1 to {_MAX_SIDE} pixels")
    return int(array[0]), int(array[1])


def _provenance(arrays: Mapping[str, NDArray[Any]]) -> Provenance | None:
    if "provenance" not in arrays:
        return None
    try:
        return Provenance.from_json(_text(arrays, "provenance"))
    except ValueError:
        return None  # only for people
