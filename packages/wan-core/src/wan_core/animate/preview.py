"""A strip of what was prepared, to look at before anything is generated from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from wan_core.animate.driving_video import DrivingVideo
from wan_core.media import VideoFrames, contact_sheet, tensor_to_image

_COLUMNS = 8
_CELL_WIDTH = 240


def preview_sheet(video: DrivingVideo, files: Mapping[str, Path]) -> Image.Image:
    """Up to eight frames of the driving ``video`` in a row, and below each what the prepared videos have there."""
    count = min(_COLUMNS, len(video))
    places = [index * len(video) // count for index in range(count)]
    cells = [Image.fromarray(frame) for frame in video.frames(places)]
    for path in files.values():
        if path.suffix == ".mp4":
            cells += map(tensor_to_image, VideoFrames(path).frames(places))
    return contact_sheet(cells, count, cell_width=_CELL_WIDTH)
