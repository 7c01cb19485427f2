"""Picture and text to video under the guidance of Pi3."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from pi3 import Pi3
from poze.adapter import Pi3FeatureAdapter, load_adapter
from poze.fusion import Stitch, fuse
from poze.guidance import check_adapter, guidance_tokens, is_silent, look, open_pi3, picture_views
from poze.outputs import Findings, write_findings, write_latents
from poze.request import PozeRequest
from wan_core import RequestError
from wan_core.media import LatentSpec, load_image
from wan_core.models import DiTInputs
from wan_core.tasks import (
    Clip,
    Components,
    Conditioning,
    GenerationRequest,
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
    """``picture`` is what Pi3 looks at; ``found`` keeps what it saw, for the files besides the video."""

    picture: Image.Image
    adapter: Pi3FeatureAdapter | None
    found: list[Findings] = field(default_factory=list, compare=False, repr=False)


class GuidedImageToVideo(TextImageToVideo):
    """TI2V whose cross-attention also sees tokens of Pi3's features of the picture, on both guidance branches.

    ``pi3_source`` and ``adapter`` are what a request gets that names none: a repository (None: the bundled tiny Pi3)
    and a file.
    """

    request_type: ClassVar[type[GenerationRequest]] = PozeRequest

    def __init__(self, pi3_source: str | None = None, adapter: Path | None = None) -> None:
        self.pi3_source = pi3_source
        self.adapter = adapter

    def load(self, request: GenerationRequest, latent_spec: LatentSpec) -> PozeInputs:
        if not isinstance(request, PozeRequest):
            raise TypeError(f"request must be a PozeRequest, got {type(request).__name__}")
        base = super().load(request, latent_spec)
        adapter, notes = None, base.notes
        if request.looks and request.fusion in (None, "context"):
            path = request.adapter or self.adapter
            adapter = None if path is None else load_adapter(path)
            _check_space(request, adapter)
            if adapter is None or is_silent(adapter):
                notes = (*notes, UNTRAINED)
        elif request.looks:
            notes = (
                *notes,
                f"--fusion {request.fusion} has no trained weights: training would start from this",
            )
        return PozeInputs(
            request=request,
            geometry=base.geometry,
            images=base.images,
            notes=notes,
            picture=load_image(request.image or ""),
            adapter=adapter,
        )

    def condition(self, inputs: TaskInputs, components: Components, clip: Clip) -> Conditioning:
        base = super().condition(inputs, components, clip)
        request = inputs.request
        if not isinstance(inputs, PozeInputs) or not isinstance(request, PozeRequest) or not request.looks:
            return base
        findings = self.see(inputs, components.device)
        inputs.found[:] = [findings]
        if request.fusion not in (None, "context"):
            channels, _, height, width = inputs.geometry.latent_shape
            stitch = Stitch(findings.latents.hidden.shape[-1], channels).to(components.device)
            with torch.no_grad():
                frame = stitch(findings.latents, height, width)
            return fuse(base, frame, request.fusion)
        if inputs.adapter is None or is_silent(inputs.adapter):
            return base
        check_adapter(inputs.adapter, findings.latents, request.adapter_tokens)
        with torch.no_grad():
            tokens = guidance_tokens(inputs.adapter.to(components.device), findings.latents)
        return guide(base, tokens, space=inputs.adapter.context_space, drop_in_negative=request.drop_in_negative)

    def see(self, inputs: PozeInputs, device: torch.device) -> Findings:
        """Load Pi3, let it look at the picture, and let it go."""
        pi3 = self.pi3(inputs.request, device)
        views = picture_views(inputs.picture, pi3)
        latents, output = look(pi3, views)
        return Findings(views=views, latents=latents, output=output)

    def pi3(self, request: GenerationRequest, device: torch.device) -> Pi3:
        """The Pi3 of a request."""
        if not isinstance(request, PozeRequest):
            raise TypeError(f"request must be a PozeRequest, got {type(request).__name__}")
        return open_pi3(request.pi3_checkpoint or request.pi3_pretrained_id or self.pi3_source, device)

    def watch(self, inputs: TaskInputs, frames: Iterator[Tensor], say: Callable[[str], None]) -> Iterator[Tensor]:
        request = inputs.request
        if not isinstance(inputs, PozeInputs) or not isinstance(request, PozeRequest):
            return frames
        return self._watched(inputs, request, frames, say)

    def _watched(
        self, inputs: PozeInputs, request: PozeRequest, frames: Iterator[Tensor], say: Callable[[str], None]
    ) -> Iterator[Tensor]:
        yield from frames
        for findings in inputs.found:
            if request.save_latents is not None:
                say(f"{write_latents(findings, request.save_latents)} (Pi3's latents)")
            if request.save_pi3 is not None:
                stem = Path(request.image or "view").stem
                count = write_findings(findings, request.save_pi3, stem)
                say(f"{request.save_pi3} ({count:,} points)")

    def describe(self, inputs: TaskInputs) -> Mapping[str, object]:
        tokens = inputs.adapter.num_tokens if isinstance(inputs, PozeInputs) and inputs.adapter is not None else 0
        return {**super().describe(inputs), "guidance_tokens": tokens}


def _check_space(request: PozeRequest, adapter: Pi3FeatureAdapter | None) -> None:
    if adapter is not None and request.context_space not in (None, adapter.context_space):
        raise RequestError(
            f"the adapter was trained for --context-space {adapter.context_space}, got {request.context_space}; leave "
            "the option out"
        )


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
