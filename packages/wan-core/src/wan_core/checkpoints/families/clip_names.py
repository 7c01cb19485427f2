"""Names of the CLIP image tower: the original file's ``visual.*`` and older transformers' onto ours.

Ours are transformers 5's. The original file also holds a text half, a projection head and a logit scale that no Wan
model uses: they are dropped by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from wan_core.checkpoints.formats import Made

if TYPE_CHECKING:
    from torch import Tensor

CLIP_ORIGINAL_RENAMES: tuple[tuple[str, str | None], ...] = (
    ("visual.patch_embedding", "embeddings.patch_embedding"),
    ("visual.pre_norm", "pre_layrnorm"),
    ("visual.post_norm", "post_layernorm"),
    ("visual.transformer.{}.norm1", "encoder.layers.{}.layer_norm1"),
    ("visual.transformer.{}.norm2", "encoder.layers.{}.layer_norm2"),
    ("visual.transformer.{}.attn.proj", "encoder.layers.{}.self_attn.out_proj"),
    ("visual.transformer.{}.mlp.0", "encoder.layers.{}.mlp.fc1"),
    ("visual.transformer.{}.mlp.2", "encoder.layers.{}.mlp.fc2"),
    ("visual.head", None),
    ("textual", None),
    ("log_scale", None),
)
"""Module-path prefixes; ``{}`` is one index, ``None`` means dropped on purpose."""


_QKV = re.compile(r"visual\.transformer\.(\d+)\.attn\.to_qkv\.(weight|bias)")
_QUERY = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)")


def split_clip_tensor(name: str, tensor: Tensor) -> dict[str, Tensor] | None:
    """What a prefix table cannot say: our tensors of one original tensor, as views; ``None`` if the table says it.

    The fused ``to_qkv`` [3D, ...] becomes q, k and v of [D, ...]; the class embedding [1, 1, D] becomes [D], the
    position embedding [1, L, D] becomes [L, D]. Works on meta tensors.
    """
    if name == "visual.cls_embedding":
        return {"embeddings.class_embedding": tensor[0, 0]}
    if name == "visual.pos_embedding":
        return {"embeddings.position_embedding.weight": tensor[0]}
    match = _QKV.fullmatch(name)
    if match is None:
        return None
    layer, kind = match.groups()
    target = f"encoder.layers.{layer}.self_attn"
    return {f"{target}.{part}_proj.{kind}": piece for part, piece in zip("qkv", tensor.chunk(3), strict=True)}


def join_clip_tensors(names: Collection[str]) -> dict[str, Made]:
    """The reverse of :func:`split_clip_tensor`: original tensors by name, as (our names, function of those tensors)."""
    import torch

    joined: dict[str, Made] = {}
    for name in names:
        if name == "embeddings.class_embedding":
            joined["visual.cls_embedding"] = ((name,), lambda states: states[None, None])
        elif name == "embeddings.position_embedding.weight":
            joined["visual.pos_embedding"] = ((name,), lambda states: states[None])
        elif match := _QUERY.fullmatch(name):
            layer, kind = match.groups()
            parts = tuple(f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv")
            joined[f"visual.transformer.{layer}.attn.to_qkv.{kind}"] = (parts, lambda *states: torch.cat(states))
    return joined
