"""Training clips from a folder: which videos, their captions, and their frames at the size and rate to train on.

A folder has ``metadata.csv`` or ``metadata.jsonl`` with the columns ``file`` and ``caption`` and, if wanted, ``image``,
``start`` and ``end`` (seconds); or, without such a file, videos beside text files of the same name, or WebDataset
shards (`wan_core.training.tar_shards`).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from wan_core.errors import ConfigError, MediaError, RequestError, WanError
from wan_core.files import VIDEO_ENDINGS, folder_files, plain_name
from wan_core.media import best_output_size, fit_cover, image_to_tensor, load_image, probe_video, read_video
from wan_core.training.tar_shards import Member, read_groups

COLUMNS = ("file", "caption", "image", "start", "end")
_METADATA = ("metadata.csv", "metadata.jsonl")


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """The clips to train on: ``num_frames`` (4n+1) at ``fps``, about ``area`` pixels in whole ``multiple`` steps.

    Each video gets the size of that area which fits its aspect ratio best: its bucket. Raises ConfigError.
    """

    num_frames: int
    fps: float
    area: int
    multiple: int = 16

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.num_frames % 4 != 1:
            lower = max(1, (self.num_frames - 1) // 4 * 4 + 1)
            raise ConfigError(f"num_frames must be 4n+1, got {self.num_frames}; nearest are {lower} and {lower + 4}")
        if self.fps <= 0 or self.multiple < 1 or self.area < self.multiple**2:
            raise ConfigError(
                f"fps and multiple must be positive and area at least multiple squared, got {self.fps}, "
                f"{self.multiple} and {self.area}"
            )


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training clip: a video, its caption, the part of it in seconds, perhaps another first image.

    ``packed`` and ``packed_image`` say where the files lie inside a tar file; ``file`` and ``image`` are names then.
    ``frames`` [3, F, H, W] in [-1, 1] are those of ``file`` where they are in memory already, ``latents`` reads encoded
    ones [C, T, h, w] where there are some.
    """

    file: Path
    caption: str
    image: Path | None = None
    start: float = 0.0
    end: float | None = None
    packed: Member | None = None
    packed_image: Member | None = None
    frames: Tensor | None = None
    latents: Callable[[], Tensor] | None = None

    def size(self) -> int:
        """The size of the video file in bytes."""
        return self.file.stat().st_size if self.packed is None else self.packed.size

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """The video as a file on the disk, for as long as it is needed. Raises MediaError."""
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


