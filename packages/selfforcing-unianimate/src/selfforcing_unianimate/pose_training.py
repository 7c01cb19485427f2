"""Learning from motions: what the poses of a clip become in a cache of examples, and in a batch.

UniAnimate-DiT trains its pose encoder beside a LoRA of the network; the picture of who moves is any frame of the clip,
and a small share of the samples goes without poses.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from selfforcing_unianimate.picture import picture_channels, with_reference
from selfforcing_unianimate.pose_source import PoseSource, Skeletons, chosen_pictures, open_pose
from selfforcing_unianimate.pose_weights import POSE_PART, check_pose_encoder
from wan_core import MediaError, RequestError
from wan_core.files import VIDEO_ENDINGS, plain_text
from wan_core.media import VideoGeometry
from wan_core.tasks import (
    DROPPED,
    Companion,
    Components,
    ExampleFiles,
    TrainingClip,
    image_states,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wan_core.models import DiTInputs

POSE_FILES: Mapping[str, Sequence[str]] = {"pose": (".npz", *VIDEO_ENDINGS, "")}
"""An example's poses: what ``open_pose`` opens. They are those of its own video, frame by frame."""
MOTION, REFERENCE = "motion", "reference"
"""Names of the packed skeletons in a cached example."""
POSE_DROPOUT = 0.05
_TOLERANCE = 1e-6


def check_poses(beside: ExampleFiles, num_frames: int) -> None:
    """Whether an example's poses are those of its clip. Raises RequestError, MediaError."""
    source = _source(beside)
    _indices(source, beside, num_frames)
    if beside.picture is not None and not source.has_reference:
        raise RequestError(
            f"{plain_text(beside.paths['pose'])} has no skeleton of the example's own picture; make it with 'sfu pose "
            "VIDEO --reference PICTURE --align none', or leave the picture out: then a frame of the clip is it"
        )


def clip_poses(clip: TrainingClip) -> tuple[Tensor, Skeletons]:
    """The picture of who moves [3, H, W] of a training clip, and the skeletons that go with the two.

    It is the example's own picture, or a frame of the clip that the name of the example chooses. Raises as
    `check_poses`.
    """
    if clip.beside is None:
        raise RequestError("this model learns from clips with poses, and this one has none")
    beside, sides = clip.beside, clip.frames.shape[1:]
    count, height, width = int(sides[0]), int(sides[1]), int(sides[2])
    check_poses(beside, count)
    source = _source(beside)
    fitted, cut = _covering(source.size, width, height)
    frames = chosen_pictures(source, _indices(source, beside, count), *fitted)[:, :, cut[0], cut[1]].contiguous()
    if beside.picture is None:
        index = zlib.crc32(f"{beside.paths['pose'].name}/{beside.start}".encode()) % count
        return clip.frames[:, index], Skeletons(frames, frames[:, index].permute(1, 2, 0).contiguous())
    fitted, cut = _covering(beside.picture, width, height)
    reference = source.reference(*fitted)
    if reference is None:
        raise ValueError("a source that has a reference gives one")
    return clip.image, Skeletons(frames, reference[cut[0], cut[1]].contiguous())


def encode_posed(
    image: Tensor, poses: Skeletons | None, geometry: VideoGeometry, components: Components
) -> dict[str, Tensor]:
    """What training reads of a picture [3, H, W] and its motion, on the device of the run.

    ``channels`` [stride + C, T, h, w] without any skeleton, ``image`` [tokens, dim] where the model has an image
    encoder, and the packed skeletons.
    """
    from selfforcing_unianimate.packed_pixels import pack_pixels

    tensors = {"channels": picture_channels(image, geometry, geometry.latent_frames, components)[0]}
    if components.image_encoder is not None:
        tensors["image"] = image_states([image], components)[0]
    if poses is not None:
        tensors[MOTION] = pack_pixels(poses.frames)
    if poses is not None and poses.reference is not None:
        tensors[REFERENCE] = pack_pixels(poses.reference)
    return tensors


