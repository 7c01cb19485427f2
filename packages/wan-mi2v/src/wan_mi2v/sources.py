"""Where the images come from: files, folders in the order of their names, frames of a video, or memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wan_core import RequestError, media
from wan_core.files import IMAGE_ENDINGS, folder_files
from wan_core.media import plain_text
from wan_mi2v.request import FrameRange, MI2VRequest, parse_frames

if TYPE_CHECKING:
    from PIL import Image


class NamedImage(NamedTuple):
    """An image and the name that people know it by."""

    name: str
    image: Image.Image


class Room(NamedTuple):
    """How many images a video takes: at most ``limit``; each further one needs ``frames_per_image`` more frames."""

    limit: int
    unit: str
    frames_per_image: int

    def check(self, count: int, *, is_more: bool = False) -> None:
        """Raises ``RequestError`` when ``count`` images (or more, where ``is_more``) are too many."""
        if count <= self.limit:
            return
        total = f"more than {count - 1}" if is_more else f"{count}"
        enough = self.frames_per_image * (count - 1) + 1
        enlarge = "a larger --frame-num" if is_more else f"--frame-num {enough}"
        raise RequestError(
            f"{total} pictures do not fit into {self.limit} {self.unit}; use {enlarge} or fewer pictures"
        )


def read_images(request: MI2VRequest, room: Room) -> list[NamedImage]:
    """All images of a request in order; counted before they are read.

    Raises ``RequestError`` (missing files, empty folders, too many, frames that a video does not have) or
    ``MediaError`` (unreadable files).
    """
    if request.clip is not None:
        chosen = parse_frames(request.frames or ":")
        return read_clip(request.clip, chosen, room)
    if request.pictures:
        room.check(len(request.pictures))
        return [NamedImage(f"picture {index}", image) for index, image in enumerate(request.pictures)]
    paths = list_images(request.images)
    room.check(len(paths))
    return [NamedImage(plain_text(path.name), media.load_image(path)) for path in paths]


def list_images(paths: Sequence[Path]) -> list[Path]:
    """The files that ``paths`` name: folders are replaced by the images in them, numbers in names counted as such.

    Raises ``RequestError`` for a folder without images, ``MediaError`` for one that cannot be read.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        files = folder_files(path, (*IMAGE_ENDINGS, ".gif"))
        if not files:
            raise RequestError(f"folder {plain_text(path)} has no pictures; files like .png, .jpg or .webp count")
        found += files
    return found


def read_clip(path: Path, chosen: FrameRange, room: Room) -> list[NamedImage]:
    """Frames of a video; no more of it is decoded than needed. Raises as :func:`read_pictures` does."""
    start, stop, step = chosen
    if stop is not None:
        room.check(len(range(start, stop, step)))
    frames = list(islice(media.stream_video(path), start, stop, step)) if stop is not None else []
    if stop is None:
        frames = list(islice(media.stream_video(path), start, start + step * (room.limit + 1), step))
        room.check(len(frames), is_more=True)
    if not frames or (stop is not None and len(frames) < len(range(start, stop, step))):
        total = media.probe_video(path).num_frames
        has = "fewer" if total is None else str(total)
        asked = f"{start}:{'' if stop is None else stop}"
        raise RequestError(f"video {plain_text(path)} has {has} frames, --frames {asked} asks for others")
    return [
        NamedImage(f"{plain_text(path.name)} {start + step * index}", media.tensor_to_image(frame))
        for index, frame in enumerate(frames)
    ]
