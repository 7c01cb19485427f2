"""The speech encoder of Wan2.2 S2V: both spellings of its positional convolution, dims, where its files lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core import models
from wan_core.checkpoints.families.record import Family, Places
from wan_core.checkpoints.families.shapes import Shapes, build_config, heads_of, stated
from wan_core.checkpoints.formats import CheckpointFormat, Renames
from wan_core.errors import CheckpointError
from wan_core.models import WAV2VEC2_LARGE_XLSR_53, Wav2Vec2Config

if TYPE_CHECKING:
    from torch import nn

    from wan_core.checkpoints.readers.sources import TensorSource

WAV2VEC2_FOLDER = "wav2vec2-large-xlsr-53-english"
HEAD_DIM = WAV2VEC2_LARGE_XLSR_53.dim // WAV2VEC2_LARGE_XLSR_53.num_heads

_POSITIONS = "encoder.pos_conv_embed.conv"
_UNUSED: Renames = (("masked_spec_embed", None), ("lm_head", None))  # for training, and for text
_TRANSFORMERS_KEYS = {
    "num_attention_heads": "num_heads",
    "conv_stride": "conv_strides",
    "layer_norm_eps": "eps",
}
# What the network here is: settings of transformers that shapes cannot tell, by the file that says them.
_ONLY: Mapping[str, Mapping[str, Any]] = {
    "config.json": {
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
        "feat_extract_activation": "gelu",
        "hidden_act": "gelu",
    },
    "preprocessor_config.json": {"sampling_rate": 16_000, "do_normalize": True},
}


def infer_wav2vec2_config(path: Path, source: TensorSource) -> Wav2Vec2Config:
    """The config of a speech encoder from its tensors, under native names, and from ``config.json`` beside them.

    Without one, heads are 64 wide and strides those of the released model. Raises CheckpointError when the tensors are
    not those of such a network, or the files say that it is used otherwise.
    """
    shape = Shapes(source, "wav2vec2 encoder")
    count = shape.count(r"feature_extractor\.conv_layers\.(\d+)\.")
    convolutions = [shape.of(f"feature_extractor.conv_layers.{index}.conv.weight", 3) for index in range(count)]
    dim, per_group, position_kernel = shape.of(f"{_POSITIONS}.parametrizations.weight.original1", 3)
    values: dict[str, Any] = {
        "dim": dim,
        "ffn_dim": shape.of("encoder.layers.0.feed_forward.intermediate_dense.weight", 2)[0],
        "num_layers": shape.count(r"encoder\.layers\.(\d+)\."),
        "conv_dims": tuple(each[0] for each in convolutions),
        "conv_kernels": tuple(each[2] for each in convolutions),
        "conv_strides": (5, *(2,) * (count - 1)),
        "conv_bias": "feature_extractor.conv_layers.0.conv.bias" in source,
        "position_kernel": position_kernel,
        "position_groups": dim // per_group,
    }
    values |= stated(source, tuple(_TRANSFORMERS_KEYS.values())) | _said_beside(path)
    if "num_heads" not in values:
        values["num_heads"] = heads_of(source, dim, HEAD_DIM)
    return build_config(Wav2Vec2Config, values, source.path)


def _said_beside(path: Path) -> dict[str, Any]:
    """What transformers' files beside the weights say of the config."""
    from wan_core.checkpoints.readers.shards import read_json

    values: dict[str, Any] = {}
    for name, only in _ONLY.items():
        file = (path if path.is_dir() else path.parent) / name
        content = read_json(file) if file.is_file() else {}
        if name == "config.json" and content.get("model_type") != "wav2vec2":
            continue  # a file of another part
        for key, value in only.items():
            if content.get(key, value) != value:
                raise CheckpointError(f"{file}: {key} is {content[key]!r}; this speech encoder is known with {value!r}")
        values |= {ours: content[theirs] for theirs, ours in _TRANSFORMERS_KEYS.items() if theirs in content}
    return values


def transformers_config(config: Wav2Vec2Config) -> dict[str, Any]:
    """``config.json`` of a speech encoder for transformers."""
    return {
        "architectures": ["Wav2Vec2Model"],
        "model_type": "wav2vec2",
        **_ONLY["config.json"],
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_feat_extract_layers": len(config.conv_dims),
        "conv_dim": list(config.conv_dims),
        "conv_kernel": list(config.conv_kernels),
        "conv_stride": list(config.conv_strides),
        "conv_bias": config.conv_bias,
        "num_conv_pos_embeddings": config.position_kernel,
        "num_conv_pos_embedding_groups": config.position_groups,
        "layer_norm_eps": config.eps,
        "mask_time_prob": 0.0,
    }


def _network(config: Wav2Vec2Config) -> nn.Module:
    return models.Wav2Vec2(config)


WAV2VEC2 = Family(
    name="wav2vec2",
    title="the speech encoder",
    network=_network,
    infer=infer_wav2vec2_config,
    formats=(
        CheckpointFormat(
            name="weight_norm",
            marker=r"pos_conv_embed\.conv\.weight_[gv]$",
            renames=(
                *_UNUSED,
                (f"{_POSITIONS}.weight_g", f"{_POSITIONS}.parametrizations.weight.original0"),
                (f"{_POSITIONS}.weight_v", f"{_POSITIONS}.parametrizations.weight.original1"),
            ),
        ),
        CheckpointFormat(name="official", renames=_UNUSED),
    ),
    signature=r"(?:^|\.)encoder\.pos_conv_embed\.conv\.(?:weight_g|parametrizations\.weight\.original0)$",
    usual=lambda config: {
        "num_heads": config.dim // HEAD_DIM,
        "conv_strides": (5, *(2,) * (len(config.conv_strides) - 1)),
        "eps": WAV2VEC2_LARGE_XLSR_53.eps,
    },
    official_config=transformers_config,
    diffusers_config=transformers_config,
    places=Places(
        official=lambda config, expert: WAV2VEC2_FOLDER,
        diffusers="audio_encoder",
        stem="model",
        single="audio_encoders",
        also=("audio_encoders",),
        single_name=lambda config, expert: WAV2VEC2_FOLDER,
        single_prefix="wav2vec2.",
    ),
    half_dtype="float32",  # as in the original
    keeps_rest=True,  # the head for text, which the original code loads although nothing uses it
)
"""wav2vec2 with layer norms before its blocks; the native names are those of transformers since torch 2.1."""
