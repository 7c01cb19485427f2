"""First and last frame to video: both images as channels beside the noisy latents, and through CLIP."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from PIL import Image
from torch import Tensor

from wan_core.errors import RequestError
from wan_core.media import LatentSpec, VideoGeometry, fit_cover, image_to_tensor, load_image, stretch_bicubic
from wan_core.tasks.base import Clip, Components, Conditioning, GenerationRequest, SamplingSettings, Task, TaskInputs
from wan_core.tasks.i2v import (
    channel_conditioning,
    first_frame_mask,
    first_frame_video,
    geometry_for_area,
    image_states,
    joined_channels,
)

_SAME_ASPECT = 1.01


@dataclass(frozen=True, kw_only=True)
class FLF2VRequest(GenerationRequest):
    """A prompt, the first and the last frame. ``width`` x ``height`` is the area; the first gives the aspect ratio."""

    first_frame: Path | None = field(
        default=None, metadata={"option": ("--first-frame",), "help": "The image that the video starts with."}
    )
    last_frame: Path | None = field(
        default=None, metadata={"option": ("--last-frame",), "help": "The image that it ends with."}
    )


@dataclass(frozen=True, kw_only=True)
class FLF2VInputs(TaskInputs):
    """``ends``: the first and the last image [3, H, W] in [-1, 1], each at its own size, the last one cropped."""

    ends: tuple[Tensor, Tensor]


class FirstLastFrameToVideo(Task):
    """Wan2.1 FLF2V-14B (arXiv 2503.20314): the network knows by a learned position which image a CLIP token is of."""

    request_type: ClassVar[type[GenerationRequest]] = FLF2VRequest

    def load(self, request: GenerationRequest, settings: SamplingSettings, latent_spec: LatentSpec) -> FLF2VInputs:
        paths = getattr(request, "first_frame", None), getattr(request, "last_frame", None)
        if paths[0] is None or paths[1] is None:
            missing = "--first_frame" if paths[0] is None else "--last_frame"
            raise RequestError(f"this task leads from one image to another; give {missing} PATH too")
        first, last = load_image(paths[0]), load_image(paths[1])
        geometry = geometry_for_area(first, settings, latent_spec)
        last, notes = _with_aspect_of(first, last)
        ends = image_to_tensor(first), image_to_tensor(last)
        return FLF2VInputs(request=request, settings=settings, geometry=geometry, ends=ends, notes=notes)

    def condition(self, inputs: TaskInputs, components: Components, clip: Clip) -> Conditioning:
        if not isinstance(inputs, FLF2VInputs):
            raise TypeError(f"inputs must be FLF2VInputs, got {type(inputs).__name__}")
        video, mask = first_last_video(*inputs.ends, inputs.geometry), first_last_mask(inputs.geometry)
        return channel_conditioning(inputs, components, video, mask, image_states(inputs.ends, components))

    def channels(self, latent_spec: LatentSpec) -> tuple[int, int]:
        return joined_channels(latent_spec)


def first_last_video(first: Tensor, last: Tensor, geometry: VideoGeometry) -> Tensor:
    """The video that is encoded as condition: both stretched images with mid-grey between, [1, 3, F, H, W]."""
    video = first_frame_video(first, geometry)
    video[:, :, -1] = stretch_bicubic(last, geometry.height, geometry.width)
    return video


def first_last_mask(geometry: VideoGeometry) -> Tensor:
    """[1, stride, T, h, w]: 1 where a pixel frame is given, one channel per pixel frame of a latent frame.

    The first pixel frame is a latent frame of its own and fills all channels of it.
    """
    mask = first_frame_mask(geometry, geometry.spec.temporal_stride)
    mask[:, -1, -1] = 1
    return mask


def _with_aspect_of(first: Image.Image, last: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """The last image with the aspect of the first, its middle cut out, and what to tell the user."""
    wanted, found = first.width / first.height, last.width / last.height
    if max(wanted / found, found / wanted) <= _SAME_ASPECT:
        return last, ()
    width = min(last.width, max(1, round(last.height * wanted)))
    height = min(last.height, max(1, round(last.width / wanted)))
    note = (
        f"the last frame has another shape than the first; {width}x{height} of its {last.width}x{last.height} are used"
    )
    return fit_cover(last, width, height), (note,)
