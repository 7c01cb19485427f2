"""Images, folders and videos as views, one at a time: only the small views stay in memory."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image
from torch import Tensor

from pi3.images import pictures_to_tensor
from wan_core import RequestError
from wan_core.files import IMAGE_ENDINGS, VIDEO_ENDINGS, folder_files, plain_name, plain_text
from wan_core.media import load_image, probe_video, stream_video, tensor_to_image

VIDEO_INTERVAL = 10
_ASPECT_TOLERANCE = 0.02
_LONGEST_NAME = 200  # bytes; disks take 255, endings and numbers included


@dataclass(frozen=True)
class Views:
    """``images`` [N, 3, H, W] in [0, 1], and a file name without ending per view."""

    images: Tensor
    names: tuple[str, ...]


def read_views(
    sources: Sequence[Path],
    *,
    interval: int | None,
    pixel_limit: int,
    patch_size: int,
    warn: Callable[[str], None],
) -> Views:
    """Views of images, one folder, or one video; the first image sets the size, the others are stretched to it.

    ``interval`` None is every tenth frame of a video and every image otherwise. Raises RequestError when nothing is
    there, and what the readers of wan-core raise.
    """
    names, aspects = list[str](), list[float]()

    def images() -> Iterator[Image.Image]:
        for name, image in _open_sources(sources, interval):
            names.append(name)
            aspects.append(image.width / image.height)
            yield image

    for path in _videos(sources):
        for note in probe_video(path).notes:
            warn(f"{path} {note}")
    views = pictures_to_tensor(images(), pixel_limit=pixel_limit, patch_size=patch_size)
    odd = [
        name for name, aspect in zip(names, aspects, strict=True) if abs(aspect / aspects[0] - 1) > _ASPECT_TOLERANCE
    ]
    if odd:
        warn(f"{len(odd)} of {len(names)} pictures have another shape than the first and are stretched ({odd[0]}, ...)")
    return Views(views, _unique(names))


def _open_sources(sources: Sequence[Path], interval: int | None) -> Iterator[tuple[str, Image.Image]]:
    videos = _videos(sources)
    folders = [path for path in sources if path.is_dir()]
    if (videos or folders) and len(sources) > 1:
        raise RequestError(
            f"{videos[0] if videos else folders[0]} must come alone; give pictures, or one folder or video"
        )
    if videos:
        return _video_frames(videos[0], VIDEO_INTERVAL if interval is None else interval)
    paths = folder_images(folders[0]) if folders else list(sources)
    return ((path.stem, load_image(path)) for path in paths[:: interval or 1])


def _videos(sources: Sequence[Path]) -> list[Path]:
    return [path for path in sources if path.suffix.lower() in VIDEO_ENDINGS and not path.is_dir()]


def folder_images(folder: Path) -> list[Path]:
    """The images of a folder in natural order. Raises RequestError when there is none, MediaError when unreadable."""
    found = folder_files(folder, IMAGE_ENDINGS)
    if not found:
        raise RequestError(f"folder {folder} has no pictures ({', '.join(IMAGE_ENDINGS[:4])}, ...)")
    return found


def _video_frames(path: Path, interval: int) -> Iterator[tuple[str, Image.Image]]:
    for index, frame in enumerate(islice(stream_video(path), 0, None, interval)):
        yield f"{path.stem}_{index * interval:06d}", tensor_to_image(frame)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """The same names, fit for lines of text and for endings of ours; numbered when two are one on some disk."""
    fit = [os.fsencode(plain_text(name))[:_LONGEST_NAME].decode(errors="ignore") for name in names]
    if len({plain_name(name).casefold() for name in fit}) == len(fit) and all(fit):
        return tuple(fit)
    return tuple(f"{index:04d}_{name}" for index, name in enumerate(fit))
