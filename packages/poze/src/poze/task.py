"""Image and text to video under the guidance of Pi3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from pi3 import Pi3Config
from poze.adapter import Pi3FeatureAdapter, load_adapter
from poze.guidance import check_adapter, guidance_tokens, is_silent, look, picture_views
from poze.outputs import Findings, write_findings, write_latents
from poze.request import PozeRequest
from wan_core import RequestError
from wan_core.media import LatentSpec, load_image
from wan_core.models import DiTInputs
from wan_core.tasks import (
    Clip,
    Components,
    Conditioning,
    GeneratedClip,
    GenerationRequest,
    Log,
    SamplingSettings,
    TaskInputs,
    TextImageToVideo,
    TI2VInputs,
)

UNTRAINED = (
    "no trained adapter was given (--adapter FILE, made by poze-finetune), so Pi3 does not guide this video; its "
    "points and cameras are there all the same"
)


@dataclass(frozen=True, kw_only=True)
class PozeInputs(TI2VInputs):
    """``image`` is what Pi3 looks at."""

    image: Image.Image
    adapter: Pi3FeatureAdapter | None


@dataclass(frozen=True, kw_only=True)
class PozeConditioning(Conditioning):
    """Conditions with what Pi3 saw in the image."""

    findings: Findings


class GuidedImageToVideo(TextImageToVideo):
    """TI2V whose cross-attention also sees tokens of Pi3's features of the image, on both guidance branches.

    Pi3 is the part ``pi3`` of the model. ``adapter`` is the file that a request gets which names none.
    """

    request_type: ClassVar[type[GenerationRequest]] = PozeRequest

    def __init__(self, adapter: Path | None = None) -> None:
        self.adapter = adapter

    def load(self, request: GenerationRequest, settings: SamplingSettings, latent_spec: LatentSpec) -> PozeInputs:
        request = _own(request)
        base = super().load(request, settings, latent_spec)
        adapter, notes = self._adapter(request)
        return PozeInputs(
            request=request,
            settings=settings,
            geometry=base.geometry,
            images=base.images,
            notes=(*base.notes, *notes),
            image=load_image(request.image or ""),
            adapter=adapter,
        )

    def _adapter(self, request: PozeRequest) -> tuple[Pi3FeatureAdapter | None, tuple[str, ...]]:
        """The adapter of a request, and what to tell the user."""
        if not request.looks:
            return None, ()
        path = request.adapter or self.adapter
        adapter = None if path is None else load_adapter(path)
        if adapter is None:
            return None, (UNTRAINED,)
        check_adapter(adapter, None, request.adapter_tokens)
        if request.context_space not in (None, adapter.context_space):
            raise RequestError(
                f"the adapter was trained for --context-space {adapter.context_space}, got {request.context_space}; "
                "leave the option out"
            )
        return adapter, (UNTRAINED,) if is_silent(adapter) else ()

    def condition(self, inputs: TaskInputs, components: Components, clip: Clip) -> Conditioning:
        request = _own(inputs.request)
        if not isinstance(inputs, PozeInputs) or not request.looks:
            return super().condition(inputs, components, clip)
        config: Pi3Config | None = components.configs["pi3"]  # None: still to be fetched
        if inputs.adapter is not None and config is not None:
            check_adapter(inputs.adapter, 2 * config.encoder.dim)
        image = inputs.image
        key = (image.size, image.tobytes())
        findings = components.once("pi3", key, lambda: see(image, components))  # what is missing shows before long work
        base = super().condition(inputs, components, clip)
        if inputs.adapter is not None and not is_silent(inputs.adapter):
            check_adapter(inputs.adapter, findings.latents.hidden.shape[-1])
            with torch.no_grad():
                tokens = guidance_tokens(inputs.adapter.to(components.device), findings.latents)
            base = guide(base, tokens, space=inputs.adapter.context_space, drop_in_negative=request.drop_in_negative)
        return PozeConditioning(**{item.name: getattr(base, item.name) for item in fields(base)}, findings=findings)

    def report(self, inputs: TaskInputs, clip: GeneratedClip, log: Log) -> Iterator[Tensor]:
        yield from clip.frames
        request, found = _own(inputs.request), clip.conditioning
        if not isinstance(found, PozeConditioning):
            return
        if request.save_latents is not None:
            log(f"{write_latents(found.findings, request.save_latents)} (Pi3's latents)")
        if request.save_pi3 is not None:
            count = write_findings(found.findings, request.save_pi3, Path(request.image or "view").stem)
            log(f"{request.save_pi3} ({count:,} points)")

    def describe(self, inputs: TaskInputs) -> Mapping[str, object]:
        tokens = inputs.adapter.num_tokens if isinstance(inputs, PozeInputs) and inputs.adapter is not None else 0
        return {**super().describe(inputs), "guidance_tokens": tokens}


def see(image: Image.Image, components: Components) -> Findings:
    """What Pi3 knows about an image. Raises CheckpointError when it cannot be fetched or read."""
    with components.part("pi3").active() as pi3:
        views = picture_views(image, pi3)
        latents, output = look(pi3, views)
    return Findings(views=views, latents=latents, output=output)


def _own(request: GenerationRequest) -> PozeRequest:
    if not isinstance(request, PozeRequest):
        raise TypeError(f"request must be a PozeRequest, got {type(request).__name__}")
    return request


def guide(base: Conditioning, tokens: Tensor, *, space: str = "dit", drop_in_negative: bool = False) -> Conditioning:
    """Conditions with guidance tokens [1, K, width] on the positive branch and, unless dropped, on the negative one.

    In the ``text`` space they are rows of the text states, which the text embedding then projects.
    """

    def join(inputs: DiTInputs) -> DiTInputs:
        if space == "text":
            return replace(inputs, context=torch.cat([inputs.context, tokens.to(inputs.context)], dim=1))
        return replace(inputs, extra_context=tokens)

    negative = base.negative
    if negative is not None and not drop_in_negative:
        negative = join(negative)
    return replace(base, positive=join(base.positive), negative=negative)
