"""The masks of a whole driving video, chunk by chunk; those of finished chunks are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from wan_core.animate.driving_video import Counted, DrivingVideo
from wan_core.animate.sam2 import Mask, MaskTracker, Prompt, chunks, key_frames, prompt_points
from wan_core.media import VideoFrames

if TYPE_CHECKING:
    from wan_core.animate.persons import Progress, Sighting
    from wan_core.kept_clips import KeptParts

_MASKS = "masks"


def make_masks(
    video: DrivingVideo,
    sightings: Sequence[Sighting],
    kept: KeptParts,
    load: Callable[[], MaskTracker],
    progress: Progress,
) -> None:
    """Follow the person of each frame's sighting through the chunks that are not ``kept``, and keep their masks.

    ``load`` makes the tracker when one is needed.
    """
    import torch

    tracker: MaskTracker | None = None
    parts, marked, followed = chunks(len(video)), VideoFrames(video.path), VideoFrames(video.path)
    for number, chunk in enumerate(parts):
        if _packed(video, kept, number, len(chunk)) is not None:
            continue
        tracker = tracker or load()
        keys = [chunk[offset] for offset in key_frames(len(chunk))]
        prompts = {
            key - chunk.start: Prompt(frame, prompt_points(sightings[key].points))
            for key, frame in zip(keys, video.frames(keys, read_on=marked), strict=True)
        }
        phase = "masks" if len(parts) == 1 else f"masks {number + 1}/{len(parts)}"
        frames = progress(Counted(video.frames(chunk, read_on=followed), len(chunk)), phase)
        packed = [np.packbits(mask, axis=1) for mask in tracker.masks(frames, len(chunk), prompts)]
        kept.write(number, {_MASKS: torch.from_numpy(np.stack(packed))})


def kept_masks(video: DrivingVideo, kept: KeptParts) -> Iterator[Mask]:
    """The masks [H, W] of all frames, from what `make_masks` kept."""
    for number, chunk in enumerate(chunks(len(video))):
        packed = _packed(video, kept, number, len(chunk))
        if packed is None:
            raise FileNotFoundError(f"part {number} of {kept.folder} is gone")
        yield from (np.unpackbits(each, axis=1, count=video.size.width) for each in packed)


def _packed(video: DrivingVideo, kept: KeptParts, number: int, length: int) -> Mask | None:
    """The masks of one chunk, eight pixels in a byte."""
    found = kept.read(number, {_MASKS: (length, video.size.height, -(-video.size.width // 8))})
    return None if found is None else np.asarray(found[_MASKS].numpy(), dtype=np.uint8)
