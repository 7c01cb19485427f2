"""SAM 2: the names of the original ``sam2_hiera_*.pt`` files for the network of transformers, and its sizes.

SAM 2 (Ravi et al., 2024, arXiv:2408.00714) is run by transformers; the names and sizes here are those of the released
files. The table is our own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core.checkpoints.families.record import Family
from wan_core.checkpoints.families.shapes import Shapes
from wan_core.checkpoints.formats import CheckpointFormat, Made
from wan_core.errors import BackendError, CheckpointError
from wan_core.files import plain_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wan_core.checkpoints.readers.sources import TensorSource

SAM2_MODEL_TYPE = "sam2_video"

_TITLE = "SAM 2"
_POINTS = tuple(f"sam_prompt_encoder.point_embeddings.{kind}.weight" for kind in range(4))
_TABLE = "prompt_encoder.point_embed.weight"
_WAVES = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_USES_OF_WAVES = "prompt_encoder.shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding"
_OCCLUSION = "occlusion_spatial_embedding_parameter"
_POSITIONS = "temporal_positional_encoding_projection_layer"


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
    ("no_obj_embed_spatial", _OCCLUSION),  # of 2.1
    ("obj_ptr_tpos_proj", _POSITIONS),  # of 2.1
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


@dataclass(frozen=True, kw_only=True)
class Sam2Config:
    """Dims of a SAM 2: the width of its backbone's first stage, blocks per stage, cells of the positions that windows
    share, and whether it has the two additions of 2.1; or all ``settings`` of transformers, for other sizes."""

    hidden_size: int
    blocks_per_stage: tuple[int, ...]
    background_size: tuple[int, ...]
    has_occlusion_embedding: bool = False
    has_pointer_positions: bool = False
    settings: Mapping[str, Any] | None = None

    def of_transformers(self) -> Any:
        """The config of transformers. Raises BackendError for a release of it that has no SAM 2 for videos."""
        import transformers

        if not hasattr(transformers, "Sam2VideoConfig"):
            raise BackendError(
                f"SAM 2 for videos is not in transformers {transformers.__version__}; install transformers>=4.56"
            )
        if self.settings is not None:
            return transformers.Sam2VideoConfig.from_dict(dict(self.settings))
        known = _SIZES[self.hidden_size, sum(self.blocks_per_stage)]
        stages = range(len(self.blocks_per_stage))
        widths = [self.hidden_size * 2**stage for stage in stages]
        backbone = {
            "hidden_size": self.hidden_size,
            "embed_dim_per_stage": widths,
            "num_attention_heads_per_stage": [known["num_attention_heads"] * 2**stage for stage in stages],
            "blocks_per_stage": list(self.blocks_per_stage),
            "window_positional_embedding_background_size": list(self.background_size),
            **known,
        }
        return transformers.Sam2VideoConfig(
            vision_config={
                "model_type": "sam2_vision_model",
                "backbone_config": {"model_type": "sam2_hiera_det_model", **backbone},
                "backbone_channel_list": widths[::-1],
            },
            enable_occlusion_spatial_embedding=self.has_occlusion_embedding,
            enable_temporal_pos_encoding_for_object_pointers=self.has_pointer_positions,
        )


def infer_config(path: Path, source: TensorSource) -> Sam2Config:
    """The dims of weights under native names: those of one of the four released sizes, else with the ``config.json``
    of transformers beside them. Raises CheckpointError for others."""
    from wan_core.checkpoints.readers.shards import read_json

    beside = path.parent / "config.json"
    content = read_json(beside) if beside.is_file() else {}
    shape = Shapes(source, _TITLE)
    width = shape.of(f"{_BACKBONE}.patch_embed.projection.weight", 4)[0]
    count = shape.count(rf"{re.escape(_BACKBONE)}\.blocks\.(\d+)\.")
    settings = content if content.get("model_type") == SAM2_MODEL_TYPE else None
    if settings is None and (width, count) not in _SIZES:
        raise CheckpointError(
            f"{plain_text(path)} is a SAM 2 of {count} blocks from {width} channels, which is none of the released "
            "sizes (tiny, small, base_plus, large); put the config.json of transformers beside it"
        )
    starts = [0, *(k for k in range(count) if f"{_BACKBONE}.blocks.{k}.proj.weight" in source), count]
    return Sam2Config(
        hidden_size=width,
        blocks_per_stage=tuple(after - start for start, after in pairwise(starts)),
        background_size=tuple(shape.of(f"{_BACKBONE}.pos_embed", 4)[2:]),
        has_occlusion_embedding=_OCCLUSION in source,
        has_pointer_positions=f"{_POSITIONS}.weight" in source,
        settings=settings,
    )


def _two_uses(name: str, tensor: Tensor) -> dict[str, Tensor] | None:
    """The random waves, which transformers has under two names."""
    return dict.fromkeys(_USES_OF_WAVES, tensor) if name == _WAVES else None


def _one_table(names: Collection[str]) -> dict[str, Made]:
    """The original's four embeddings of points as the one table of transformers."""
    import torch

    return {_TABLE: (_POINTS, lambda *rows: torch.cat(rows))} if set(_POINTS) <= set(names) else {}


def _apart(names: Collection[str]) -> dict[str, Made]:
    made: dict[str, Made] = {}
    if _TABLE in names:
        made |= {name: ((_TABLE,), partial(_row, kind)) for kind, name in enumerate(_POINTS)}
    if set(_USES_OF_WAVES) <= set(names):
        made[_WAVES] = (_USES_OF_WAVES, lambda prompts, image: prompts)
    return made


def _row(kind: int, table: Tensor) -> Tensor:
    return table[kind : kind + 1]


def _network(config: Sam2Config) -> nn.Module:
    settings = config.of_transformers()
    import transformers

    network: nn.Module = transformers.Sam2VideoModel(settings)
    return network


SAM2 = Family(
    name="sam2",
    title=_TITLE,
    network=_network,
    infer=infer_config,
    formats=(
        CheckpointFormat(
            name="original",
            marker=r"(?:^|\.)sam_mask_decoder\.",
            renames=RENAMES,
            split=_two_uses,
            fuse=_one_table,
            join=_apart,
        ),
        CheckpointFormat(name="transformers"),
    ),
    signature=r"(?:^|\.)(?:maskmem_tpos_enc|memory_temporal_positional_encoding)$",
    half_dtype="float32",
)
"""SAM 2 and 2.1 for videos; the native names are those of transformers."""
