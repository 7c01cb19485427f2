"""A driving motion from a pose file, a video or a folder of drawn skeletons, as the pictures that networks take."""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from wan_core import RequestError
from wan_core.files import IMAGE_ENDINGS, VIDEO_ENDINGS, folder_files, plain_text

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from selfforcing_unianimate.pose_file import PoseFile

REFERENCE_STEM = "pose"
"""Name, without its ending, of the picture with the reference skeleton in a folder."""


class PoseSource(Protocol):
    """Skeletons by number, of a picture of ``size`` (width, height) in pixels. ``fps`` is None where nothing says it.

    ``alignment`` is one of those of a pose file, ``has_reference`` whether there is a skeleton of the reference.
    """

    num_frames: int
    fps: float | None
    size: tuple[int, int]
    alignment: str
    has_reference: bool

    def pictures(self, indices: Sequence[int], width: int, height: int) -> Iterator[Tensor]:
        """The skeletons of these frames, in rising order, [3, height, width] uint8 as networks see them."""

    def reference(self, width: int, height: int) -> Tensor | None:
        """The skeleton of the reference, [height, width, 3] uint8; None where there is none."""


@dataclass(frozen=True)
class Skeletons:
    """What conditions a video: ``frames`` [3, T, H, W] and ``reference`` [H, W, 3] or None, uint8, 0..255."""

    frames: Tensor
    reference: Tensor | None


def open_pose(path: str | os.PathLike[str]) -> PoseSource:
    """The motion in a ``.npz`` of 'sfu pose', a video of drawn skeletons, or a folder of such pictures.

    In a folder the pictures are frames in natural order of their names, and one called ``pose`` is the reference's.
    Raises RequestError for another kind of file, MediaError for a damaged one.
    """
    place, shown = Path(path), plain_text(path)
    if place.is_dir():
        return _Folder(place)
    suffix = place.suffix.lower()
    if suffix == ".npz":
        from selfforcing_unianimate.pose_file import read_pose_file

        return _Drawn(read_pose_file(place))
    if suffix in VIDEO_ENDINGS:
        return _Clip(place)
    raise RequestError(f"pose {shown} must be an .npz of 'sfu pose', a video or a folder of drawn skeletons")


