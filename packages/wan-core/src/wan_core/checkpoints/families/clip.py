"""The CLIP image tower: the original file's and transformers' names, dims from shapes, where its files lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core import models
from wan_core.checkpoints.families.clip_names import CLIP_ORIGINAL_RENAMES, join_clip_tensors, split_clip_tensor
from wan_core.checkpoints.families.record import Family, Places
from wan_core.checkpoints.families.shapes import Shapes, build_config, heads_of, stated
from wan_core.checkpoints.formats import CheckpointFormat, Renames
from wan_core.errors import CheckpointError
from wan_core.models import CLIP_VIT_H14, CLIPConfig

if TYPE_CHECKING:
    from torch import nn

    from wan_core.checkpoints.readers.sources import TensorSource

CLIP_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
HEAD_DIM = CLIP_VIT_H14.dim // CLIP_VIT_H14.num_heads
_CLIP_PROJECTION = 1024

TRANSFORMERS_CLIP: Renames = (
    ("embeddings.position_ids", None),
    ("visual_projection", None),
    ("text_projection", None),
    ("text_model", None),
    ("logit_scale", None),
)


def infer_clip_config(path: Path, source: TensorSource) -> CLIPConfig:
    """The config of a CLIP image tower from its tensors, under native names; heads are 80 wide unless metadata say so.

    Raises CheckpointError when the tensors are not those of such a network.
    """
    shape = Shapes(source, "CLIP image tower")
    dim, _, patch, _ = shape.of("embeddings.patch_embedding.weight", 4)
    tokens = shape.of("embeddings.position_embedding.weight", 2)[0]
    side = round(max(tokens - 1, 0) ** 0.5)
    if side * side + 1 != tokens:
        raise CheckpointError(f"{source.path}: {tokens} positions are not a square of patches and a class token")
    values: dict[str, Any] = {
        "dim": dim,
        "patch_size": patch,
        "image_size": side * patch,
        "ffn_dim": shape.of("encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_layers": shape.count(r"encoder\.layers\.(\d+)\."),
    }
    values |= stated(source, ("num_heads", "activation", "eps"))
    if "num_heads" not in values:
        values["num_heads"] = heads_of(source, dim, HEAD_DIM)
    return build_config(CLIPConfig, values, source.path)


def transformers_config(config: CLIPConfig) -> dict[str, Any]:
    """``config.json`` of an image tower for transformers."""
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "attention_dropout": 0.0,
        "hidden_act": config.activation,
        "hidden_size": config.dim,
        "image_size": config.image_size,
        "intermediate_size": config.ffn_dim,
        "layer_norm_eps": config.eps,
        "num_attention_heads": config.num_heads,
        "num_channels": 3,
        "num_hidden_layers": config.num_layers,
        "patch_size": config.patch_size,
        "projection_dim": _CLIP_PROJECTION,
    }


def _network(config: CLIPConfig) -> nn.Module:
    return models.CLIPVision(config)


CLIP = Family(
    name="clip",
    title="the CLIP image encoder",
    network=_network,
    infer=infer_clip_config,
    formats=(
        CheckpointFormat(
            name="official",
            marker=r"(?:^|\.)visual\.",
            renames=CLIP_ORIGINAL_RENAMES,
            split=split_clip_tensor,
            join=join_clip_tensors,
        ),
        CheckpointFormat(name="diffusers", renames=TRANSFORMERS_CLIP),
    ),
    signature=r"(?:^|\.)(?:visual\.pre_norm|pre_layrnorm)\.weight$",
    usual=lambda config: {"num_heads": config.dim // HEAD_DIM, "activation": "gelu", "eps": 1e-5},
    diffusers_config=transformers_config,
    places=Places(
        official=lambda config, expert: CLIP_FILE,
        container="torch",
        diffusers="image_encoder",
        stem="model",
        single="clip_vision",
        also=("clip_vision",),
        single_name=lambda config, expert: "clip_vision_h",
        single_format="diffusers",
        single_prefix="vision_model.",
    ),
    half_dtype="float16",
    keeps_rest=True,  # the text half, which the original code loads although no Wan network uses it
)
"""The image tower of Wan 2.1 image to video; the native names are those of transformers 5."""
