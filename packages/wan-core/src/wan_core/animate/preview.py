"""A strip of what was prepared, to look at before anything is generated from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image

from wan_core.animate.driving import DrivingVideo
from wan_core.media import contact_sheet, stream_video, tensor_to_image

_COLUMNS = 8
_CELL_WIDTH = 240


def preview_sheet(video: DrivingVideo, files: Mapping[str, Path]) -> Image.Image:
    """Up to eight frames of the driving ``video`` in a row, and below each what the prepared videos have there."""
    count = min(_COLUMNS, len(video))
    places = [index * len(video) // count for index in range(count)]
    cells = [Image.fromarray(frame) for frame in video.frames(places)]
    for path in files.values():
        if path.suffix == ".mp4":
            cells += _frames(path, places)
    return contact_sheet(cells, count, cell_width=_CELL_WIDTH)


def _frames(path: Path, places: list[int]) -> Iterator[Image.Image]:
    for index, frame in enumerate(stream_video(path)):
        if index in places:
            yield tensor_to_image(frame)
