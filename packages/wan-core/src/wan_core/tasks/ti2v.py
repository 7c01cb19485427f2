"""Text, and optionally leading images, to video: images are clean latent frames that the sampler never changes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from wan_core.errors import RequestError
from wan_core.media import LatentSpec, VideoGeometry, best_output_size, fit_cover, image_to_tensor, load_image
from wan_core.models import DiTInputs
from wan_core.sampling import Anchors
from wan_core.tasks.base import Clip, Components, Conditioning, GenerationRequest, Task, TaskInputs
from wan_core.tasks.t2v import exact_geometry, text_states


@dataclass(frozen=True, kw_only=True)
class TI2VRequest(GenerationRequest):
    """A prompt and, if wanted, the picture that the video starts with."""

    image: Path | None = field(
        default=None, metadata={"option": ("--image",), "help": "The picture that the video starts with."}
    )


@dataclass(frozen=True, kw_only=True)
class TI2VInputs(TaskInputs):
    """``images`` [N, 3, H, W] in [-1, 1], one per leading latent frame; N = 0 is text to video."""

    images: Tensor


def prepare_anchor_images(
    paths: Sequence[Path], request: GenerationRequest, latent_spec: LatentSpec
) -> tuple[Tensor, VideoGeometry]:
    """Pictures cropped to the size that the first one's aspect ratio gives within the requested area.

    Returns [N, 3, H, W] in [-1, 1] and the geometry. Raises ``RequestError`` or ``MediaError``.
    """
    pictures = [load_image(path) for path in paths]
    exact = exact_geometry(request, latent_spec)
    width, height = best_output_size(
        pictures[0].width,
        pictures[0].height,
        latent_spec.width_multiple,
        latent_spec.height_multiple,
        exact.width * exact.height,
    )
    geometry = VideoGeometry.for_video(latent_spec, num_frames=exact.num_frames, height=height, width=width)
    if len(pictures) > geometry.latent_frames:
        raise RequestError(
            f"{len(pictures)} images need at least {len(pictures)} latent frames, but {exact.num_frames} frames have "
            f"{geometry.latent_frames}; use --frame-num {4 * len(pictures) - 3} or fewer images"
        )
    images = torch.stack([image_to_tensor(fit_cover(picture, width, height)) for picture in pictures])
    return images, geometry


class TextImageToVideo(Task):
    """Wan2.2 TI2V-5B: anchored frames sit at timestep 0 and are restored after every step."""

    request_type: ClassVar[type[GenerationRequest]] = TI2VRequest

    def image_paths(self, request: GenerationRequest) -> tuple[Path, ...]:
        """The pictures of the leading latent frames, in order."""
        image = getattr(request, "image", None)
        return () if image is None else (image,)

    def load(self, request: GenerationRequest, latent_spec: LatentSpec) -> TI2VInputs:
        paths = self.image_paths(request)
        if not paths:
            return TI2VInputs(request=request, geometry=exact_geometry(request, latent_spec), images=torch.empty(0))
        images, geometry = prepare_anchor_images(paths, request, latent_spec)
        return TI2VInputs(request=request, geometry=geometry, images=images)

    def condition(self, inputs: TaskInputs, components: Components, clip: Clip) -> Conditioning:
        if not isinstance(inputs, TI2VInputs):
            raise TypeError(f"inputs must be TI2VInputs, got {type(inputs).__name__}")
        context, negative = text_states(inputs.request, components)
        return Conditioning(
            positive=DiTInputs(context=context),
            negative=None if negative is None else DiTInputs(context=negative),
            latent_shape=(1, *inputs.geometry.latent_shape),
            anchors=self.anchors(inputs, components),
        )

    def anchors(self, inputs: TI2VInputs, components: Components) -> Anchors | None:
        """Each image encoded on its own, in one batched call, as one leading latent frame."""
        if inputs.images.numel() == 0:
            return None
        with components.vae.active() as vae:
            latents = vae.encode(inputs.images.to(components.device).unsqueeze(2))  # [N, C, 1, h, w]
        return Anchors.leading(latents.transpose(0, 2), inputs.geometry.latent_frames)
