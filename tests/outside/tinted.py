"""A project of somebody else: a colour steers the video. It adds a network with a weight and inputs of its own, a part
of a family of its own, a task, a preset and a command to the core, without an edit there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wan_core import RequestError
from wan_core.checkpoints import DIT, Family, Part, Shapes, TensorSource, dit_config_reader
from wan_core.cli import build_command, main_of
from wan_core.media import LatentSpec
from wan_core.models import DiTInputs, WanDiT, WanDiTConfig
from wan_core.presets import get_preset, wan_parts
from wan_core.tasks import (
    Clip,
    Components,
    Conditioning,
    GenerationRequest,
    SamplingSettings,
    TaskInputs,
    TextToVideo,
    TrainingClip,
)


@dataclass(frozen=True, kw_only=True)
class TintConfig(WanDiTConfig):
    tint_dim: int = 3


@dataclass(frozen=True, kw_only=True)
class TintInputs(DiTInputs):
    """``tint`` [B, tint_dim]."""

    context_fields: ClassVar[tuple[str, ...]] = (*DiTInputs.context_fields, "tint")
    tint: Tensor


class TintDiT(WanDiT):
    """A transformer that also attends to one token of a colour."""

    inputs_type = TintInputs

    def __init__(self, config: TintConfig) -> None:
        super().__init__(config)
        self.tint_embedding = nn.Linear(config.tint_dim, config.dim)

    def embed_context(self, inputs: DiTInputs) -> tuple[Tensor, Tensor | None]:
        context, image = super().embed_context(inputs)
        token = self.tint_embedding(inputs.tint.to(self.dtype))  # type: ignore[attr-defined]
        return torch.cat([context, token[:, None]], dim=1), image


TINT_DIT = replace(
    DIT,
    name="tint-dit",
    title="the tinted transformer",
    network=TintDiT,
    infer=dit_config_reader(
        TintConfig, lambda source: {"tint_dim": Shapes(source, "tinted DiT").of("tint_embedding.weight", 2)[1]}
    ),
    signature=r"^tint_embedding\.weight$",
)


@dataclass(frozen=True, kw_only=True)
class PaletteConfig:
    size: int = 4


class Palette(nn.Module):
    """Numbers to colours."""

    def __init__(self, config: PaletteConfig) -> None:
        super().__init__()
        self.colours = nn.Embedding(config.size, 3)

    def forward(self, number: int) -> Tensor:
        device = self.colours.weight.device
        colour: Tensor = self.colours(torch.tensor([number], device=device))
        return colour


def read_palette(path: Path, source: TensorSource) -> PaletteConfig:
    return PaletteConfig(size=Shapes(source, "palette").of("colours.weight", 2)[0])


PALETTE = Family(
    name="palette", title="the palette", network=Palette, infer=read_palette, signature=r"^colours\.weight$"
)


@dataclass(frozen=True, kw_only=True)
class TintRequest(GenerationRequest):
    tint: int = field(default=0, metadata={"option": ("--tint",), "help": "The number of a colour."})


class TintedVideo(TextToVideo[TintRequest]):
    """Text to video with a colour of the part ``palette``; it is trained with the first."""

    request_type: ClassVar[type[GenerationRequest]] = TintRequest
    conditions: ClassVar[str | None] = "tinted"

    def load(
        self, request: TintRequest, settings: SamplingSettings, latent_spec: LatentSpec
    ) -> TaskInputs[TintRequest]:
        if request.tint < 0:
            raise RequestError("tint must not be negative")
        return super().load(request, settings, latent_spec)

    def condition(self, inputs: TaskInputs[TintRequest], components: Components, clip: Clip) -> Conditioning:
        base = super().condition(inputs, components, clip)
        with torch.no_grad(), components.part("palette").active() as palette:
            tint = palette(inputs.request.tint)

        def join(states: DiTInputs) -> TintInputs:
            return TintInputs(context=states.context, tint=tint)

        return replace(base, positive=join(base.positive), negative=base.negative and join(base.negative))

    def encode_example(
        self, clip: TrainingClip, components: Components, latent_spec: LatentSpec
    ) -> Mapping[str, Tensor]:
        with components.part("palette").active() as palette:
            return {"tint": palette(0)[0]}

    def training_inputs(
        self, batch: Mapping[str, Tensor], context: Tensor, networks: Mapping[str, nn.Module]
    ) -> TintInputs:
        return TintInputs(context=context, tint=batch["tint"])


_TINY = get_preset("tiny-t2v")
_CONFIG = TintConfig(**vars(_TINY.dit))
PARTS = (*wan_parts(_CONFIG, _TINY.vae), Part(name="palette", family=PALETTE, file="palette.safetensors"))
TINTED = replace(
    _TINY, name="tinted", summary="text to video with a colour", task=TintedVideo(), parts=PARTS, bundled=None
).with_part("dit", family=TINT_DIT)

command = build_command(TINTED, name="tinted")
main: Callable[[], Any] = main_of(command)
