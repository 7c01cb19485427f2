"""Causal video: blocks of latent frames one after the other, each seeing the ones before it through a memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from selfforcing_unianimate.causal_request import CausalRequest
from selfforcing_unianimate.continuation import given_frames
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.motion import Motion, read_motion
from selfforcing_unianimate.picture import SETTLED, channels_at, no_picture, picture_channels, with_reference
from selfforcing_unianimate.pose_options import NOT_RELATED, no_reference
from selfforcing_unianimate.pose_weights import POSE_PART, check_pose_encoder
from wan_core import RequestError, models, sampling
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
    image_states,
    text_states,
)

if TYPE_CHECKING:
    from torch import Tensor

    from selfforcing_unianimate.causal_dit import CausalInputs
    from selfforcing_unianimate.pose_source import SkeletonWindow
    from wan_core.models import WanDiTConfig

# Far apart, so that no block of one seed has the noise of a block of the next ones.
_SEED_STRIDE = 0x5851_F42D_4C95_7F2D


@dataclass(frozen=True, kw_only=True)
class CausalVideoInputs(TaskInputs[CausalRequest]):
    """How a network takes a video apart, an ``image`` [1, 3, H, W] in [-1, 1] if there is one, and a motion.

    ``video`` [1, 3, T, H, W] in [-1, 1] are the frames that are gone on from, whole blocks of latent ones.
    ``by_channels``: the network has channels beside the latents, in which it gets the image. Others get it as the first
    frame. ``is_related``: the image's skeleton takes part beside the motion.
    """

    layout: FrameBlocks
    image: Tensor | None = None
    video: Tensor | None = None
    motion: Motion | None = None
    by_channels: bool = False
    is_related: bool = False

    @property
    def blocks(self) -> FrameBlocks:
        """The blocks of the video: a given first frame is one of its own."""
        is_first = self.image is not None and not self.by_channels
        return replace(self.layout, first_alone=self.layout.first_alone or is_first)

    def record(self) -> dict[str, Any]:
        blocks = self.blocks
        return {**super().record(), "blocks": {"size": blocks.size, "first_alone": blocks.first_alone}}


@dataclass(frozen=True, kw_only=True)
class CausalConditioning(Conditioning):
    """The conditions of a block with what later ones go on from.

    ``given`` [1, C, T, h, w] are the latents that the video begins with. ``channels`` [1, C, T, h, w] are as of
    ``channels_at``; the ``skeletons`` go on as blocks are conditioned.
    """

    given: Tensor | None = None
    channels: Tensor | None = None
    skeletons: SkeletonWindow | None = field(default=None, compare=False, repr=False)


class CausalVideo(Task[CausalRequest, CausalVideoInputs]):
    """Text or a picture to video, block by block (Self-Forcing, arXiv 2506.08009).

    Every clip of the pipeline is a block. ``blocks`` is the layout that a network was trained for. A network with the
    channels of Wan's image to video gets a picture in them, and as CLIP states where it has a branch for them; all of
    these are zero without one. Another network gets it as a clean first frame, a block of its own. After each block the
    network sees the result once more at timestep ``context_noise``. In Self-Forcing's training that result then has
    noise in it, in its sampling it has not; ``noised_context`` makes sampling as training is.
    """

    request_type: ClassVar[type[GenerationRequest]] = CausalRequest
    streams: ClassVar[bool] = True
    held_parts: ClassVar[tuple[str, ...]] = (POSE_PART.name,)

    def __init__(self, blocks: FrameBlocks, context_noise: float = 0.0, *, noised_context: bool = False) -> None:
        self.blocks = blocks
        self.context_noise = context_noise
        self.noised_context = noised_context

    def load(self, request: CausalRequest, settings: SamplingSettings, latent_spec: LatentSpec) -> CausalVideoInputs:
        layout = replace(
            self.blocks,
            window=self.blocks.window if request.window is None else request.window,
            sink=self.blocks.sink if request.sink is None else request.sink,
        )
        settings, notes, images, geometry = given_frames(request, request.timed(settings), layout, latent_spec)
        motion, more = read_motion(request, geometry, settings.fps)
        image = None if images is None or request.image is None else images[-1:]
        frames = images if images is None or image is None else images[:-1]
        return CausalVideoInputs(
            request=request,
            settings=settings,
            geometry=geometry,
            notes=(*notes, *more),
            image=image,
            video=None if frames is None or request.continue_from is None else frames.transpose(0, 1)[None],
            layout=layout,
            motion=motion,
        )

    def takes(self, network: WanDiTConfig, usual: WanDiTConfig, latent_spec: LatentSpec) -> bool:
        more = network.in_dim - network.out_dim
        if network.out_dim != latent_spec.channels or more == 0:
            return super().takes(network, usual, latent_spec)
        return more == latent_spec.channels + latent_spec.temporal_stride  # with or without an image branch

    def check(self, inputs: CausalVideoInputs, components: Components) -> CausalVideoInputs:
        network, request = components.configs["dit"], inputs.request
        more = network.in_dim - network.out_dim
        if inputs.image is not None and network.image_dim is not None and components.image_encoder is None:
            raise RequestError(
                "this network sees a picture through CLIP, whose image encoder is not there: --part "
                "image_encoder=FILE, which 'sfu download --only clip' fetches; or leave --image out"
            )
        if inputs.image is not None and inputs.video is not None and not more:
            raise RequestError("this network begins with a picture or with a video; give --image or --continue")
        inputs = replace(inputs, by_channels=more > 0)
        if inputs.motion is None:
            return inputs
        is_related = inputs.by_channels and inputs.image is not None and request.mode == "both"
        if is_related and inputs.motion.reference is None:
            raise no_reference(request)
        check_pose_encoder(components, network.pose_dim, more if is_related else None)
        notes = dict.fromkeys((*inputs.notes, *_pose_notes(inputs)))
        return replace(inputs, is_related=is_related, notes=tuple(notes))

    def num_clips(self, inputs: CausalVideoInputs) -> int:
        return inputs.blocks.count(inputs.geometry.latent_frames)

    def noise_seed(self, seed: int, clip: Clip) -> int:
        return (seed + clip.index * _SEED_STRIDE) % 2**63

    def condition(self, inputs: CausalVideoInputs, components: Components, clip: Clip) -> Conditioning:
        start, stop = inputs.blocks.span(clip.index, inputs.geometry.latent_frames)
        depth, _, *sides = inputs.geometry.latent_shape
        before = cast(CausalConditioning, clip.previous or self._beginning(inputs, components))
        pose = None
        if inputs.motion is not None and before.skeletons is not None:
            pose = inputs.motion.tokens(components, before.skeletons, start, stop)
        in_negative = inputs.motion is not None and inputs.motion.in_negative
        channels = None if before.channels is None else channels_at(before.channels, start, stop)
        negative, anchors, known = before.negative, None, before.given
        if known is not None and start < known.shape[2]:
            anchors = sampling.Anchors.leading(known[:, :, start:stop], stop - start)
        is_known = anchors is not None and inputs.video is not None
        return replace(
            before,
            positive=_at(before.positive, start, channels, pose),
            negative=None if negative is None else _at(negative, start, channels, pose if in_negative else None),
            latent_shape=(1, depth, stop - start, *sides),
            anchors=anchors,
            decode=replace(before.decode, drop_frames=inputs.geometry.num_frames if is_known else 0),
        )

    def _beginning(self, inputs: CausalVideoInputs, components: Components) -> CausalConditioning:
        """Text, the picture, and empty memories."""
        context, empty = text_states(inputs, components)
        states = _image_states(inputs, components)
        return CausalConditioning(
            positive=_branch(inputs, context, states),
            negative=None if empty is None else _branch(inputs, empty, states),
            latent_shape=(),
            decode=DecodePlan(cache=models.DecoderCache()),
            revisit=self.context_noise,
            noised_revisit=self.noised_context,
            solver_options=inputs.request.solver_options,
            given=_given_latents(inputs, components),
            channels=_channels(inputs, components),
            skeletons=None if inputs.motion is None else inputs.motion.window(),
        )

    def kept_bytes(self, inputs: CausalVideoInputs, network: WanDiTConfig, itemsize: int) -> int:
        geometry, branches = inputs.geometry, 1 if inputs.settings.guidance_scale == 1 else 2
        frames, tokens = geometry.latent_frames, geometry.tokens_per_frame
        return branches * inputs.blocks.memory_bytes(network, frames, tokens, itemsize)

    def tokens_at_once(self, inputs: CausalVideoInputs) -> int:
        return inputs.blocks.size * inputs.geometry.tokens_per_frame

    def describe(self, inputs: CausalVideoInputs) -> Mapping[str, object]:
        blocks = inputs.blocks
        return {
            **super().describe(inputs),
            **_counts(inputs),
            "tokens": inputs.geometry.num_tokens,
            "frames_per_block": blocks.size,
            "window": blocks.window,
            "sink": blocks.sink,
        }


def _counts(inputs: CausalVideoInputs) -> Mapping[str, object]:
    """Frames that are given and those that are made, where a video is gone on from."""
    if inputs.video is None:
        return {}
    given = inputs.video.shape[2]
    return {"num_frames": inputs.geometry.num_frames - given, "given_frames": given}


def _branch(inputs: CausalVideoInputs, context: Tensor, states: Tensor | None) -> CausalInputs:
    """One branch of guidance, which has seen nothing yet."""
    from selfforcing_unianimate.causal_dit import CausalInputs
    from selfforcing_unianimate.memory import CausalMemory

    memory = CausalMemory(inputs.blocks, inputs.geometry.latent_frames)
    made = CausalInputs(context=context, image_context=states, blocks=inputs.blocks, memory=memory)
    return made.with_cache()


def _at(branch: Any, start: int, channels: Tensor | None, pose: Tensor | None) -> Any:
    """The conditions of a branch, with all that it remembers, at the block that begins at frame ``start``."""
    return replace(branch, start=start, channel_concat=channels, add_condition=pose)


def _given_latents(inputs: CausalVideoInputs, components: Components) -> Tensor | None:
    """The latents [1, C, T, h, w] that the video begins with."""
    if inputs.video is not None:
        with components.vae.active() as vae:
            encoded: Tensor = vae.encode(inputs.video.to(components.device))
        return encoded
    if inputs.image is not None and not inputs.by_channels:
        return encode_images(inputs.image, components)
    return None


def _channels(inputs: CausalVideoInputs, components: Components) -> Tensor | None:
    """What the network gets beside the latents, with the picture's skeleton in it; None where it takes nothing."""
    if not inputs.by_channels:
        return None
    if inputs.image is None:
        return no_picture(inputs.geometry, components)
    latent_frames = min(inputs.geometry.latent_frames, SETTLED)
    channels = picture_channels(inputs.image[0], inputs.geometry, latent_frames, components)
    if inputs.motion is None or not inputs.is_related:
        return channels
    return with_reference(channels, inputs.motion.reference_channels(components))


def _image_states(inputs: CausalVideoInputs, components: Components) -> Tensor | None:
    """CLIP states [1, tokens, dim] of the picture, zero without one; None for a network that takes none."""
    import torch

    network = components.configs["dit"]
    if network.image_dim is None:
        return None
    if inputs.image is None:
        return torch.zeros(1, network.image_tokens, network.image_dim, device=components.device)
    return image_states([inputs.image[0]], components)


def _pose_notes(inputs: CausalVideoInputs) -> Iterator[str]:
    """What of a motion and its picture does not take part."""
    asked, alone = inputs.request.pose_mode, "--pose-mode both: {}; the motion alone takes part"
    if asked == "both" and not inputs.by_channels:
        yield alone.format("this network has no channels for the skeleton of a picture")
    elif asked == "both" and inputs.image is None:
        yield alone.format("without --image there is no picture to whose skeleton it could relate")
    elif asked == "pose_only" and inputs.by_channels and inputs.image is not None:
        yield NOT_RELATED