def find_examples(folder: str | Path) -> list[Example]:
    """The examples of a folder, in a fixed order; every named file exists, none is opened.

    Raises RequestError naming the first thing that is wrong: no folder, no examples, unknown columns, a line without
    file or caption, a missing file, a text file without video, a video without text file, an empty part.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder}; give the folder with the videos and their captions")
    metadata = [folder / name for name in _METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise RequestError(f"{folder} has both {_METADATA[0]} and {_METADATA[1]}; keep one")
    shards = sorted(folder.glob("*.tar"))
    if metadata:
        examples = list(_from_metadata(metadata[0]))
    else:
        examples = [*_from_text_files(folder), *(each for shard in shards for each in _from_shard(shard))]
    if not examples:
        raise RequestError(
            f"{folder} has no examples; it needs {' or '.join(_METADATA)}, or videos with .txt files, or .tar shards"
        )
    return examples


def _from_shard(archive: Path) -> Iterator[Example]:
    for group in read_groups(archive, VIDEO_ENDINGS):
        place = str(group.video)
        caption = str(group.values.get("caption") or "").strip()
        if not caption:
            raise RequestError(f"{place} has no caption; it needs a .txt, or a .json with one")
        start, end = _part(group.values, place)
        image = None if group.image is None else Path(group.image.name)
        yield Example(
            file=Path(group.video.name), caption=caption, image=image, start=start, end=end,
            packed=group.video, packed_image=group.image,
        )  # fmt: skip


def _from_metadata(path: Path) -> Iterator[Example]:
    for number, row in _rows(path):
        place = f"{path.name}, line {number}"
        unknown = sorted(set(row) - set(COLUMNS))
        if unknown:
            raise RequestError(f"{place}: unknown column {unknown[0]!r}; columns are {', '.join(COLUMNS)}")
        for name in ("file", "caption"):
            if not str(row.get(name) or "").strip():
                raise RequestError(f"{place}: {name} is missing")
        start, end = _part(row, place)
        yield Example(
            file=_existing(path.parent / str(row["file"]), place),
            caption=str(row["caption"]).strip(),
            image=_existing(path.parent / str(row["image"]), place) if row.get("image") else None,
            start=start,
            end=end,
        )


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read {path}: {error}; it must be UTF-8 text") from error
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))  # a quoted caption may have several lines
        for row in reader:
            if None in row:
                raise RequestError(f"{path.name}, line {reader.line_num}: more values than columns; quote commas")
            yield reader.line_num, row
        return
    for number, line in enumerate(text.split("\n"), 1):  # JSON strings may hold other line separators
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise RequestError(f"{path.name}, line {number}: {error}; each line must be one JSON object") from error
        if not isinstance(values, dict):
            raise RequestError(f"{path.name}, line {number}: each line must be one JSON object")
        yield number, values


def _part(row: Mapping[str, Any], place: str) -> tuple[float, float | None]:
    start, end = _seconds(row, "start", place) or 0.0, _seconds(row, "end", place)
    if start < 0 or (end is not None and end <= start):
        raise RequestError(f"{place}: start must be at least 0 and below end, got {start} and {end}")
    return start, end


def _seconds(row: Mapping[str, Any], name: str, place: str) -> float | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise RequestError(f"{place}: {name} must be seconds, got {value!r}")
    return seconds


def _existing(path: Path, place: str) -> Path:
    if path.is_file():
        return path
    for other in folder_files(path.parent, {path.suffix.lower()}) if path.parent.is_dir() else []:
        if plain_name(other.name) == plain_name(path.name):
            return other
    raise RequestError(f"{place}: there is no file {path}")


def _from_text_files(folder: Path) -> Iterator[Example]:
    videos = {plain_name(path.stem): path for path in folder_files(folder, VIDEO_ENDINGS)}
    texts = {plain_name(path.stem): path for path in folder_files(folder, {".txt"})}
    lonely = sorted(set(videos) ^ set(texts))
    if lonely and videos:
        name = lonely[0]
        what = f"{texts[name].name} has no video" if name in texts else f"{videos[name].name} has no caption {name}.txt"
        raise RequestError(f"{folder}: {what} ({len(lonely)} such files)")
    for name, video in videos.items():
        caption = texts[name].read_text(encoding="utf-8", errors="replace").strip()
        if not caption:
            raise RequestError(f"{texts[name]} is empty; it must hold the caption")
        yield Example(file=video, caption=caption)


def bucket(example: Example, settings: ClipSettings) -> tuple[int, int]:
    """The (width, height) that an example is trained at. Raises what `probe_video` raises."""
    if example.frames is not None:
        return example.frames.shape[3], example.frames.shape[2]
    with example.opened() as path:
        info = probe_video(path)
    size = best_output_size(info.width, info.height, settings.multiple, settings.multiple, settings.area)
    return size[0], size[1]


def check_example(example: Example, settings: ClipSettings) -> None:
    """Check that a video can be read and, as far as the file tells, is long enough. Raises what `load_clip` raises."""
    if example.frames is not None:
        return
    with example.opened() as path:
        info = probe_video(path)
    best_output_size(info.width, info.height, settings.multiple, settings.multiple, settings.area)
    if info.seconds is None:
        return
    part = min(info.seconds, example.end or info.seconds) - example.start
    if part <= (settings.num_frames - 1) / settings.fps - 1 / settings.fps:
        raise _too_short(example, max(0, int(part * settings.fps)), settings)


def _too_short(example: Example, frames: int, settings: ClipSettings) -> MediaError:
    needed = settings.num_frames / settings.fps
    return MediaError(
        f"{example.packed or example.file} has {frames} frames at {settings.fps:g} fps from second {example.start:g}; "
        f"{settings.num_frames} frames need {needed:.2f} s"
    )


def load_clip(example: Example, settings: ClipSettings) -> Tensor:
    """The frames of an example ``[3, num_frames, H, W]`` in [-1, 1], cut from its start.

    Raises MediaError for a video that is unreadable or too short, saying how long it would have to be.
    """
    if example.frames is not None:
        return example.frames
    with example.opened() as path:
        video = read_video(path, start=example.start, end=example.end, fps=settings.fps, max_frames=settings.num_frames)
    if len(video.frames) < settings.num_frames:
        raise _too_short(example, len(video.frames), settings)
    height, width = video.frames.shape[2:]
    size = best_output_size(width, height, settings.multiple, settings.multiple, settings.area)
    return torch.stack([_fit(frame, size[0], size[1]) for frame in video.frames], dim=1)


def load_first_image(example: Example, clip: Tensor) -> Tensor:
    """The image ``[3, H, W]`` that a clip ``[3, F, H, W]`` starts from: the example's image, or the first frame."""
    with example.opened_image() as path:
        if path is None:
            return clip[:, 0]
        return image_to_tensor(fit_cover(load_image(path), clip.shape[3], clip.shape[2]))


def _fit(frame: Tensor, width: int, height: int) -> Tensor:
    return image_to_tensor(fit_cover(Image.fromarray(frame.permute(1, 2, 0).numpy()), width, height))
