"""Causal video: blocks of latent frames one after the other, each seeing the ones before it through a memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.motion import Motion, read_motion
from selfforcing_unianimate.pose_options import PosedRequest
from selfforcing_unianimate.pose_weights import POSE_PART, check_pose_encoder
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
class CausalRequest(PosedRequest):
    """A prompt, and if wanted the first frame and a motion.

    ``window`` and ``sink`` are latent frames, as of ``FrameBlocks``. The motion goes to both branches of guidance
    unless ``pose_branch`` says otherwise.
    """

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
    """How the video is taken apart, its first frame ``image`` [1, 3, H, W] in [-1, 1] if there is one, and a motion."""

    blocks: FrameBlocks
    image: Tensor | None = None
    motion: Motion | None = None


class CausalVideo(Task[CausalRequest, CausalVideoInputs]):
    """Text to video, or a given frame to video, block by block (Self-Forcing, arXiv 2506.08009).

    Every clip of the pipeline is a block. ``blocks`` is the layout that a network was trained for; a given first frame
    is a block of its own. After each block the network sees the result once more at timestep ``context_noise``. In
    Self-Forcing's training that result then has noise in it, in its sampling it has not; ``noised_context`` makes
    sampling as training is.
    """

    request_type: ClassVar[type[GenerationRequest]] = CausalRequest
    streams: ClassVar[bool] = True
    held_parts: ClassVar[tuple[str, ...]] = (POSE_PART.name,)

    def __init__(self, blocks: FrameBlocks, context_noise: float = 0.0, *, noised_context: bool = False) -> None:
        self.blocks = blocks
        self.context_noise = context_noise
        self.noised_context = noised_context

    def load(self, request: CausalRequest, settings: SamplingSettings, latent_spec: LatentSpec) -> CausalVideoInputs:
        blocks = replace(
            self.blocks,
            window=self.blocks.window if request.window is None else request.window,
            sink=self.blocks.sink if request.sink is None else request.sink,
            first_alone=self.blocks.first_alone or request.image is not None,
        )
        image, geometry = None, exact_geometry(settings, latent_spec)
        if request.image is not None:
            area = settings.width * settings.height
            given = [media.load_image(request.image)]
            image, geometry = prepare_anchor_images(given, area, settings.num_frames, latent_spec)
        motion, notes = read_motion(request, geometry, settings.fps)
        return CausalVideoInputs(
            request=request,
            settings=settings,
            geometry=geometry,
            notes=notes,
            image=image,
            blocks=blocks,
            motion=motion,
        )

    def check(self, inputs: CausalVideoInputs, components: Components) -> None:
        if inputs.motion is not None:
            check_pose_encoder(components, components.configs["dit"].pose_dim)

    def num_clips(self, inputs: CausalVideoInputs) -> int:
        return inputs.blocks.count(inputs.geometry.latent_frames)

    def noise_seed(self, seed: int, clip: Clip) -> int:
        return (seed + clip.index * _SEED_STRIDE) % 2**63

    def condition(self, inputs: CausalVideoInputs, components: Components, clip: Clip) -> Conditioning:
        start, stop = inputs.blocks.span(clip.index, inputs.geometry.latent_frames)
        channels, _, *sides = inputs.geometry.latent_shape
        shape = (1, channels, stop - start, *sides)
        pose = None if inputs.motion is None else inputs.motion.tokens(components, start, stop)
        before = clip.previous or self._beginning(inputs, components)
        in_negative = inputs.motion is not None and inputs.motion.in_negative
        return replace(
            before,
            positive=_at(before.positive, start, pose),
            negative=before.negative and _at(before.negative, start, pose if in_negative else None),
            latent_shape=shape,
            anchors=None if clip.previous else before.anchors,
        )

    def _beginning(self, inputs: CausalVideoInputs, components: Components) -> Conditioning:
        """Text, the first frame, and empty memories."""
        anchors = None
        if inputs.image is not None:
            anchors = sampling.Anchors.leading(encode_images(inputs.image, components), 1)
        context, empty = text_states(inputs, components)
        return Conditioning(
            positive=_branch(inputs, context),
            negative=None if empty is None else _branch(inputs, empty),
            latent_shape=(),
            anchors=anchors,
            decode=DecodePlan(cache=models.DecoderCache()),
            revisit=self.context_noise,
            noised_revisit=self.noised_context,
        )

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


def _branch(inputs: CausalVideoInputs, context: Tensor) -> CausalInputs:
    """One branch of guidance, which has seen nothing yet."""
    from selfforcing_unianimate.causal_dit import CausalInputs
    from selfforcing_unianimate.memory import CausalMemory

    memory = CausalMemory(inputs.blocks, inputs.geometry.latent_frames)
    return CausalInputs(context=context, blocks=inputs.blocks, memory=memory).with_cache()


def _at(branch: Any, start: int, pose: Tensor | None) -> Any:
    """The conditions of a branch, with all that it remembers, at the block that begins at frame ``start``."""
    return replace(branch, start=start, add_condition=pose)
