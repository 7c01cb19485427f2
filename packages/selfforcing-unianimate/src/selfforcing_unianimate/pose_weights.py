"""The weights of the pose encoder: found by their names, beside UniAnimate's LoRA or alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfforcing_unianimate.pose_config import PoseConfig
from wan_core import CheckpointError, RequestError
from wan_core.checkpoints import Family, Part, Shapes

if TYPE_CHECKING:
    from selfforcing_unianimate.pose_encoder import PoseEncoder
    from wan_core.checkpoints import TensorSource
    from wan_core.tasks import Components

STACKS = ("dwpose_embedding", "randomref_embedding_pose")
"""Prefixes of the two stacks: of the driving motion, and of the reference."""


def read_pose_config(path: Path, source: TensorSource) -> PoseConfig:
    """The dims that the tensors of the stacks tell. Raises CheckpointError for tensors of other dimensions."""
    shapes, values = Shapes(source, "pose encoder"), dict[str, int]()
    motion, reference = (any(name.startswith(f"{stack}.") for name in source) for stack in STACKS)
    if reference:
        values["hidden"] = shapes.of(f"{STACKS[1]}.0.weight", 4)[0]
        values["reference_channels"] = shapes.of(f"{STACKS[1]}.10.weight", 4)[0]
    if motion:
        values["hidden"] = shapes.of(f"{STACKS[0]}.0.weight", 5)[0]
        values["token_dim"] = shapes.of(f"{STACKS[0]}.12.weight", 5)[0]
    return PoseConfig(**values)


def _network(config: Any) -> PoseEncoder:
    from selfforcing_unianimate.pose_encoder import PoseEncoder

    return PoseEncoder(config)


POSE_ENCODER = Family(
    name="unianimate-pose",
    title="UniAnimate's pose encoder",
    network=_network,
    infer=read_pose_config,
    owns=r"(?:^|\.)(?:dwpose_embedding|randomref_embedding_pose)\.(?=\d+\.(?:weight|bias)$)",
    half_dtype="float32",
    begins_at_zero=tuple(f"{STACKS[1]}.{index}.{kind}" for index in range(0, 12, 2) for kind in ("weight", "bias")),
    at_zero="the skeleton of a picture has no effect",
)
"""Both stacks under the names of the published checkpoint, in which a LoRA lies beside them."""


CHECKPOINT = "UniAnimate-Wan2.1-14B-Lora-12000.ckpt"
"""The published file: the LoRA, and the pose encoder beside it."""

POSE_PART = Part(name="pose_encoder", family=POSE_ENCODER, file=CHECKPOINT, config=PoseConfig(), is_optional=True)
"""The pose encoder among the parts of a model; a request without poses does without."""


def check_pose_encoder(components: Components, token_dim: int, reference_channels: int | None = None) -> None:
    """Whether there is a pose encoder that makes what a network takes; no weight is read.

    Raises RequestError where there is none, CheckpointError for one of other widths.
    """
    pose = components.configs.get(POSE_PART.name)
    if pose is None:
        raise RequestError(
            "poses need UniAnimate's pose encoder: --pose-weights-path FILE, which 'sfu download --only unianimate' "
            "fetches; sfu teacher also finds it beside its --lora"
        )
    made, wanted = [pose.token_dim], [token_dim]
    if reference_channels is not None:
        made, wanted = [*made, pose.reference_channels], [*wanted, reference_channels]
    if made != wanted:
        raise CheckpointError(
            f"{components.found[POSE_PART.name]} makes pose tokens of width {pose.token_dim} and "
            f"{pose.reference_channels} channels, this network takes {' and '.join(map(str, wanted))}; they belong to "
            "different models"
        )
