"""SAM 2's weights: the names of the original ``sam2_hiera_*.pt`` files for transformers' network, and its sizes.

SAM 2 (Ravi et al., 2024, arXiv:2408.00714) is run by transformers; the names and sizes here are those of the released
files. The table and its reader are our own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core.checkpoints import (
    CheckpointFormat,
    DerivedSource,
    Family,
    Recipe,
    Shapes,
    TensorSource,
    check_network,
    load_model,
    native_weights,
    read_json,
    read_weights,
)
from wan_core.errors import CheckpointError
from wan_core.files import plain_text
from wan_core.hub import folder_kind, load_pretrained

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MODEL_TYPE = "sam2_video"
WEIGHTS = "sam2_hiera_large.pt"
"""The file that the release of Wan-Animate brings."""

_TITLE = "SAM 2"
_POINTS = tuple(f"sam_prompt_encoder.point_embeddings.{kind}.weight" for kind in range(4))
_WAVES = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_USES_OF_WAVES = "prompt_encoder.shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding"


def _deep(ours: str, theirs: str) -> list[tuple[str, str]]:
    """The rules of a perceptron of three layers."""
    return [(f"{ours}.layers.{index}", f"{theirs}.{name}") for index, name in enumerate(_LAYERS_OF_THREE)]


_LAYERS_OF_THREE = "proj_in", "layers.0", "proj_out"
_TRUNK, _BACKBONE = "image_encoder.trunk", "vision_encoder.backbone"
_DECODER = "sam_mask_decoder.transformer", "mask_decoder.transformer"
_SHRINKING = "memory_encoder.mask_downsampler"
_FUSER = "memory_encoder.fuser.layers.{}", "memory_encoder.memory_fuser.layers.{}"

RENAMES = (
    (_TRUNK, _BACKBONE),
    (f"{_TRUNK}.patch_embed.proj", f"{_BACKBONE}.patch_embed.projection"),
    *((f"{_TRUNK}.blocks.{{}}.norm{k}", f"{_BACKBONE}.blocks.{{}}.layer_norm{k}") for k in (1, 2)),
    (f"{_TRUNK}.blocks.{{}}.mlp.layers.0", f"{_BACKBONE}.blocks.{{}}.mlp.proj_in"),
    (f"{_TRUNK}.blocks.{{}}.mlp.layers.1", f"{_BACKBONE}.blocks.{{}}.mlp.proj_out"),
    ("image_encoder.neck.convs.{}.conv", "vision_encoder.neck.convs.{}"),
    ("maskmem_tpos_enc", "memory_temporal_positional_encoding"),
    ("no_mem_embed", "no_memory_embedding"),
    ("no_mem_pos_enc", "no_memory_positional_encoding"),
    ("no_obj_ptr", "no_object_pointer"),
    ("no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"),  # of 2.1
    ("obj_ptr_tpos_proj", "temporal_positional_encoding_projection_layer"),  # of 2.1
    *_deep("obj_ptr_proj", "object_pointer_proj"),
    *((f"memory_attention.layers.{{}}.norm{k}", f"memory_attention.layers.{{}}.layer_norm{k}") for k in (1, 2, 3)),
    *(
        (f"memory_attention.layers.{{}}.{each}.out_proj", f"memory_attention.layers.{{}}.{each}.o_proj")
        for each in ("self_attn", "cross_attn_image")
    ),
    ("memory_attention.norm", "memory_attention.layer_norm"),
    *((f"{_SHRINKING}.encoder.{3 * k}", f"{_SHRINKING}.layers.{k}.conv") for k in range(4)),
    *((f"{_SHRINKING}.encoder.{3 * k + 1}", f"{_SHRINKING}.layers.{k}.layer_norm") for k in range(4)),
    (f"{_SHRINKING}.encoder.12", f"{_SHRINKING}.final_conv"),
    ("memory_encoder.pix_feat_proj", "memory_encoder.feature_projection"),
    ("memory_encoder.out_proj", "memory_encoder.projection"),
    *(
        (f"{_FUSER[0]}.{theirs}", f"{_FUSER[1]}.{ours}")
        for theirs, ours in (
            ("gamma", "scale"), ("dwconv", "depthwise_conv"), ("norm", "layer_norm"), ("pwconv1", "pointwise_conv1"),
            ("pwconv2", "pointwise_conv2"),
        )
    ),
    ("sam_prompt_encoder", "prompt_encoder"),
    *(
        (f"sam_prompt_encoder.mask_downscaling.{index}", f"prompt_encoder.mask_embed.{name}")
        for index, name in ((0, "conv1"), (1, "layer_norm1"), (3, "conv2"), (4, "layer_norm2"), (6, "conv3"))
    ),
    ("sam_mask_decoder", "mask_decoder"),
    *((f"{_DECODER[0]}.layers.{{}}.norm{k}", f"{_DECODER[1]}.layers.{{}}.layer_norm{k}") for k in range(1, 5)),
    *(
        (f"{_DECODER[0]}.{each}.out_proj", f"{_DECODER[1]}.{each}.o_proj")
        for each in (
            "layers.{}.self_attn", "layers.{}.cross_attn_token_to_image", "layers.{}.cross_attn_image_to_token",
            "final_attn_token_to_image",
        )
    ),
    (f"{_DECODER[0]}.layers.{{}}.mlp.layers.0", f"{_DECODER[1]}.layers.{{}}.mlp.proj_in"),
    (f"{_DECODER[0]}.layers.{{}}.mlp.layers.1", f"{_DECODER[1]}.layers.{{}}.mlp.proj_out"),
    (f"{_DECODER[0]}.norm_final_attn", f"{_DECODER[1]}.layer_norm_final_attn"),
    ("sam_mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1"),
    ("sam_mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm"),
    ("sam_mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2"),
    *_deep("sam_mask_decoder.output_hypernetworks_mlps.{}", "mask_decoder.output_hypernetworks_mlps.{}"),
    *_deep("sam_mask_decoder.iou_prediction_head", "mask_decoder.iou_prediction_head"),
    *_deep("sam_mask_decoder.pred_obj_score_head", "mask_decoder.pred_obj_score_head"),
)  # fmt: skip
"""Module paths of the original, and those of transformers."""

# By the width and the number of blocks of the backbone: what shapes do not tell of the four released sizes.
_SIZES: dict[tuple[int, int], dict[str, Any]] = {
    (96, 12): {"num_attention_heads": 1, "global_attention_blocks": [5, 7, 9]},
    (96, 16): {"num_attention_heads": 1, "global_attention_blocks": [7, 10, 13]},
    (112, 24): {"num_attention_heads": 2, "global_attention_blocks": [12, 16, 20]},
    (144, 48): {
        "num_attention_heads": 2, "global_attention_blocks": [23, 33, 43], "window_size_per_stage": [8, 4, 16, 8]
    },
}  # fmt: skip


def _two_uses(name: str, tensor: Tensor) -> dict[str, Tensor] | None:
    """The random waves, which transformers has under two names."""
    return dict.fromkeys(_USES_OF_WAVES, tensor) if name == _WAVES else None


def _network(config: Any) -> nn.Module:
    import transformers

    network: nn.Module = transformers.Sam2VideoModel(config)
    return network


def infer_config(path: Path, source: TensorSource) -> Any:
    """The config of transformers for weights under native names: that of ``config.json`` beside them, else one of the
    four released sizes. Raises CheckpointError for others."""
    import transformers

    beside = path.parent / "config.json"
    content = read_json(beside) if beside.is_file() else {}
    if content.get("model_type") == MODEL_TYPE:
        return transformers.Sam2VideoConfig.from_dict(content)
    shape = Shapes(source, _TITLE)
    width = shape.of(f"{_BACKBONE}.patch_embed.projection.weight", 4)[0]
    count = shape.count(rf"{re.escape(_BACKBONE)}\.blocks\.(\d+)\.")
    known = _SIZES.get((width, count))
    if known is None:
        raise CheckpointError(
            f"{plain_text(path)} is a SAM 2 of {count} blocks from {width} channels, which is none of the released "
            "sizes (tiny, small, base_plus, large); put the config.json of transformers beside it"
        )
    starts = [0, *(k for k in range(count) if f"{_BACKBONE}.blocks.{k}.proj.weight" in source), count]
    widths = [width * 2**stage for stage in range(len(starts) - 1)]
    backbone = {
        "hidden_size": width,
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [known["num_attention_heads"] * 2**stage for stage in range(len(widths))],
        "blocks_per_stage": [after - start for start, after in pairwise(starts)],
        "window_positional_embedding_background_size": list(shape.of(f"{_BACKBONE}.pos_embed", 4)[2:]),
        **known,
    }
    return transformers.Sam2VideoConfig(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {"model_type": "sam2_hiera_det_model", **backbone},
            "backbone_channel_list": widths[::-1],
        },
        enable_occlusion_spatial_embedding="occlusion_spatial_embedding_parameter" in source,
        enable_temporal_pos_encoding_for_object_pointers="temporal_positional_encoding_projection_layer.weight"
        in source,
    )


SAM2 = Family(
    name="sam2",
    title=_TITLE,
    network=_network,
    infer=infer_config,
    formats=(
        CheckpointFormat(name="original", marker=r"(?:^|\.)sam_mask_decoder\.", renames=RENAMES, split=_two_uses),
        CheckpointFormat(name="transformers"),
    ),
    signature=r"(?:^|\.)(?:maskmem_tpos_enc|memory_temporal_positional_encoding)$",
    half_dtype="float32",
)
"""SAM 2 and 2.1 for videos; the native names are those of transformers."""


def check_sam2(place: Path) -> None:
    """Compare the names and shapes of weights with those of the network; none is read. Raises CheckpointError."""
    if place.is_dir():
        folder_kind(place, {MODEL_TYPE}, what=_TITLE)
        read_weights(place / "model.safetensors")  # looks whether the file is whole
        return
    native = _native(place)
    check_network(SAM2.read_config(place, native), native, SAM2)


def load_sam2(place: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Any:
    """transformers' ``Sam2VideoModel`` in eval mode, from an original ``.pt`` file or a folder of transformers.

    ``dtype`` None is float32. Every tensor of the file must have its place, and every weight of the network a tensor.
    Raises CheckpointError.
    """
    import torch

    dtype = dtype or torch.float32
    if place.is_dir():
        return load_pretrained(str(place), {MODEL_TYPE: "Sam2VideoModel"}, what=_TITLE).to(device, dtype)
    native = _native(place)
    return load_model(SAM2.read_config(place, native), native, family=SAM2, dtype=dtype, device=device)


def _native(place: Path) -> TensorSource:
    return native_weights(_with_one_table(read_weights(place)), SAM2)


def _with_one_table(source: TensorSource) -> TensorSource:
    """The original's four embeddings of points as the one table of transformers; other files as they are."""
    parts = {part: name for name in source for part in _POINTS if name == part or name.endswith(f".{part}")}
    if set(parts) != set(_POINTS):
        return source
    inputs = tuple(parts[part] for part in _POINTS)
    recipes = {name: Recipe((name,), source.info(name)) for name in source if name not in inputs}
    first = source.info(inputs[0])
    info = type(first)((sum(source.info(name).shape[0] for name in inputs), *first.shape[1:]), first.dtype)
    prefix = inputs[0].removesuffix(_POINTS[0])
    return DerivedSource(
        source, {**recipes, f"{prefix}sam_prompt_encoder.point_embed.weight": Recipe(inputs, info, _stacked)}
    )


def _stacked(tables: Sequence[Tensor]) -> Tensor:
    import torch

    return torch.cat(list(tables))
