"""How BindWeave's transformer is recognised and read, under each of its three namings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bindweave.config import BindWeaveConfig
from wan_core.checkpoints import DIT, CheckpointFormat, Shapes, dit_config_reader

if TYPE_CHECKING:
    from torch import nn

    from wan_core.checkpoints import TensorSource

PROJECTOR = "text_projector"


def _mllm_dim(source: TensorSource) -> Mapping[str, Any]:
    return {"mllm_dim": Shapes(source, "BindWeave").of(f"{PROJECTOR}.linear_1.weight", 2)[1]}


def _network(config: BindWeaveConfig) -> nn.Module:
    from bindweave.dit import BindWeaveDiT

    return BindWeaveDiT(config)


_ATTENTION = (("proj_q", "q"), ("proj_k", "k"), ("proj_v", "v"), ("proj_out", "o"), ("q_norm", "norm_q"),
              ("k_norm", "norm_k"), ("k_norm_img", "norm_k_img"))  # fmt: skip

MM = CheckpointFormat(
    name="mm",
    marker=r"(?:^|\.)text_embedding\.linear_|_attn\.(?:proj_(?:q|k|v|out)|[qk]_norm)\.",
    renames=(
        ("text_embedding.linear_1", "text_embedding.0"),
        ("text_embedding.linear_2", "text_embedding.2"),
        *(
            (f"blocks.{{}}.{kind}.{theirs}", f"blocks.{{}}.{kind}.{ours}")
            for kind in ("self_attn", "cross_attn")
            for theirs, ours in _ATTENTION
        ),
    ),
)
"""The names of MindSpeed-MM, in which the original trains and runs."""

_DIFFUSERS = next(each for each in DIT.formats if each.name == "diffusers")

BINDWEAVE = replace(
    DIT,
    name="bindweave",
    title="BindWeave's transformer",
    network=_network,
    infer=dit_config_reader(BindWeaveConfig, _mllm_dim),
    formats=(
        replace(_DIFFUSERS, renames=(*_DIFFUSERS.renames, (f"condition_embedder.{PROJECTOR}", PROJECTOR))),
        MM,
        DIT.formats[-1],
    ),
    signature=rf"(?:^|\.)(?:condition_embedder\.|(?<!condition_embedder\.)){PROJECTOR}\.linear_[12]\.(?:weight|bias)$",
)
"""Wan2.1 image-to-video and the connector; the release has the names of diffusers."""
