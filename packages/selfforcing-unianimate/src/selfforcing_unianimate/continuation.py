"""Going on from a video: its last frames, as whole blocks that the next block can see, are encoded and remembered."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from selfforcing_unianimate.causal_request import CausalRequest
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.pose_options import SAME_SPEED
from wan_core import RequestError, media
from wan_core.media import LatentSpec, VideoGeometry, plain_text
from wan_core.tasks import SamplingSettings, exact_geometry, prepare_anchor_images

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


@dataclass(frozen=True)
class Ending:
    """The last ``frames`` of a video of ``num_frames`` and ``fps``."""

    frames: list[Image.Image]
    num_frames: int
    fps: float

    @property
    def rounded_fps(self) -> int:
        """The whole rate that new frames come at."""
        return min(max(round(self.fps), 1), 240)


def seen_latents(blocks: FrameBlocks, available: int) -> int:
    """The most latent frames, of ``available``, that are whole blocks and that the block behind them sees; 0 if none.

    The window's sink is among them: they are the first frames of the video that is made.
    """
    most = available if blocks.window is None else min(available, blocks.window - blocks.size)
    alone = int(blocks.first_alone)
    return alone + (most - alone) // blocks.size * blocks.size if most >= alone else 0


def read_ending(path: Path, blocks: FrameBlocks, latent_spec: LatentSpec) -> Ending:
    """The frames at the end of a video that the next block sees.

    Raises RequestError for a video of too few frames and a window without room for any, MediaError for a file that
    cannot be read.
    """
    stride = latent_spec.temporal_stride
    if blocks.window is not None and not seen_latents(blocks, blocks.window):
        raise RequestError(
            f"to go on from a video a block must see another one: a window of {blocks.window} latent frames has no "
            f"room for two of {blocks.size}; give a larger --window"
        )
    longest = None if blocks.window is None else stride * (seen_latents(blocks, blocks.window) - 1) + 1
    last: deque[Image.Image] = deque(maxlen=longest)
    count = 0
    for frame in media.stream_video(path):
        last.append(media.tensor_to_image(frame))
        count += 1
    latent_frames = seen_latents(blocks, (count - 1) // stride + 1)
    if not latent_frames:
        least = stride * ((1 if blocks.first_alone else blocks.size) - 1) + 1
        raise RequestError(
            f"{plain_text(path)} has {count} frames, and going on from a video needs {least} at least, which make a "
            "block of latent frames"
        )
    return Ending([*last][-(stride * (latent_frames - 1) + 1) :], count, media.probe_video(path).fps)


def ending_notes(path: Path, ending: Ending, settings: SamplingSettings) -> Iterator[str]:
    """What of a video is seen, and a speed that is not its own."""
    if len(ending.frames) < ending.num_frames:
        yield f"of {plain_text(path)} the last {len(ending.frames)} of {ending.num_frames} frames are seen"
    if abs(ending.fps / settings.fps - 1) > SAME_SPEED:
        yield (
            f"{plain_text(path)} has {ending.fps:g} frames a second and the new frames come at {settings.fps:g}: what "
            f"moves does so {settings.fps / ending.fps:.2g} times as fast"
        )


def given_frames(
    request: CausalRequest, settings: SamplingSettings, layout: FrameBlocks, latent_spec: LatentSpec
) -> tuple[SamplingSettings, tuple[str, ...], Tensor | None, VideoGeometry]:
    """Settings, notes, what is given and the geometry: frames that are gone on from, then the picture, [N, 3, H, W].

    New frames come as fast as the given ones unless the request says otherwise.
    """
    exact, notes = exact_geometry(settings, latent_spec), tuple[str, ...]()
    given: list[Image.Image] = []
    num_frames = settings.num_frames
    if request.continue_from is not None:
        if num_frames == 1:
            raise RequestError("--frame-num counts from the last frame that is given, so 1 adds nothing; give more")
        ending = read_ending(request.continue_from, layout, latent_spec)
        given, num_frames = ending.frames, len(ending.frames) + num_frames - 1
        settings = settings if request.fps is not None else replace(settings, fps=ending.rounded_fps)
        notes = tuple(ending_notes(request.continue_from, ending, settings))
    if request.image is not None:
        given = [*given, media.load_image(request.image)]
    if not given:
        return settings, notes, None, exact
    images, geometry = prepare_anchor_images(given, exact.width * exact.height, num_frames, latent_spec)
    return settings, notes, images, geometry
