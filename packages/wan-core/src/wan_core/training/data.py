"""Training clips: the size, rate and length that videos and images are trained at, and their frames.

An image is a clip of one frame. What a folder has is found in `wan_core.training.folders`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from wan_core.errors import ConfigError, MediaError, RequestError, WanError
from wan_core.files import IMAGE_ENDINGS
from wan_core.media import (
    best_output_size,
    count_frames,
    fit_cover,
    image_to_tensor,
    load_image,
    probe_video,
    read_video,
)
from wan_core.tasks import ExampleFiles
from wan_core.training.clip_rules import ClipRule
from wan_core.training.tar_shards import Member


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """The clips to train on: ``num_frames`` (4n+1) at ``fps``, about ``area`` pixels in whole ``multiple`` steps.

    Each video and image gets the size of that area which fits its aspect ratio best: its bucket. Raises ConfigError.
    """

    num_frames: int
    fps: float
    area: int
    multiple: int = 16

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.num_frames % 4 != 1:
            lower = max(1, (self.num_frames - 1) // 4 * 4 + 1)
            raise ConfigError(f"num_frames must be 4n+1, got {self.num_frames}; nearest are {lower} and {lower + 4}")
        if not 0 < self.fps < math.inf or self.multiple < 1 or self.area < self.multiple**2:
            raise ConfigError(
                f"fps and multiple must be positive and area at least multiple squared, got {self.fps}, "
                f"{self.multiple} and {self.area}"
            )


@dataclass(frozen=True, kw_only=True)
class Example:
    """A video or an image to train on, its caption, the part of it in seconds, perhaps another first image.

    ``clips`` are those to cut from it, ``repeats`` how often an epoch shows each. `check_example` gives one example for
    each clip, with its ``shape``: frames, height, width, and ``notes`` on how it was found and is read.
    ``packed`` and ``packed_image`` say where the files lie inside a tar file; ``file`` and ``image`` are names then.
    ``frames`` [3, F, H, W] in [-1, 1] are those of ``file`` where they are in memory already, ``latents`` reads encoded
    ones [C, T, h, w] where there are some. ``files`` are those that the model's task needs besides, by name.
    """

    file: Path
    caption: str
    image: Path | None = None
    start: float = 0.0
    end: float | None = None
    clips: ClipRule = field(default_factory=ClipRule)
    repeats: int = 1
    shape: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()
    packed: Member | None = None
    packed_image: Member | None = None
    frames: Tensor | None = None
    latents: Callable[[], Tensor] | None = None
    files: Mapping[str, Path] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """The file, for messages."""
        return str(self.packed or self.file)

    @property
    def is_image(self) -> bool:
        """Whether it is an image, a clip of one frame."""
        return self.frames is None and self.file.suffix.lower() in IMAGE_ENDINGS

    def size(self) -> int:
        """The size of the file in bytes."""
        return self.file.stat().st_size if self.packed is None else self.packed.size

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """The video or image as a file on the disk, for as long as it is needed. Raises MediaError."""
        if self.packed is None:
            yield self.file
            return
        with self.packed.unpacked() as path:
            try:
                yield path
            except WanError as error:
                raise type(error)(str(error).replace(str(path), str(self.packed))) from error

    @contextmanager
    def opened_image(self) -> Iterator[Path | None]:
        """The first image as a file on the disk, if there is one of its own. Raises MediaError."""
        if self.packed_image is None:
            yield self.image
            return
        with self.packed_image.unpacked() as path:
            yield path


def check_example(example: Example, settings: ClipSettings, seed: int = 0) -> list[Example]:
    """The clips that an example gives, each with its ``shape``: everything is read once, as `load_clip` will.

    Raises what `load_clip` and `load_first_image` raise.
    """
    if example.frames is not None:
        return [replace(example, shape=tuple(example.frames.shape[1:]))]
    notes = example.notes
    with example.opened() as path:
        if example.is_image:
            width, height = _still(example, path).size
            count = 1
        else:
            info = probe_video(path)
            width, height = info.width, info.height
            notes += tuple(f"{example.name} {note}" for note in info.notes)
            limit = settings.num_frames if example.clips.way in ("head", "full") else None
            count = count_frames(path, start=example.start, end=example.end, fps=settings.fps, max_frames=limit)
    width, height = best_output_size(width, height, settings.multiple, settings.multiple, settings.area)
    if example.image is not None:
        with example.opened_image() as image:
            load_image(image or example.image)
    length = _trained_frames(example, count, settings)
    starts = example.clips.starts(count, length, f"{seed}/{example.file.name}/{example.start}")
    shape = length, height, width
    return [replace(example, start=example.start + start / settings.fps, shape=shape, notes=notes) for start in starts]


def beside_clip(example: Example, settings: ClipSettings) -> ExampleFiles | None:
    """What a task is told of the further files of an example; None without any."""
    if not example.files:
        return None
    with example.opened_image() as path:
        picture = None if path is None else load_image(path).size
    return ExampleFiles(paths=example.files, start=example.start, fps=settings.fps, picture=picture)


def _still(example: Example, path: Path) -> Image.Image:
    """The image of an example that is one: a part or an animation is of a video."""
    if example.start or example.end is not None:
        raise RequestError(f"{example.name} is an image; start and end are for videos")
    image = load_image(path)
    with Image.open(path) as file:
        if getattr(file, "is_animated", False) and file.format != "MPO":  # phones add a map of brightness so
            raise RequestError(f"{example.name} has several frames; save it as .mp4, or one frame of it as an image")
    return image


def _trained_frames(example: Example, count: int, settings: ClipSettings) -> int:
    """How many frames an example that has ``count`` is trained with: one more where its last frame can be held.

    Raises MediaError when that is too few.
    """
    if example.is_image:
        return 1
    if example.clips.way == "full":
        return min(count // 4 * 4 + 1, settings.num_frames)
    if count < settings.num_frames - 1:
        raise MediaError(
            f"{example.name} has {count} frames at {settings.fps:g} fps from second {example.start:g}; "
            f"{settings.num_frames} frames need {settings.num_frames / settings.fps:.2f} s"
        )
    return settings.num_frames


def load_clip(example: Example, settings: ClipSettings) -> Tensor:
    """The frames of an example ``[3, F, H, W]`` in [-1, 1], cut from its start; F is 1 for an image.

    A video that is short by less than one frame shows its last frame once more. Raises MediaError for one that is
    unreadable or shorter, saying how long it would have to be.
    """
    if example.frames is not None:
        return example.frames
    if example.is_image:
        with example.opened() as path:
            image = load_image(path)
        return _fit(image, settings)[:, None]
    part: dict[str, Any] = {"start": example.start, "end": example.end}
    with example.opened() as path:
        frames = read_video(path, **part, fps=settings.fps, max_frames=settings.num_frames).frames
        length = _trained_frames(example, len(frames), settings)
        if length > len(frames):
            frames = torch.cat([frames, _last_frame(path, frames, **part, fps=settings.fps)])
    fitted = [_fit(Image.fromarray(frame.permute(1, 2, 0).numpy()), settings) for frame in frames[:length]]
    return torch.stack(fitted, dim=1)


def _last_frame(path: Path, frames: Tensor, *, start: float, end: float | None, fps: float) -> Tensor:
    """The last frame [1, 3, H, W] of a part whose ``frames`` at a rate are all there are: one after them, if any."""
    try:
        return read_video(path, start=start + (len(frames) - 1) / fps, end=end).frames[-1:]
    except RequestError:
        return frames[-1:]


def load_first_image(example: Example, clip: Tensor) -> Tensor:
    """The image ``[3, H, W]`` that a clip ``[3, F, H, W]`` starts from: the example's image, or the first frame."""
    with example.opened_image() as path:
        if path is None:
            return clip[:, 0]
        return image_to_tensor(fit_cover(load_image(path), clip.shape[3], clip.shape[2]))


def _fit(image: Image.Image, settings: ClipSettings) -> Tensor:
    size = best_output_size(image.width, image.height, settings.multiple, settings.multiple, settings.area)
    return image_to_tensor(fit_cover(image, size[0], size[1]))
