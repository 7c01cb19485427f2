"""The weights of the pose encoder: found by their names, beside UniAnimate's LoRA or alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfforcing_unianimate.pose_config import PoseConfig
from wan_core import checkpoints
from wan_core.checkpoints import Family, Shapes

if TYPE_CHECKING:
    import torch

    from selfforcing_unianimate.pose_encoder import PoseEncoder
    from wan_core.checkpoints import TensorSource

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
)
"""Both stacks under the names of the published checkpoint, in which a LoRA lies beside them."""


def load_pose_encoder(
    path: str | os.PathLike[str], *, strict: bool = True, device: torch.device | str = "cpu"
) -> tuple[PoseEncoder, tuple[str, ...]]:
    """The pose encoder of a ``.ckpt``, ``.pt`` or ``.safetensors`` file in float32, and the names that the file lacks.

    ``strict=False`` takes a file with one of the two stacks: the other one is zero, and so adds nothing. Raises
    CheckpointError for a file without either, for one that lacks other tensors or has further ones of that name.
    """
    import torch

    native: TensorSource = checkpoints.native_weights(checkpoints.read_weights(Path(path)), POSE_ENCODER)
    config = read_pose_config(Path(path), native)
    missing: tuple[str, ...] = ()
    if not strict:
        native, missing = _with_silent_stack(native, config)
    loaded = checkpoints.load_model(config, native, family=POSE_ENCODER, dtype=torch.float32, device=device)
    return loaded, missing


def _with_silent_stack(native: TensorSource, config: PoseConfig) -> tuple[TensorSource, tuple[str, ...]]:
    """The weights with zeros for a stack that they lack, and the names of those zeros."""
    absent = [stack for stack in STACKS if not any(name.startswith(f"{stack}.") for name in native)]
    if not absent:
        return native, ()
    import torch

    wanted = checkpoints.build_on_meta(lambda: _network(config)).state_dict()
    zeros = {name: torch.zeros(tensor.shape) for name, tensor in wanted.items() if name.startswith(absent[0] + ".")}
    known = {name: native.read(name) for name in native}
    return checkpoints.MemorySource({**known, **zeros}, path=native.path), tuple(zeros)
