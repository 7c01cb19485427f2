"""How the causal transformer is recognised and read: any Wan transformer, with or without ``pose_proj``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from selfforcing_unianimate.config import CausalDiTConfig
from wan_core.checkpoints import DIT, Shapes, dit_config_reader

if TYPE_CHECKING:
    from torch import nn

    from wan_core.checkpoints import TensorSource

_POSE_WEIGHT = "pose_proj.weight"


def _pose_dim(source: TensorSource) -> Mapping[str, Any]:
    """The width of pose tokens where the file tells it; else it is what the config says, or UniAnimate's."""
    if _POSE_WEIGHT not in source:
        return {}
    return {"pose_dim": Shapes(source, "causal DiT").of(_POSE_WEIGHT, 2)[1]}


def _own_width(source: TensorSource) -> Mapping[str, Any]:
    """The width of pose tokens where the file knows poses, else the network's own, as the teacher takes them."""
    shapes = Shapes(source, "teacher")
    return _pose_dim(source) if _POSE_WEIGHT in source else {"pose_dim": shapes.of("patch_embedding.weight", 5)[0]}


def _network(config: CausalDiTConfig) -> nn.Module:
    from selfforcing_unianimate.causal_dit import CausalDiT

    return CausalDiT(config)


CAUSAL_DIT = replace(
    DIT,
    name="causal-dit",
    title="the causal transformer",
    network=_network,
    infer=dit_config_reader(CausalDiTConfig, _pose_dim),
    signature=r"(?:^|\.)pose_proj\.weight$",
    base=DIT,
    begins_at_zero=(_POSE_WEIGHT, "pose_proj.bias"),
    at_zero="poses have no effect",
)
"""A Wan transformer that also takes pose tokens. Self-Forcing's own files, and Wan2.1's, have no ``pose_proj``."""

TEACHER_DIT = replace(
    CAUSAL_DIT,
    name="teacher-dit",
    title="the teacher's transformer",
    infer=dit_config_reader(CausalDiTConfig, _own_width),
)
"""The same network as a teacher of all frames at once: without ``pose_proj`` it takes pose tokens as they are."""
