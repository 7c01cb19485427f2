"""Image to video by channels: a mask and the encoded first frame are joined to the noisy latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from wan_core import media, models
from wan_core.errors import RequestError
from wan_core.media import LatentSpec, VideoGeometry, latent_grid_for_area
from wan_core.tasks.base import Clip, Components, InputsT, RequestT, Task, TaskInputs
from wan_core.tasks.conditioning import Conditioning
from wan_core.tasks.learning import TrainingClip
from wan_core.tasks.request import GenerationRequest, SamplingSettings
from wan_core.tasks.t2v import exact_geometry, text_states

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from wan_core.models import DiTInputs


@dataclass(frozen=True, kw_only=True)
class I2VRequest(GenerationRequest):
    """A prompt and the first frame. ``width`` x ``height`` is the area; the image gives the aspect ratio."""

    image: Path | None = field(
        default=None, metadata={"option": ("--image",), "help": "The picture that the video starts with."}
    )


@dataclass(frozen=True, kw_only=True)
class I2VInputs(TaskInputs[I2VRequest]):
    """``image`` [3, H, W] in [-1, 1], as the user gave it."""

    image: Tensor


def first_frame_video(image: Tensor, geometry: VideoGeometry) -> Tensor:
    """The video that is encoded as condition: the stretched image, then mid-grey. [3, H, W] to [1, 3, F, H', W']."""
    video = image.new_zeros(1, 3, geometry.num_frames, geometry.height, geometry.width)
    video[:, :, 0] = media.stretch_bicubic(image, geometry.height, geometry.width)
    return video


def first_frame_mask(geometry: VideoGeometry) -> Tensor:
    """[1, stride, T, h, w]: 1 on the first latent frame, one channel per pixel frame of a latent frame."""
    import torch

    sizes = geometry.latent_frames, geometry.latent_height, geometry.latent_width
    mask = torch.zeros(1, geometry.spec.temporal_stride, *sizes)
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
    import torch

    with components.part("image_encoder").active() as encode:
        return torch.cat([encode(image.to(components.device).unsqueeze(0)) for image in images], dim=1)


def encode_channels(video: Tensor, mask: Tensor, components: Components) -> Tensor:
    """Mask channels [1, stride, T, h, w], then those of the encoded video [1, 3, F, H, W]: [1, stride + C, T, h, w]."""
    import torch

    with components.vae.active() as vae:
        latents = vae.encode(video.to(components.device))
    return torch.cat([mask.to(latents), latents], dim=1)


def encode_grey_channels(
    draw: Callable[[VideoGeometry], Tensor],
    mask: Tensor,
    geometry: VideoGeometry,
    components: Components,
    *,
    end: int = 0,
) -> Tensor:
    """What :func:`encode_channels` gives of a video that is grey after its first frame, but for ``end`` latent frames.

    ``draw`` makes the video [1, 3, F, H, W] of a geometry. Where grey has settled in the autoencoder the latents repeat
    exactly, and one of them is encoded.
    """
    import torch

    with components.vae.active() as vae:
        settled = vae.config.settled_latents
        count = min(geometry.latent_frames, settled + end)
        clip = replace(geometry, num_frames=1 + (count - 1) * geometry.spec.temporal_stride)
        latents = vae.encode(draw(clip).to(components.device))
    repeated = latents[:, :, settled - 1 : settled].expand(-1, -1, geometry.latent_frames - count, -1, -1)
    latents = torch.cat([latents[:, :, :settled], repeated, latents[:, :, settled:]], dim=2)
    return torch.cat([mask.to(latents), latents], dim=1)


def image_key(*images: Tensor) -> tuple[object, ...]:
    """What tells images [3, H, W] apart, for :meth:`.Components.once`."""
    return tuple((tuple(image.shape), sha256(image.numpy().tobytes()).hexdigest()) for image in images)


class ChannelVideo(Task[RequestT, InputsT]):
    """Given images as channels beside the noisy latents and, where the model has an image encoder, as CLIP states.

    In training a batch has ``channels`` [B, stride + C, T, h, w] and ``image`` [B, tokens, dim].
    """

    def branches(
        self, inputs: TaskInputs[Any], components: Components, channels: Tensor, states: Tensor | None
    ) -> Conditioning:
        """The conditions of both branches."""
        context, negative = text_states(inputs, components)

        def branch(text: Tensor) -> DiTInputs:
            return models.DiTInputs(context=text, image_context=states, channel_concat=channels)

        return Conditioning(
            positive=branch(context),
            negative=None if negative is None else branch(negative),
            latent_shape=(1, *inputs.geometry.latent_shape),
        )

    def states(self, images: Sequence[Tensor], components: Components) -> Tensor | None:
        """CLIP states of the given images, where the model takes them; several videos of the same images share them."""
        if components.image_encoder is None:
            return None
        return components.once("image states", image_key(*images), lambda: image_states(images, components))

    def channels(self, latent_spec: LatentSpec) -> tuple[int, int]:
        return 2 * latent_spec.channels + latent_spec.temporal_stride, latent_spec.channels

    def training_inputs(
        self, batch: Mapping[str, Tensor], context: Tensor, networks: Mapping[str, nn.Module]
    ) -> DiTInputs:
        return models.DiTInputs(context=context, channel_concat=batch["channels"], image_context=batch.get("image"))


class ImageToVideo(ChannelVideo[I2VRequest, I2VInputs]):
    """Wan2.2 I2V-A14B, and Wan2.1 I2V-14B when the model has an image encoder (arXiv 2503.20314, section 5.1)."""

    request_type: ClassVar[type[GenerationRequest]] = I2VRequest
    prompt_kind: ClassVar[str] = "i2v"
    conditions: ClassVar[str | None] = "i2v"

    def load(self, request: I2VRequest, settings: SamplingSettings, latent_spec: LatentSpec) -> I2VInputs:
        if request.image is None:
            raise RequestError("this task starts from a picture; give it with --image PATH")
        image = media.load_image(request.image)
        geometry = geometry_for_area(image, settings, latent_spec)
        return I2VInputs(request=request, settings=settings, geometry=geometry, image=media.image_to_tensor(image))

    def condition(self, inputs: I2VInputs, components: Components, clip: Clip) -> Conditioning:
        geometry = inputs.geometry
        states = self.states([inputs.image], components)
        key = image_key(inputs.image), geometry
        channels = components.once("channels", key, lambda: _channels(inputs.image, geometry, components))
        return self.branches(inputs, components, channels, states)

    def encode_example(
        self, clip: TrainingClip, components: Components, latent_spec: LatentSpec
    ) -> Mapping[str, Tensor]:
        tensors = {"channels": _channels(clip.image, clip.geometry(latent_spec), components)[0]}
        if components.image_encoder is not None:
            tensors["image"] = image_states([clip.image], components)[0]
        return tensors

    def validation_request(self, prompt: str, images: Sequence[Path], **settings: Any) -> GenerationRequest:
        if len(images) != 1:
            raise RequestError(
                f"validation prompts need one image here; give --validation-image once, got {len(images)}"
            )
        return I2VRequest(prompt=prompt, image=images[0], **settings)


def _channels(image: Tensor, geometry: VideoGeometry, components: Components) -> Tensor:
    draw = partial(first_frame_video, image)
    return encode_grey_channels(draw, first_frame_mask(geometry), geometry, components)
