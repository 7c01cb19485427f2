"""Image to video by channels: a mask and the encoded first frame are joined to the noisy latents."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from wan_core.errors import RequestError
from wan_core.media import (
    LatentSpec,
    VideoGeometry,
    image_to_tensor,
    latent_grid_for_area,
    load_image,
    stretch_bicubic,
)
from wan_core.models import DiTInputs
from wan_core.tasks.base import Clip, Components, Conditioning, GenerationRequest, SamplingSettings, Task, TaskInputs
from wan_core.tasks.t2v import exact_geometry, text_states


@dataclass(frozen=True, kw_only=True)
class I2VRequest(GenerationRequest):
    """A prompt and the first frame. ``width`` x ``height`` is the area; the image gives the aspect ratio."""

    image: Path | None = field(
        default=None, metadata={"option": ("--image",), "help": "The picture that the video starts with."}
    )


@dataclass(frozen=True, kw_only=True)
class I2VInputs(TaskInputs):
    """``image`` [3, H, W] in [-1, 1], as the user gave it; ``temporal_stride`` frames make a latent frame."""

    image: Tensor
    temporal_stride: int


def first_frame_video(image: Tensor, geometry: VideoGeometry) -> Tensor:
    """The video that is encoded as condition: the stretched image, then mid-grey. [3, H, W] to [1, 3, F, H', W']."""
    video = image.new_zeros(1, 3, geometry.num_frames, geometry.height, geometry.width)
    video[:, :, 0] = stretch_bicubic(image, geometry.height, geometry.width)
    return video


def first_frame_mask(geometry: VideoGeometry, temporal_stride: int) -> Tensor:
    """[1, temporal_stride, T, h, w]: 1 on the first latent frame, one channel per pixel frame of a latent frame."""
    mask = torch.zeros(1, temporal_stride, geometry.latent_frames, geometry.latent_height, geometry.latent_width)
    mask[:, :, 0] = 1
    return mask


def geometry_for_area(image: Image.Image, settings: SamplingSettings, latent_spec: LatentSpec) -> VideoGeometry:
    """The geometry of about the requested area with an image's aspect, in whole patches. Raises ``RequestError``."""
    asked = exact_geometry(settings, latent_spec)
    rows, columns = latent_grid_for_area(image.height, image.width, asked.width * asked.height, latent_spec)
    height, width = rows * latent_spec.spatial_stride, columns * latent_spec.spatial_stride
    return VideoGeometry.for_video(latent_spec, num_frames=asked.num_frames, height=height, width=width)


def image_states(images: Sequence[Tensor], components: Components) -> Tensor:
    """CLIP states of images [3, H, W] of any size, joined along the tokens: [1, 257 * N, dim]."""
    with components.part("image_encoder").active() as encode:
        return torch.cat([encode(image.to(components.device).unsqueeze(0)) for image in images], dim=1)


def channel_conditioning(
    inputs: TaskInputs, components: Components, video: Tensor, mask: Tensor, image_context: Tensor | None
) -> Conditioning:
    """Both branches, with the channels of a ``mask`` [1, stride, T, h, w] and of a ``video`` [1, 3, F, H, W]."""
    context, negative = text_states(inputs, components)
    with components.vae.active() as vae:
        latents = vae.encode(video.to(components.device))
    channel_concat = joined_condition(latents, mask)

    def branch(states: Tensor) -> DiTInputs:
        return DiTInputs(context=states, image_context=image_context, channel_concat=channel_concat)

    return Conditioning(
        positive=branch(context),
        negative=None if negative is None else branch(negative),
        latent_shape=(1, *inputs.geometry.latent_shape),
    )


def joined_condition(latents: Tensor, mask: Tensor) -> Tensor:
    """Mask channels, then the encoded video: [1, stride + C, T, h, w]."""
    return torch.cat([mask.to(latents), latents], dim=1)


def first_frame_condition(latents: Tensor, geometry: VideoGeometry, temporal_stride: int) -> Tensor:
    """The channels of an encoded :func:`first_frame_video`: [1, stride + C, T, h, w]."""
    return joined_condition(latents, first_frame_mask(geometry, temporal_stride))


def joined_channels(latent_spec: LatentSpec) -> tuple[int, int]:
    """(in_dim, out_dim) of a network that takes mask and encoded video as channels."""
    return 2 * latent_spec.channels + latent_spec.temporal_stride, latent_spec.channels


class ImageToVideo(Task):
    """Wan2.2 I2V-A14B, and Wan2.1 I2V-14B when the model has an image encoder (arXiv 2503.20314, section 5.1)."""

    request_type: ClassVar[type[GenerationRequest]] = I2VRequest

    def load(self, request: GenerationRequest, settings: SamplingSettings, latent_spec: LatentSpec) -> I2VInputs:
        path = getattr(request, "image", None)
        if path is None:
            raise RequestError("this task starts from a picture; give it with --image PATH")
        picture = load_image(path)
        return I2VInputs(
            request=request,
            settings=settings,
            geometry=geometry_for_area(picture, settings, latent_spec),
            image=image_to_tensor(picture),
            temporal_stride=latent_spec.temporal_stride,
        )

    def condition(self, inputs: TaskInputs, components: Components, clip: Clip) -> Conditioning:
        if not isinstance(inputs, I2VInputs):
            raise TypeError(f"inputs must be I2VInputs, got {type(inputs).__name__}")
        states = None if components.image_encoder is None else image_states([inputs.image], components)
        video = first_frame_video(inputs.image, inputs.geometry)
        mask = first_frame_mask(inputs.geometry, inputs.temporal_stride)
        return channel_conditioning(inputs, components, video, mask, states)

    def channels(self, latent_spec: LatentSpec) -> tuple[int, int]:
        return joined_channels(latent_spec)
