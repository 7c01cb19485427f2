"""Several images to video: the images are clean latent frames that the sampler never changes.

The idea is the multi-image variant of Wan2.2's TI2V-5B pipeline (arXiv 2503.20314): each image is encoded on its own
and fixed as one of the first latent frames; the code is our own, on wan-core's text-and-image task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from wan_core import RequestError, media, sampling
from wan_core.media import LatentSpec, VideoGeometry, check_output, plain_text
from wan_core.tasks import (
    AnchoredVideo,
    Components,
    GeneratedClip,
    GenerationRequest,
    Log,
    SamplingSettings,
    encode_images,
    exact_geometry,
    prepare_anchor_images,
)
from wan_mi2v.inputs import MI2VInputs
from wan_mi2v.request import MI2VRequest
from wan_mi2v.sources import NamedImage, Room, read_images

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from wan_core.sampling import Anchors

_MOST_SHOWN = 8  # to a language model; consecutive frames say little more
_LOOSE_ASPECT = 1.1  # images whose aspect ratio differs by more lose a visible part


class MultiImageToVideo(AnchoredVideo[MI2VRequest, MI2VInputs]):
    """TI2V-5B with N images at N latent frames, 1 <= N <= latent frames."""

    request_type: ClassVar[type[GenerationRequest]] = MI2VRequest

    def load(self, request: MI2VRequest, settings: SamplingSettings, latent_spec: LatentSpec) -> MI2VInputs:
        if request.preview is not None:
            _check_preview(request)
        exact, stride = exact_geometry(settings, latent_spec), latent_spec.temporal_stride
        room = (
            Room(exact.num_frames, "frames", 1) if request.joint else Room(exact.latent_frames, "latent frames", stride)
        )
        named = read_images(request, room)
        positions = anchored_frames(request, len(named), exact)
        given, area = [image for _, image in named], exact.width * exact.height
        images, geometry = prepare_anchor_images(given, area, exact.num_frames, latent_spec)
        return MI2VInputs(
            request=request,
            settings=settings,
            geometry=geometry,
            images=images,
            names=tuple(name for name, _ in named),
            positions=positions,
            joint=request.joint,
            notes=(*_clip_notes(request), *_notes(named, positions, geometry)),
        )

    def prompt_images(self, inputs: MI2VInputs) -> Sequence[Path | Image.Image]:
        return [media.tensor_to_image(image) for image in inputs.images[:_MOST_SHOWN]]

    def anchors(self, inputs: MI2VInputs, components: Components) -> Anchors:
        if inputs.joint:
            video = inputs.images.to(components.device).transpose(0, 1).unsqueeze(0)  # [1, 3, 4n+1, H, W]
            with components.vae.active() as vae:
                latents = vae.encode(video)
        else:
            latents = encode_images(inputs.images, components)
        return sampling.Anchors.at(latents, inputs.positions, inputs.geometry.latent_frames)

    def report(self, inputs: MI2VInputs, clip: GeneratedClip, log: Log) -> Iterator[Tensor]:
        preview = inputs.request.preview
        if preview is None:
            return clip.frames
        from wan_mi2v.preview import watch_anchors

        return watch_anchors(inputs, clip.frames, preview, log)

    def validation_request(self, prompt: str, images: Sequence[Path], **settings: Any) -> MI2VRequest:
        if not images:
            raise RequestError("validation prompts need images here; give --validation-image, once for each")
        return MI2VRequest(prompt=prompt, images=tuple(images), **settings)

    def describe(self, inputs: MI2VInputs) -> Mapping[str, object]:
        return {
            **super().describe(inputs),
            "pictures": len(inputs.names),
            "anchored_latent_frames": list(inputs.positions),
        }


def anchored_frames(request: MI2VRequest, count: int, geometry: VideoGeometry) -> tuple[int, ...]:
    """The latent frames that ``count`` images fix. Raises ``RequestError`` when they do not fit."""
    stride, latent_frames = geometry.spec.temporal_stride, geometry.latent_frames
    if request.joint:
        rest = (count - 1) % stride
        if rest:
            raise RequestError(
                f"--joint needs {stride}n+1 pictures, got {count}; "
                f"nearest are {count - rest} and {count - rest + stride}"
            )
        return tuple(range((count - 1) // stride + 1))
    if request.at is None:
        return tuple(range(count))
    positions = tuple(request.at)
    if len(positions) != count:
        raise RequestError(f"--at names one latent frame per picture: {count} pictures, but {len(positions)} numbers")
    outside = [position for position in positions if not 0 <= position < latent_frames]
    if outside:
        raise RequestError(
            f"--at {outside[0]} is outside of the video: {geometry.num_frames} frames have the latent frames 0 to "
            f"{latent_frames - 1}; use --frame-num {stride * max(*positions, 0) + 1} or smaller numbers"
        )
    if len(set(positions)) != count:
        raise RequestError(f"--at names a latent frame twice: {','.join(map(str, positions))}")
    return positions


def _check_preview(request: MI2VRequest) -> None:
    target = check_output(request.preview or "", num_frames=1)
    if target.kind != "png":
        raise RequestError(f"--preview is a picture; use a name that ends in .png, got {plain_text(request.preview)}")


def _clip_notes(request: MI2VRequest) -> Iterator[str]:
    for note in () if request.clip is None else media.probe_video(request.clip).notes:
        yield f"{plain_text(request.clip)} {note}"


def _notes(named: Sequence[NamedImage], positions: Sequence[int], geometry: VideoGeometry) -> Iterator[str]:
    first = named[0].image.width / named[0].image.height
    wanted = geometry.width / geometry.height
    losses = {}
    for name, image in named:
        aspect = image.width / image.height
        if max(aspect / first, first / aspect) > _LOOSE_ASPECT:
            losses[name] = 1 - min(aspect / wanted, wanted / aspect)
    if losses:
        worst = max(losses, key=lambda name: losses[name])
        yield (
            f"{len(losses)} of {len(named)} pictures have another shape than the first; cropped to "
            f"{geometry.width}x{geometry.height}, {worst} loses {losses[worst]:.0%}"
        )
    if len(positions) == geometry.latent_frames:
        yield "every latent frame is given, so nothing is generated: the video shows the pictures as the VAE keeps them"