def frame_indices(
    total: int, count: int, *, interval: int = 1, start: int | None = 0, seed: int = 0
) -> tuple[int, ...]:
    """Which of ``total`` frames become ``count`` ones: every ``interval``-th from ``start`` on.

    With fewer than count * interval + 1 frames they begin at 0, every max(total // count, 1)-th is taken, and the last
    one repeats. ``start=None`` draws the beginning with ``seed``, as in training. Raises RequestError for numbers below
    1, or a start from which there are too few.
    """
    if min(total, count, interval) < 1:
        raise RequestError(f"frames and their interval must be at least 1, got {total}, {count} and {interval}")
    if total < count * interval + 1:
        if start:
            raise RequestError(f"from frame {start} on there are not {count} frames at interval {interval}: of {total}")
        step = max(total // count, 1)
        chosen = range(0, min(count * step, total), step)
        return (*chosen[:count], *([chosen[-1]] * (count - len(chosen))))
    last = total - count * interval - 1
    first = random.Random(seed).randint(0, last) if start is None else start
    if not 0 <= first <= last + 1:
        raise RequestError(f"a motion of {total} frames can begin at frame 0 to {last + 1}, got {first}")
    return tuple(range(first, first + count * interval, interval))


def skeletons(
    source: PoseSource,
    width: int,
    height: int,
    num_frames: int,
    *,
    interval: int = 1,
    start: int | None = 0,
    seed: int = 0,
) -> Skeletons:
    """The pictures for a video of ``num_frames`` frames, 4k+1, of this size; frames are chosen by `frame_indices`.

    Raises RequestError for another number of frames, MediaError for frames that cannot be read.
    """
    if num_frames < 1 or num_frames % 4 != 1:
        raise RequestError(f"a pose conditions 4k+1 frames, got {num_frames}")
    chosen = frame_indices(source.num_frames, num_frames, interval=interval, start=start, seed=seed)
    return Skeletons(chosen_pictures(source, chosen, width, height), source.reference(width, height))


def chosen_pictures(source: PoseSource, chosen: Sequence[int], width: int, height: int) -> Tensor:
    """The pictures of these frames, in rising order, some perhaps several times: [3, T, height, width] uint8.

    Raises MediaError for frames that cannot be read.
    """
    return SkeletonWindow(source, chosen, width, height).frames(0, len(chosen))


class SkeletonWindow:
    """The pictures ``chosen`` of a source, in rising order, read when they are asked for and forgotten behind that."""

    def __init__(self, source: PoseSource, chosen: Sequence[int], width: int, height: int) -> None:
        self._chosen = chosen
        self._pictures = source.pictures(tuple(dict.fromkeys(chosen)), width, height)
        self._held: deque[Tensor] = deque()
        self._start = 0

    @property
    def num_held(self) -> int:
        """How many pictures are held at present."""
        return len(self._held)

    def frames(self, start: int, stop: int) -> Tensor:
        """Frames ``start`` to ``stop`` [3, T, H, W] uint8; those before ``start`` cannot be asked for again.

        Raises MediaError for a picture that cannot be read.
        """
        import torch

        if start < self._start:
            raise ValueError(f"frames before {self._start} are forgotten, asked for {start}")
        for index in range(self._start + len(self._held), stop):
            repeats = index > 0 and self._chosen[index] == self._chosen[index - 1]
            self._held.append(self._held[-1] if repeats else next(self._pictures))
            self._forget(min(start, index))
        self._forget(start)
        return torch.stack([*self._held][: stop - start], dim=1)

    def _forget(self, before: int) -> None:
        while self._start < before:
            self._held.popleft()
            self._start += 1


class _Drawn:
    """The poses of a file, drawn when they are asked for."""

    def __init__(self, file: PoseFile) -> None:
        self.file = file
        self.num_frames = len(file.driving)
        self.fps: float | None = file.fps
        self.size = file.size
        self.alignment = file.alignment
        self.has_reference = file.reference is not None

    def pictures(self, indices: Sequence[int], width: int, height: int) -> Iterator[Tensor]:
        from selfforcing_unianimate.drawing import model_picture

        for index in indices:
            yield _tensor(model_picture(self.file.driving[index : index + 1], width, height)).permute(2, 0, 1)

    def reference(self, width: int, height: int) -> Tensor | None:
        from selfforcing_unianimate.drawing import model_picture

        return None if self.file.reference is None else _tensor(model_picture(self.file.reference, width, height))


class _Clip:
    """A video of drawn skeletons."""

    alignment = "none"
    has_reference = False

    def __init__(self, path: Path) -> None:
        from wan_core.media import count_frames, probe_video

        self.path = path
        info = probe_video(path)
        self.fps: float | None = info.fps
        self.size = info.width, info.height
        self.num_frames = count_frames(path)

    def pictures(self, indices: Sequence[int], width: int, height: int) -> Iterator[Tensor]:
        from wan_core.media import stream_video, tensor_to_image

        wanted = iter(indices)
        index = next(wanted, None)
        for number, frame in enumerate(stream_video(self.path)):
            if number == index:
                yield _fitted(tensor_to_image(frame), width, height).permute(2, 0, 1)
                index = next(wanted, None)
            if index is None:
                return

    def reference(self, width: int, height: int) -> Tensor | None:
        return None


class _Folder:
    """Pictures of drawn skeletons."""

    fps: float | None = None
    alignment = "none"

    def __init__(self, path: Path) -> None:
        from wan_core.media import load_image

        files = folder_files(path, IMAGE_ENDINGS)
        self._reference = next((file for file in files if file.stem.lower() == REFERENCE_STEM), None)
        self._files = [file for file in files if file != self._reference]
        self.num_frames = len(self._files)
        if not self._files:
            raise RequestError(f"folder {plain_text(path)} holds no pictures of skeletons, such as 0001.jpg")
        self.size = load_image(self._files[0]).size
        self.has_reference = self._reference is not None

    def pictures(self, indices: Sequence[int], width: int, height: int) -> Iterator[Tensor]:
        for index in indices:
            yield _read(self._files[index], width, height).permute(2, 0, 1)

    def reference(self, width: int, height: int) -> Tensor | None:
        return None if self._reference is None else _read(self._reference, width, height)


def _read(path: Path, width: int, height: int) -> Tensor:
    from wan_core.media import load_image

    return _fitted(load_image(path), width, height)


def _fitted(image: Image.Image, width: int, height: int) -> Tensor:
    """A picture stretched to a size, bilinearly: [H, W, 3] uint8."""
    import numpy as np
    from PIL import Image

    return _tensor(np.array(image.resize((width, height), Image.Resampling.BILINEAR)))


def _tensor(pixels: object) -> Tensor:
    import torch

    return torch.as_tensor(pixels)
