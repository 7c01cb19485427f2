"""First and last frame to video: both images as channels beside the noisy latents, and through CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from wan_core import media
from wan_core.errors import RequestError
from wan_core.media import LatentSpec, VideoGeometry
from wan_core.tasks.base import Clip, Components, TaskInputs
from wan_core.tasks.conditioning import Conditioning
from wan_core.tasks.i2v import (
    ChannelVideo,
    encode_grey_channels,
    first_frame_mask,
    first_frame_video,
    geometry_for_area,
    image_key,
    image_states,
)
from wan_core.tasks.learning import TrainingClip
from wan_core.tasks.request import GenerationRequest, SamplingSettings

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

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
class FLF2VInputs(TaskInputs[FLF2VRequest]):
    """``ends``: the first and the last image [3, H, W] in [-1, 1], each at its own size, the last one cropped."""

    ends: tuple[Tensor, Tensor]


class FirstLastFrameToVideo(ChannelVideo[FLF2VRequest, FLF2VInputs]):
    """Wan2.1 FLF2V-14B (arXiv 2503.20314): the network knows by a learned position which image a CLIP token is of."""

    request_type: ClassVar[type[GenerationRequest]] = FLF2VRequest
    prompt_kind: ClassVar[str] = "flf2v"
    conditions: ClassVar[str | None] = "flf2v"
    learns_from_images: ClassVar[bool] = False

    def prompt_images(self, inputs: FLF2VInputs) -> Sequence[Path | Image.Image]:
        ends = inputs.request.first_frame, inputs.request.last_frame
        return [each for each in ends if each is not None]

    def load(self, request: FLF2VRequest, settings: SamplingSettings, latent_spec: LatentSpec) -> FLF2VInputs:
        if request.first_frame is None or request.last_frame is None:
            missing = "--first_frame" if request.first_frame is None else "--last_frame"
            raise RequestError(f"this task leads from one image to another; give {missing} PATH too")
        first, last = media.load_image(request.first_frame), media.load_image(request.last_frame)
        geometry = geometry_for_area(first, settings, latent_spec)
        last, notes = _with_aspect_of(first, last)
        ends = media.image_to_tensor(first), media.image_to_tensor(last)
        return FLF2VInputs(request=request, settings=settings, geometry=geometry, ends=ends, notes=notes)

    def condition(self, inputs: FLF2VInputs, components: Components, clip: Clip) -> Conditioning:
        ends, geometry = inputs.ends, inputs.geometry
        key = image_key(*ends), geometry
        channels = components.once("channels", key, lambda: _channels(ends, geometry, components))
        return self.branches(inputs, components, channels, self.states(ends, components))

    def encode_example(
        self, clip: TrainingClip, components: Components, latent_spec: LatentSpec
    ) -> Mapping[str, Tensor]:
        ends = clip.image, clip.frames[:, -1]
        channels = _channels(ends, clip.geometry(latent_spec), components)
        return {"channels": channels[0], "image": image_states(ends, components)[0]}

    def validation_request(self, prompt: str, images: Sequence[Path], **settings: Any) -> GenerationRequest:
        if len(images) != 2:
            raise RequestError(
                f"validation prompts need two images here; give --validation-image twice, got {len(images)}"
            )
        return FLF2VRequest(prompt=prompt, first_frame=images[0], last_frame=images[1], **settings)


def _channels(ends: tuple[Tensor, Tensor], geometry: VideoGeometry, components: Components) -> Tensor:
    draw = partial(first_last_video, *ends)
    return encode_grey_channels(draw, first_last_mask(geometry), geometry, components, end=1)


def first_last_video(first: Tensor, last: Tensor, geometry: VideoGeometry) -> Tensor:
    """The video that is encoded as condition: both stretched images with mid-grey between, [1, 3, F, H, W]."""
    video = first_frame_video(first, geometry)
    video[:, :, -1] = media.stretch_bicubic(last, geometry.height, geometry.width)
    return video


def first_last_mask(geometry: VideoGeometry) -> Tensor:
    """[1, stride, T, h, w]: 1 where a pixel frame is given, one channel per pixel frame of a latent frame.

    The first pixel frame is a latent frame of its own and fills all channels of it.
    """
    mask = first_frame_mask(geometry)
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
    return media.fit_cover(last, width, height), (note,)
