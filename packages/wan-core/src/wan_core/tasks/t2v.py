"""Text to video: the prompt is the only condition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from wan_core import models
from wan_core.media import LatentSpec, VideoGeometry
from wan_core.tasks.base import Clip, Components, RequestT, Task, TaskInputs
from wan_core.tasks.conditioning import Conditioning
from wan_core.tasks.prompts import encode_prompts
from wan_core.tasks.request import Experts, SamplingSettings

if TYPE_CHECKING:
    from torch import Tensor


def is_guided(settings: SamplingSettings) -> bool:
    """Whether any expert's guidance differs from 1, so that the negative branch is needed at all."""
    scale = settings.guidance_scale
    return any(value != 1 for value in ((scale.high, scale.low) if isinstance(scale, Experts) else (scale,)))


def prompts_of(inputs: TaskInputs[Any]) -> list[str]:
    """The prompt and, when guidance needs it, the negative prompt."""
    negative = [inputs.settings.negative_prompt] if is_guided(inputs.settings) else []
    return [inputs.request.prompt, *negative]


def text_states(inputs: TaskInputs[Any], components: Components) -> tuple[Tensor, Tensor | None]:
    """Text states of the prompt and, when guidance needs it, of the negative prompt: [1, L, dim] each."""
    states = encode_prompts(components.text_encoder, prompts_of(inputs), components.prompt_cache, components.device)
    return states[0], states[1] if len(states) > 1 else None


def exact_geometry(settings: SamplingSettings, latent_spec: LatentSpec) -> VideoGeometry:
    """The geometry of exactly the requested size."""
    return VideoGeometry.for_video(
        latent_spec, num_frames=settings.num_frames, height=settings.height, width=settings.width
    )


class TextToVideo(Task[RequestT, TaskInputs[RequestT]]):
    """Text to video for Wan2.1 and the two-expert Wan2.2 (arXiv 2503.20314)."""

    prompt_kind: ClassVar[str] = "t2v"
    conditions: ClassVar[str | None] = "t2v"

    def load(self, request: RequestT, settings: SamplingSettings, latent_spec: LatentSpec) -> TaskInputs[RequestT]:
        return TaskInputs(request=request, settings=settings, geometry=exact_geometry(settings, latent_spec))

    def condition(self, inputs: TaskInputs[RequestT], components: Components, clip: Clip) -> Conditioning:
        context, negative = text_states(inputs, components)
        return Conditioning(
            positive=models.DiTInputs(context=context),
            negative=None if negative is None else models.DiTInputs(context=negative),
            latent_shape=(1, *inputs.geometry.latent_shape),
        )
