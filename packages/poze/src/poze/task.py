"""Image and text to video under the guidance of Pi3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pi3 import Pi3Config
from poze.guidance import (
    check_adapter,
    check_widths,
    guidance_tokens,
    image_views,
    is_silent,
    look,
    pooled_tokens,
    project_tokens,
    with_guidance,
)
from poze.outputs import Findings, write_findings, write_latents
from poze.request import PozeRequest
from wan_core import RequestError, media, models
from wan_core.media import LatentSpec
from wan_core.tasks import (
    AnchoredVideo,
    Clip,
    Companion,
    Components,
    Conditioning,
    GeneratedClip,
    GenerationRequest,
    Log,
    SamplingSettings,
    TI2VInputs,
    TrainingClip,
    load_anchored,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from poze.adapter import Pi3FeatureAdapter
    from wan_core.models import DiTInputs

UNTRAINED = (
    "no trained adapter was given (--adapter FILE, made by poze-finetune), so Pi3 does not guide this video; its "
    "points and cameras are there all the same"
)


@dataclass(frozen=True, kw_only=True)
class PozeInputs(TI2VInputs[PozeRequest]):
    """``image`` is what Pi3 looks at."""

    image: Image.Image
    adapter: Pi3FeatureAdapter | None


@dataclass(frozen=True, kw_only=True)
class PozeConditioning(Conditioning):
    """Conditions with what Pi3 saw in the image."""

    findings: Findings


class GuidedImageToVideo(AnchoredVideo[PozeRequest, PozeInputs]):
    """TI2V whose cross-attention also sees tokens of Pi3's features of the image, on both guidance branches.

    Pi3 is the part ``pi3`` of the model. ``adapter``, a file or a network, is that of a request which names none; for
    training without one a new one with ``num_tokens`` and ``context_space`` is made. In training a batch has ``tokens``
    [B, h * w, C], Pi3's of the first image, and ``grid`` [B, 2], their (h, w), besides what anchored videos have.
    """

    request_type: ClassVar[type[GenerationRequest]] = PozeRequest
    conditions: ClassVar[str | None] = "poze"

    def __init__(
        self, adapter: Path | Pi3FeatureAdapter | None = None, *, num_tokens: int = 64, context_space: str = "dit"
    ) -> None:
        self.adapter = adapter
        self.num_tokens = num_tokens
        self.context_space = context_space

    def load(self, request: PozeRequest, settings: SamplingSettings, latent_spec: LatentSpec) -> PozeInputs:
        geometry, images = load_anchored(request, settings, latent_spec)
        adapter, notes = self._adapter(request)
        return PozeInputs(
            request=request,
            settings=settings,
            geometry=geometry,
            images=images,
            notes=notes,
            image=media.load_image(request.image or ""),
            adapter=adapter,
        )

    def _adapter(self, request: PozeRequest) -> tuple[Pi3FeatureAdapter | None, tuple[str, ...]]:
        """The adapter of a request, and what to tell the user."""
        if not request.looks:
            return None, ()
        adapter = _network(request.adapter or self.adapter)
        if adapter is None:
            return None, (UNTRAINED,)
        check_adapter(adapter, None, request.adapter_tokens)
        if request.context_space not in (None, adapter.context_space):
            raise RequestError(
                f"the adapter was trained for --context-space {adapter.context_space}, got {request.context_space}; "
                "leave the option out"
            )
        return adapter, (UNTRAINED,) if is_silent(adapter) else ()

    def condition(self, inputs: PozeInputs, components: Components, clip: Clip) -> Conditioning:
        import torch

        if not inputs.request.looks:
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
            drop = inputs.request.drop_in_negative
            base = guide(base, tokens, space=inputs.adapter.context_space, drop_in_negative=drop)
        return PozeConditioning(**{item.name: getattr(base, item.name) for item in fields(base)}, findings=findings)

    def report(self, inputs: PozeInputs, clip: GeneratedClip, log: Log) -> Iterator[Tensor]:
        yield from clip.frames
        request, found = inputs.request, clip.conditioning
        if not isinstance(found, PozeConditioning):
            return
        if request.save_latents is not None:
            log(f"{write_latents(found.findings, request.save_latents)} (Pi3's latents)")
        if request.save_pi3 is not None:
            count = write_findings(found.findings, request.save_pi3, Path(request.image or "view").stem)
            log(f"{request.save_pi3} ({count:,} points)")

    def describe(self, inputs: PozeInputs) -> Mapping[str, object]:
        tokens = 0 if inputs.adapter is None else inputs.adapter.num_tokens
        return {**super().describe(inputs), "guidance_tokens": tokens}

    def encode_example(
        self, clip: TrainingClip, components: Components, latent_spec: LatentSpec
    ) -> Mapping[str, Tensor]:
        import torch

        latents = see(media.tensor_to_image(clip.image), components).latents
        tensors = super().encode_example(clip, components, latent_spec)
        return {**tensors, "tokens": pooled_tokens(latents)[0], "grid": torch.tensor(latents.grid)}

    def training_inputs(
        self, batch: Mapping[str, Tensor], context: Tensor, networks: Mapping[str, nn.Module]
    ) -> DiTInputs:
        from poze.adapter import Pi3FeatureAdapter

        adapter = networks["adapter"]
        if not isinstance(adapter, Pi3FeatureAdapter):
            raise TypeError(f"the adapter must be a Pi3FeatureAdapter, got {type(adapter).__name__}")
        rows, columns = (int(count) for count in batch["grid"][0].tolist())
        tokens = project_tokens(adapter, batch["tokens"], (rows, columns))
        return with_guidance(models.DiTInputs(context=context), tokens, space=adapter.context_space)

    def companions(self, components: Components) -> Mapping[str, Companion]:
        from poze.adapter import Pi3FeatureAdapter

        dit, pi3 = (
            components.configs["dit"],
            components.configs["pi3"] or Pi3Config(),
        )  # on the hub is the published one
        adapter = _network(self.adapter)
        if adapter is None:
            width = dit.text_dim if self.context_space == "text" else dit.dim
            adapter = Pi3FeatureAdapter(2 * pi3.encoder.dim, width, self.num_tokens, context_space=self.context_space)
        check_widths(adapter, pi3, dit)
        return {"adapter": Companion(network=adapter, metadata=adapter.description)}

    def using(self, networks: Mapping[str, nn.Module]) -> GuidedImageToVideo:
        from poze.adapter import Pi3FeatureAdapter

        adapter = networks["adapter"]
        return GuidedImageToVideo(adapter if isinstance(adapter, Pi3FeatureAdapter) else self.adapter)

    def validation_request(self, prompt: str, images: Sequence[Path], **settings: Any) -> GenerationRequest:
        if len(images) != 1:
            raise RequestError(
                f"validation prompts need one image here; give --validation-image once, got {len(images)}"
            )
        return super().validation_request(prompt, images, **settings)


def _network(adapter: Path | Pi3FeatureAdapter | None) -> Pi3FeatureAdapter | None:
    if not isinstance(adapter, Path):
        return adapter
    from poze.adapter import load_adapter

    return load_adapter(adapter)


def see(image: Image.Image, components: Components) -> Findings:
    """What Pi3 knows about an image. Raises CheckpointError when it cannot be fetched or read."""
    with components.part("pi3").active() as pi3:
        views = image_views(image, pi3)
        latents, output = look(pi3, views)
    return Findings(views=views, latents=latents, output=output)


def guide(base: Conditioning, tokens: Tensor, *, space: str = "dit", drop_in_negative: bool = False) -> Conditioning:
    """Conditions with guidance tokens [1, K, width] on the positive branch and, unless dropped, on the negative one."""
    negative = base.negative
    if negative is not None and not drop_in_negative:
        negative = with_guidance(negative, tokens, space=space)
    return replace(base, positive=with_guidance(base.positive, tokens, space=space), negative=negative)
