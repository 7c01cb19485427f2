"""Picture and text to video under the guidance of Pi3."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from poze.adapter import Pi3FeatureAdapter, load_adapter
from poze.fusion import DOUBLED, Recover, Stitch, features_half, fuse, picture_half, recovered
from poze.guidance import (
    check_adapter,
    check_pi3,
    guidance_tokens,
    is_silent,
    look,
    open_pi3,
    picture_views,
    small_frames,
)
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
UNTRAINED_FUSION = "--fusion {fusion} has no trained weights anywhere: it shows where training would start from"


@dataclass(frozen=True, kw_only=True)
class PozeInputs(TI2VInputs):
    """``picture`` is what Pi3 looks at; ``found`` keeps what it saw, ``final`` the denoised latents, where needed."""

    picture: Image.Image
    adapter: Pi3FeatureAdapter | None
    found: list[Findings] = field(default_factory=list, compare=False, repr=False)
    final: list[Tensor] = field(default_factory=list, compare=False, repr=False)


class GuidedImageToVideo(TextImageToVideo):
    """TI2V whose cross-attention also sees tokens of Pi3's features of the picture, on both guidance branches.

    ``pi3_source`` and ``adapter`` are what a request gets that names none: a repository (None: the bundled tiny Pi3)
    and a file. ``is_widened`` says that the network takes the features' channels, see :func:`poze.fusion.widen_input`.
    """

    request_type: ClassVar[type[GenerationRequest]] = PozeRequest

    def __init__(self, pi3_source: str | None = None, adapter: Path | None = None, *, is_widened: bool = False) -> None:
        self.pi3_source = pi3_source
        self.adapter = adapter
        self.is_widened = is_widened

    def load(self, request: GenerationRequest, latent_spec: LatentSpec) -> PozeInputs:
        request = _own(request)
        if request.fusion == "channel" and not self.is_widened:
            raise RequestError("--fusion channel changes the network's input, which only poze-infer does; use that")
        base = super().load(request, latent_spec)
        adapter, notes = self._adapter(request)
        return PozeInputs(
            request=request,
            geometry=base.geometry,
            images=base.images,
            notes=(*base.notes, *notes),
            picture=load_image(request.image or ""),
            adapter=adapter,
        )

    def _adapter(self, request: PozeRequest) -> tuple[Pi3FeatureAdapter | None, tuple[str, ...]]:
        """The adapter of a request, checked against the Pi3 that it names, and what to tell the user."""
        if not request.looks:
            return None, ()
        width = check_pi3(self.source_of(request))
        if request.is_fused:
            return None, (UNTRAINED_FUSION.format(fusion=request.fusion),)
        path = request.adapter or self.adapter
        adapter = None if path is None else load_adapter(path)
        if adapter is None:
            return None, (UNTRAINED,)
        check_adapter(adapter, width, request.adapter_tokens)
        _check_space(request, adapter)
        return adapter, (UNTRAINED,) if is_silent(adapter) else ()

    def condition(self, inputs: TaskInputs, components: Components, clip: Clip) -> Conditioning:
        request = inputs.request
        if not isinstance(inputs, PozeInputs) or not isinstance(request, PozeRequest) or not request.looks:
            return super().condition(inputs, components, clip)
        findings = self.see(inputs, components.device)  # first: what is missing shows before the long work
        inputs.found[:] = [findings]
        base = super().condition(inputs, components, clip)
        if request.is_fused:
            channels, _, height, width = inputs.geometry.latent_shape
            stitch = Stitch(findings.latents.hidden.shape[-1], channels).to(components.device)
            with torch.no_grad():
                frame = stitch(findings.latents, height, width)
            return fuse(base, frame, request.fusion or "")
        if inputs.adapter is None or is_silent(inputs.adapter):
            return base
        check_adapter(inputs.adapter, findings.latents.hidden.shape[-1])
        with torch.no_grad():
            tokens = guidance_tokens(inputs.adapter.to(components.device), findings.latents)
        return guide(base, tokens, space=inputs.adapter.context_space, drop_in_negative=request.drop_in_negative)

    def see(self, inputs: PozeInputs, device: torch.device) -> Findings:
        """Load Pi3, let it look at the picture, and let it go."""
        pi3 = open_pi3(self.source_of(_own(inputs.request)), device)
        views = picture_views(inputs.picture, pi3)
        latents, output = look(pi3, views)
        return Findings(views=views, latents=latents, output=output)

    def source_of(self, request: PozeRequest) -> str | Path | None:
        """Where the Pi3 of a request comes from."""
        return request.pi3_checkpoint or request.pi3_pretrained_id or self.pi3_source

    def denoised(self, inputs: TaskInputs, latents: Tensor) -> None:
        if isinstance(inputs, PozeInputs) and _films(inputs.request):
            inputs.final[:] = [latents]

    def watch(self, inputs: TaskInputs, frames: Iterator[Tensor], say: Callable[[str], None]) -> Iterator[Tensor]:
        request = inputs.request
        if not isinstance(inputs, PozeInputs) or not isinstance(request, PozeRequest):
            return frames
        return self._watched(inputs, request, frames, say)

    def _watched(
        self, inputs: PozeInputs, request: PozeRequest, frames: Iterator[Tensor], say: Callable[[str], None]
    ) -> Iterator[Tensor]:
        views: list[Tensor] = []
        for chunk in frames:
            if _films(request):
                latents = inputs.found[0].latents
                views.append(small_frames(picture_half(chunk, request.fusion or ""), latents.height, latents.width))
            yield chunk
        for findings in inputs.found:
            if request.save_latents is not None:
                say(f"{write_latents(findings, request.save_latents)} (Pi3's latents)")
            if request.save_pi3 is not None:
                stem = Path(request.image or "view").stem
                shown = self._filmed(inputs, findings, torch.cat(views)) if views else findings
                count = write_findings(shown, request.save_pi3, stem)
                say(f"{request.save_pi3} ({count:,} points)")

    def _filmed(self, inputs: PozeInputs, findings: Findings, views: Tensor) -> Findings:
        """What the features' half of the denoised latents says about every frame; ``views`` [F, 3, h, w] colour it."""
        request, seen = _own(inputs.request), findings.latents
        half = features_half(inputs.final[0], request.fusion or "")
        pi3 = open_pi3(self.source_of(request), half.device)
        recover = Recover(half.shape[1], seen.hidden.shape[-1]).to(half.device)
        with torch.no_grad():
            hidden = recover(half, len(views), seen.grid)
        latents, output = recovered(pi3, hidden, seen.height, seen.width)
        return Findings(views=views[None], latents=latents, output=output)

    def describe(self, inputs: TaskInputs) -> Mapping[str, object]:
        tokens = inputs.adapter.num_tokens if isinstance(inputs, PozeInputs) and inputs.adapter is not None else 0
        return {**super().describe(inputs), "guidance_tokens": tokens}


def _own(request: GenerationRequest) -> PozeRequest:
    if not isinstance(request, PozeRequest):
        raise TypeError(f"request must be a PozeRequest, got {type(request).__name__}")
    return request


def _films(request: GenerationRequest) -> bool:
    """Whether points of every frame are wanted and there."""
    return isinstance(request, PozeRequest) and request.fusion in DOUBLED and request.save_pi3 is not None


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
