"""How BindWeave's transformer is recognised and read, under each of its three namings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindweave.config import BindWeaveConfig, ConnectorConfig
from wan_core import CheckpointError
from wan_core.checkpoints import DIT, CheckpointFormat, Family, Part, Shapes, dit_config_reader
from wan_core.files import plain_text

if TYPE_CHECKING:
    from torch import nn

    from wan_core.checkpoints import TensorSource

PROJECTOR = "text_projector"


def _mllm_dim(source: TensorSource) -> Mapping[str, Any]:
    """The width of the states where the file has a connector; plain Wan has none."""
    if not any(name.startswith(f"{PROJECTOR}.") for name in source):
        return {"mllm_dim": None}
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
    base=DIT,
    signature=rf"(?:^|\.)(?:condition_embedder\.|(?<!condition_embedder\.)){PROJECTOR}\.linear_[12]\.(?:weight|bias)$",
)
"""Wan2.1 image-to-video and the connector; the release has the names of diffusers. Files of Wan itself have none."""


def no_connector(place: object) -> CheckpointError:
    """The error for a transformer that has no connector, where one is needed."""
    return CheckpointError(
        f"{plain_text(place)} has no {PROJECTOR}, BindWeave's connector: it is Wan's own network; give BindWeave's "
        "with --dit, or a connector that 'bindweave train' made with --connector"
    )


def _connector(config: ConnectorConfig) -> nn.Module:
    from bindweave.dit import Connector

    return Connector(config)


def _connector_config(path: Path, source: TensorSource) -> ConnectorConfig:
    text_dim, dim = Shapes(source, "the connector").of(f"{PROJECTOR}.linear_1.weight", 2)
    return ConnectorConfig(dim=dim, text_dim=text_dim)


CONNECTOR = Family(
    name="bindweave-connector",
    title="BindWeave's connector",
    network=_connector,
    infer=_connector_config,
    owns=rf"(?:^|\.){PROJECTOR}\.(?=linear_[12]\.(?:weight|bias)$)",
)
"""The connector alone, or out of a file that holds the transformer too."""

CONNECTOR_PART = Part(
    name="connector", family=CONNECTOR, file="connector.safetensors", config=ConnectorConfig(), is_optional=True
)
"""A connector beside a transformer, in place of the one that this has."""
