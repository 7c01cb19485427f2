"""The UMT5 text encoder: official, transformers' and llama.cpp's names, dims from shapes, where its files lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core import models
from wan_core.checkpoints.families.record import Family, Places
from wan_core.checkpoints.families.shapes import Shapes, build_config, stated
from wan_core.checkpoints.formats import CheckpointFormat, Renames
from wan_core.errors import CheckpointError
from wan_core.models import UMT5Config

if TYPE_CHECKING:
    from torch import nn

    from wan_core.checkpoints.readers.sources import TensorSource

TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"

TRANSFORMERS_UMT5: Renames = (
    ("shared", "token_embedding"),
    ("encoder.embed_tokens", "token_embedding"),
    ("encoder.final_layer_norm", "norm"),
    ("encoder.block.{}.layer.0.layer_norm", "blocks.{}.norm1"),
    *((f"encoder.block.{{}}.layer.0.SelfAttention.{part}", f"blocks.{{}}.attn.{part}") for part in "qkvo"),
    ("encoder.block.{}.layer.0.SelfAttention.relative_attention_bias", "blocks.{}.pos_embedding.embedding"),
    ("encoder.block.{}.layer.1.layer_norm", "blocks.{}.norm2"),
    ("encoder.block.{}.layer.1.DenseReluDense.wi_0", "blocks.{}.ffn.gate.0"),
    ("encoder.block.{}.layer.1.DenseReluDense.wi_1", "blocks.{}.ffn.fc1"),
    ("encoder.block.{}.layer.1.DenseReluDense.wo", "blocks.{}.ffn.fc2"),
    ("decoder", None),
    ("lm_head", None),
    ("spiece_model", None),  # the tokenizer, which single files carry along
    ("logit_scale", None),
)

LLAMA_CPP_UMT5: Renames = (
    ("token_embd", "token_embedding"),
    ("enc.output_norm", "norm"),
    ("enc.blk.{}.attn_norm", "blocks.{}.norm1"),
    *((f"enc.blk.{{}}.attn_{part}", f"blocks.{{}}.attn.{part}") for part in "qkvo"),
    ("enc.blk.{}.attn_rel_b", "blocks.{}.pos_embedding.embedding"),
    ("enc.blk.{}.ffn_norm", "blocks.{}.norm2"),
    ("enc.blk.{}.ffn_gate", "blocks.{}.ffn.gate.0"),
    ("enc.blk.{}.ffn_up", "blocks.{}.ffn.fc1"),
    ("enc.blk.{}.ffn_down", "blocks.{}.ffn.fc2"),
)


def infer_umt5_config(path: Path, source: TensorSource) -> UMT5Config:
    """The config of a UMT5 encoder from its tensors, under native names; heads are the columns of the bias table.

    Raises CheckpointError when the tensors are not those of such a network.
    """
    shape = Shapes(source, "UMT5 encoder")
    shared = "pos_embedding.embedding.weight" in source
    buckets, heads = shape.of(
        "pos_embedding.embedding.weight" if shared else "blocks.0.pos_embedding.embedding.weight", 2
    )
    vocab_size, dim = shape.of("token_embedding.weight", 2)
    values = {
        "vocab_size": vocab_size,
        "dim": dim,
        "dim_attn": shape.of("blocks.0.attn.q.weight", 2)[0],
        "dim_ffn": shape.of("blocks.0.ffn.fc1.weight", 2)[0],
        "num_heads": heads,
        "num_layers": shape.count(r"blocks\.(\d+)\."),
        "num_buckets": buckets,
        "shared_position_bias": shared,
    }
    return build_config(UMT5Config, values | stated(source, ("max_distance", "eps")), source.path)


def transformers_config(config: UMT5Config) -> dict[str, Any]:
    """``config.json`` of an encoder for transformers. Raises CheckpointError for a network that it does not have."""
    if config.shared_position_bias:
        raise CheckpointError("transformers has no UMT5 with one bias table for all layers")
    return {
        "architectures": ["UMT5EncoderModel"],
        "model_type": "umt5",
        "d_ff": config.dim_ffn,
        "d_kv": config.dim_attn // config.num_heads,
        "d_model": config.dim,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": config.eps,
        "num_decoder_layers": config.num_layers,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "pad_token_id": 0,
        "relative_attention_max_distance": config.max_distance,
        "relative_attention_num_buckets": config.num_buckets,
        "scalable_attention": True,
        "tie_word_embeddings": False,
        "tokenizer_class": "T5Tokenizer",
        "vocab_size": config.vocab_size,
    }


def _network(config: UMT5Config) -> nn.Module:
    return models.UMT5Encoder(config)


UMT5 = Family(
    name="umt5",
    title="the text encoder",
    network=_network,
    infer=infer_umt5_config,
    formats=(
        CheckpointFormat(
            name="diffusers",
            marker=r"\.SelfAttention\.",
            renames=TRANSFORMERS_UMT5,
            duplicates=frozenset({"token_embedding.weight"}),
        ),
        CheckpointFormat(name="llama.cpp", marker=r"(?:^|\.)enc\.blk\.", renames=LLAMA_CPP_UMT5),
        CheckpointFormat(name="official"),
    ),
    signature=(
        r"(?:^|\.)(?:blocks\.0\.attn\.q|encoder\.block\.0\.layer\.0\.SelfAttention\.q|enc\.blk\.0\.attn_q)"
        r"\.weight(?:\.|$)"
    ),
    usual=lambda config: {"max_distance": 128, "eps": 1e-6},
    diffusers_config=transformers_config,
    places=Places(
        official=lambda config, expert: TEXT_ENCODER_FILE,
        container="torch",
        diffusers="text_encoder",
        stem="model",
        single="text_encoders",
        also=("text_encoders",),
        single_name=lambda config, expert: "umt5_xxl",
        single_format="diffusers",
    ),
    half_dtype="bfloat16",
    carries_tokenizer=True,
)
"""The text encoder of every Wan model; the native names are the official ones."""
