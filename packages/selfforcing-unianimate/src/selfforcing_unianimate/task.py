"""Causal video: blocks of latent frames one after the other, each seeing the ones before it through a memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from selfforcing_unianimate.frame_blocks import FrameBlocks
from wan_core import media, models, sampling
from wan_core.media import LatentSpec
from wan_core.tasks import (
    Clip,
    Components,
    Conditioning,
    DecodePlan,
    GenerationRequest,
    SamplingSettings,
    Task,
    TaskInputs,
    encode_images,
    exact_geometry,
    prepare_anchor_images,
    text_states,
)

if TYPE_CHECKING:
    from torch import Tensor

    from selfforcing_unianimate.causal_dit import CausalInputs
    from wan_core.models import WanDiTConfig

# Far apart, so that no block of one seed has the noise of a block of the next ones.
_SEED_STRIDE = 0x5851_F42D_4C95_7F2D


@dataclass(frozen=True, kw_only=True)
class CausalRequest(GenerationRequest):
    """A prompt, and if wanted the first frame. ``window`` and ``sink`` are latent frames, as of ``FrameBlocks``."""

    image: Path | None = field(
        default=None, metadata={"option": ("--image",), "help": "The picture that the video starts with."}
    )
    window: int | None = field(
        default=None,
        metadata={"option": ("--window",), "help": "Latent frames that a block looks back on, its own too."},
    )
    sink: int | None = field(
        default=None, metadata={"option": ("--sink",), "help": "First latent frames that always stay in sight."}
    )


@dataclass(frozen=True, kw_only=True)
class CausalVideoInputs(TaskInputs[CausalRequest]):
    """``images`` [N, 3, H, W] in [-1, 1] with N of 0 or 1, the first frame, and how the video is taken apart."""

    images: Tensor
    blocks: FrameBlocks


class CausalVideo(Task[CausalRequest, CausalVideoInputs]):
    """Text to video, or a given frame to video, block by block (Self-Forcing, arXiv 2506.08009).

    Every clip of the pipeline is a block. ``blocks`` is the layout that a network was trained for; a given first frame
    is a block of its own. After each block the network sees the result once more at timestep ``context_noise``.
    """

    request_type: ClassVar[type[GenerationRequest]] = CausalRequest
    streams: ClassVar[bool] = True

    def __init__(self, blocks: FrameBlocks, context_noise: float = 0.0) -> None:
        self.blocks = blocks
        self.context_noise = context_noise

    def load(self, request: CausalRequest, settings: SamplingSettings, latent_spec: LatentSpec) -> CausalVideoInputs:
        blocks = replace(
            self.blocks,
            window=self.blocks.window if request.window is None else request.window,
            sink=self.blocks.sink if request.sink is None else request.sink,
            first_alone=self.blocks.first_alone or request.image is not None,
        )
        if request.image is None:
            import torch

            geometry = exact_geometry(settings, latent_spec)
            images = torch.empty(0, 3, geometry.height, geometry.width)
        else:
            images, geometry = prepare_anchor_images(
                [media.load_image(request.image)], settings.width * settings.height, settings.num_frames, latent_spec
            )
        return CausalVideoInputs(request=request, settings=settings, geometry=geometry, images=images, blocks=blocks)

    def num_clips(self, inputs: CausalVideoInputs) -> int:
        return inputs.blocks.count(inputs.geometry.latent_frames)

    def noise_seed(self, seed: int, clip: Clip) -> int:
        return (seed + clip.index * _SEED_STRIDE) % 2**63

    def condition(self, inputs: CausalVideoInputs, components: Components, clip: Clip) -> Conditioning:
        start, stop = inputs.blocks.span(clip.index, inputs.geometry.latent_frames)
        channels, _, *sides = inputs.geometry.latent_shape
        shape = (1, channels, stop - start, *sides)
        if clip.previous is not None:
            before = clip.previous
            positive, negative = self._going_on(before.positive, start), self._going_on(before.negative, start)
            return replace(before, positive=positive, negative=negative, latent_shape=shape, anchors=None)
        anchors = None
        if len(inputs.images):
            anchors = sampling.Anchors.leading(encode_images(inputs.images, components), 1)
        context, empty = text_states(inputs, components)
        return Conditioning(
            positive=self._beginning(inputs, context),
            negative=None if empty is None else self._beginning(inputs, empty),
            latent_shape=shape,
            anchors=anchors,
            decode=DecodePlan(cache=models.DecoderCache()),
            revisit=self.context_noise,
        )

    def _beginning(self, inputs: CausalVideoInputs, context: Tensor) -> CausalInputs:
        from selfforcing_unianimate.causal_dit import CausalInputs
        from selfforcing_unianimate.memory import CausalMemory

        memory = CausalMemory(inputs.blocks, inputs.geometry.latent_frames)
        return CausalInputs(context=context, blocks=inputs.blocks, memory=memory).with_cache()

    def _going_on(self, branch: Any, start: int) -> Any:
        """The conditions of a branch, with its memory, at the block that begins at frame ``start``."""
        return None if branch is None else replace(branch, start=start)

    def kept_bytes(self, inputs: CausalVideoInputs, network: WanDiTConfig, itemsize: int) -> int:
        geometry, branches = inputs.geometry, 1 if inputs.settings.guidance_scale == 1 else 2
        frames, tokens = geometry.latent_frames, geometry.tokens_per_frame
        return branches * inputs.blocks.memory_bytes(network, frames, tokens, itemsize)

    def describe(self, inputs: CausalVideoInputs) -> Mapping[str, object]:
        blocks = inputs.blocks
        return {
            **super().describe(inputs),
            "frames_per_block": blocks.size,
            "window": blocks.window,
            "sink": blocks.sink,
        }