def unpack_poses(row: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A cached example with its skeletons as pixels: ``motion`` [3, F, H, W], ``reference`` [H, W, 3], uint8.

    Raises CheckpointError for damaged ones.
    """
    from selfforcing_unianimate.packed_pixels import unpack_pixels

    return {**row, **{name: unpack_pixels(row[name]) for name in (MOTION, REFERENCE) if name in row}}


def with_poses(inputs: DiTInputs, batch: Mapping[str, Tensor], encoder: nn.Module) -> DiTInputs:
    """Conditions of a batch with the skeletons in it, but for samples that are `DROPPED`: those have neither.

    The ``encoder`` is a ``PoseEncoder``; it computes in float32 under autocast, too.
    """
    import torch

    from selfforcing_unianimate.pose_encoder import pose_tokens

    with torch.autocast(batch[MOTION].device.type, enabled=False):
        motion, reference = encoder(batch[MOTION], batch.get(REFERENCE))
    tokens = pose_tokens(motion)
    if DROPPED in batch:
        kept = (~batch[DROPPED]).to(tokens)
        tokens = tokens * kept.view(-1, 1, 1, 1)
        reference = None if reference is None else reference * kept.view(-1, 1, 1, 1, 1)
    channels = inputs.channel_concat
    if reference is not None and channels is not None:
        channels = with_reference(channels, reference)
    return replace(inputs, add_condition=tokens, channel_concat=channels)


def pose_companion(components: Components) -> Companion:
    """The pose encoder to train: the model's, or a new one that adds nothing yet, as its last layers are zero.

    Raises CheckpointError for one of another model.
    """
    import torch

    from selfforcing_unianimate.pose_config import PoseConfig
    from selfforcing_unianimate.pose_encoder import PoseEncoder

    network = components.configs["dit"]
    width, channels = network.dim, network.in_dim - network.out_dim
    if POSE_PART.name in components.parts:
        check_pose_encoder(components, width, channels)
        encoder: Any = components.part(POSE_PART.name).trainable(torch.float32)
        for parameter in encoder.parameters():
            parameter.data = parameter.data.clone()  # a mapped file is not to be written to
        return Companion(network=encoder)
    encoder = PoseEncoder(PoseConfig(token_dim=width, reference_channels=channels))
    for stack in (encoder.dwpose_embedding, encoder.randomref_embedding_pose):
        for parameter in stack[-1].parameters():
            torch.nn.init.zeros_(parameter)
    return Companion(network=encoder)


def _source(beside: ExampleFiles) -> PoseSource:
    path = beside.paths["pose"]
    source = open_pose(path)
    if source.alignment != "none":
        raise RequestError(
            f"{plain_text(path)} has poses that were brought to another picture ({source.alignment}); training needs "
            "those of the clip itself: 'sfu pose VIDEO --align none'"
        )
    return source


def _indices(source: PoseSource, beside: ExampleFiles, count: int) -> list[int]:
    """The pose of each frame of a clip, as the frames are chosen: the nearest in time, of two the earlier."""
    rate = beside.fps if source.fps is None else source.fps
    times = [(beside.start + index / beside.fps) * rate for index in range(count)]
    indices = [max(0, math.ceil(time - 0.5 - _TOLERANCE)) for time in times]
    if indices[-1] > source.num_frames:  # a clip may hold its last frame once
        raise MediaError(
            f"{plain_text(beside.paths['pose'])} has {source.num_frames} poses, and the clip of {count} frames from "
            f"second {beside.start:g} needs {indices[-1] + 1} at {rate:g} a second"
        )
    return [min(index, source.num_frames - 1) for index in indices]


def _covering(size: tuple[int, int], width: int, height: int) -> tuple[tuple[int, int], tuple[slice, slice]]:
    """The size at which a picture covers another, and the rows and columns then kept: as clips are cut."""
    scale = max(width / size[0], height / size[1])
    fitted = max(width, round(size[0] * scale)), max(height, round(size[1] * scale))
    left, top = (fitted[0] - width) // 2, (fitted[1] - height) // 2
    return fitted, (slice(top, top + height), slice(left, left + width))
