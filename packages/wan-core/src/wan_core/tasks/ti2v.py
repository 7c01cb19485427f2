"""Text, and optionally leading images, to video: images are clean latent frames that the sampler never changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from wan_core import media, models, sampling
from wan_core.errors import RequestError
from wan_core.media import LatentSpec, VideoGeometry, best_output_size
from wan_core.tasks.base import Clip, Components, RequestT, Task, TaskInputs
from wan_core.tasks.conditioning import Conditioning
from wan_core.tasks.learning import TrainingClip
from wan_core.tasks.request import GenerationRequest, SamplingSettings
from wan_core.tasks.t2v import exact_geometry, text_states

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from wan_core.sampling import Anchors

_PIXELS_PER_CALL = 4_000_000  # the 4x16x16 encoder takes 2.3 kB per pixel in float32: 9 GB for four pictures of 720p


@dataclass(frozen=True, kw_only=True)
class TI2VRequest(GenerationRequest):
    """A prompt and, if wanted, the picture that the video starts with."""

    image: Path | None = field(
        default=None, metadata={"option": ("--image",), "help": "The picture that the video starts with."}
    )


@dataclass(frozen=True, kw_only=True)
class TI2VInputs(TaskInputs[RequestT]):
    """``images`` [N, 3, H, W] in [-1, 1], one per leading latent frame; N = 0 is text to video."""

    images: Tensor


AnchoredT = TypeVar("AnchoredT", bound=TI2VInputs[Any])


def prepare_anchor_images(
    given: Sequence[Image.Image], area: int, num_frames: int, latent_spec: LatentSpec
) -> tuple[Tensor, VideoGeometry]:
    """Images cropped to the size that the first one's aspect ratio gives within ``area`` pixels.

    Returns [N, 3, H, W] in [-1, 1] and the geometry. Raises ``RequestError`` for a shape that has no such size.
    """
    import torch

    first = given[0]
    multiples = latent_spec.width_multiple, latent_spec.height_multiple
    width, height = best_output_size(first.width, first.height, *multiples, area)
    geometry = VideoGeometry.for_video(latent_spec, num_frames=num_frames, height=height, width=width)
    images = torch.stack([media.image_to_tensor(media.fit_cover(image, width, height)) for image in given])
    return images, geometry


def encode_images(images: Tensor, components: Components) -> Tensor:
    """Each image encoded on its own, as a first frame: [N, 3, H, W] to [1, C, N, h, w].

    One batched call, in groups only where the images have more than 4 million pixels together.
    """
    import torch

    group = max(1, _PIXELS_PER_CALL // (images.shape[2] * images.shape[3]))
    with components.vae.active() as vae:
        parts = [
            vae.encode(images[start : start + group].to(components.device).unsqueeze(2))
            for start in range(0, len(images), group)
        ]
    return torch.cat(parts).transpose(0, 2)  # [N, C, 1, h, w] to [1, C, N, h, w]


class AnchoredVideo(Task[RequestT, AnchoredT]):
    """Wan2.2 TI2V-5B under given images: anchored frames sit at timestep 0 and are restored after every step.

    In training a batch has ``first`` [B, C, 1, h, w], the encoded first image, and if each image was wanted
    ``pictures`` [B, C, T, h, w], the images that begin the latent frames.
    """

    conditions: ClassVar[str | None] = "ti2v"
    has_clean_frames: ClassVar[bool] = True

    def condition(self, inputs: AnchoredT, components: Components, clip: Clip) -> Conditioning:
        import torch

        anchors = self.anchors(inputs, components)
        if anchors is not None and anchors.is_complete:  # nothing is denoised, so no text is needed
            context, negative = torch.empty(1, 0, 0), None
        else:
            context, negative = text_states(inputs, components)
        return Conditioning(
            positive=models.DiTInputs(context=context),
            negative=None if negative is None else models.DiTInputs(context=negative),
            latent_shape=(1, *inputs.geometry.latent_shape),
            anchors=anchors,
        )

    def anchors(self, inputs: AnchoredT, components: Components) -> Anchors | None:
        """The images as the leading latent frames; ``None`` without images."""
        if inputs.images.numel() == 0:
            return None
        return sampling.Anchors.leading(encode_images(inputs.images, components), inputs.geometry.latent_frames)

    def encode_example(
        self, clip: TrainingClip, components: Components, latent_spec: LatentSpec
    ) -> Mapping[str, Tensor]:
        tensors = {"first": encode_images(clip.image[None], components)[0]}
        if clip.each_image:
            images = clip.frames[:, :: latent_spec.temporal_stride].transpose(0, 1)
            tensors["pictures"] = encode_images(images, components)[0]
        return tensors

    def clean_latents(self, batch: Mapping[str, Tensor], counts: Sequence[int], alone: Sequence[bool]) -> Tensor:
        latents = batch["latents"].clone()
        for row, count in enumerate(counts):
            if count > 0:
                latents[row, :, :1] = batch["first"][row]
            if count > 1 and "pictures" in batch and alone[row]:
                latents[row, :, 1:count] = batch["pictures"][row, :, 1:count]
        return latents

    def validation_request(self, prompt: str, images: Sequence[Path], **settings: Any) -> GenerationRequest:
        if len(images) > 1:
            raise RequestError(f"this model starts from one image, got {len(images)} times --validation-image")
        given: dict[str, Any] = {"image": images[0]} if images else {}
        return self.request_type(prompt=prompt, **settings, **given)


def load_anchored(
    request: TI2VRequest, settings: SamplingSettings, latent_spec: LatentSpec
) -> tuple[VideoGeometry, Tensor]:
    """The geometry that a request's image gives, and the image [1, 3, H, W]; without one the asked size and [0]."""
    exact = exact_geometry(settings, latent_spec)
    if request.image is None:
        import torch

        return exact, torch.empty(0)
    area = exact.width * exact.height
    images, geometry = prepare_anchor_images([media.load_image(request.image)], area, exact.num_frames, latent_spec)
    return geometry, images


class TextImageToVideo(AnchoredVideo[TI2VRequest, TI2VInputs[TI2VRequest]]):
    """Wan2.2 TI2V-5B: a prompt and, if wanted, the image that the video starts with."""

    request_type: ClassVar[type[GenerationRequest]] = TI2VRequest

    def load(
        self, request: TI2VRequest, settings: SamplingSettings, latent_spec: LatentSpec
    ) -> TI2VInputs[TI2VRequest]:
        geometry, images = load_anchored(request, settings, latent_spec)
        return TI2VInputs(request=request, settings=settings, geometry=geometry, images=images)
