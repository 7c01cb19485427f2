"""Qwen2.5-VL as a part of BindWeave: its names, its dims from a file, and the network without its language head.

Bai et al., "Qwen2.5-VL Technical Report" (2025). The network is transformers' Qwen2_5_VLModel; reading its weights,
the positions of its tokens and the choice of states are our own code.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindweave.mllm_config import MLLMConfig, stated_dims
from wan_core.checkpoints import CheckpointFormat, Family, Shapes, build_config, read_json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from wan_core.checkpoints import TensorSource

_HEAD_DIM, _VISION_HEAD_DIM = 128, 80
"""Width of one head in the released models."""


def infer_mllm_config(path: Path, source: TensorSource) -> MLLMConfig:
    """The config of a Qwen2.5-VL from its tensors, under native names, and the ``config.json`` beside them.

    Raises CheckpointError for what cannot be, or is no such network.
    """
    shape = Shapes(source, "Qwen2.5-VL")
    vocab_size, dim = shape.of("language_model.embed_tokens.weight", 2)
    vision_dim, _, frames, patch, _ = shape.of("visual.patch_embed.proj.weight", 5)
    found: dict[str, Any] = {
        "dim": dim,
        "vocab_size": vocab_size,
        "ffn_dim": shape.of("language_model.layers.0.mlp.up_proj.weight", 2)[0],
        "num_layers": shape.count(r"language_model\.layers\.(\d+)\."),
        "vision_dim": vision_dim,
        "vision_ffn_dim": shape.of("visual.blocks.0.mlp.up_proj.weight", 2)[0],
        "vision_layers": shape.count(r"visual\.blocks\.(\d+)\."),
        "patch_size": patch,
        "temporal_patch_size": frames,
    }
    file = (path if path.is_dir() else path.parent) / "config.json"
    usual: dict[str, Any] = {
        "num_heads": max(1, dim // _HEAD_DIM),
        "vision_heads": max(1, vision_dim // _VISION_HEAD_DIM),
    }
    stated = stated_dims(read_json(file)) if file.is_file() else {}
    heads = stated.get("num_heads", usual["num_heads"])
    if type(heads) is int and 0 < heads <= dim:
        usual["num_kv_heads"] = shape.of("language_model.layers.0.self_attn.k_proj.weight", 2)[0] // (dim // heads)
    return build_config(MLLMConfig, usual | stated | found, file if file.is_file() else source.path)


def _network(config: MLLMConfig) -> nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    network: nn.Module = Qwen2_5_VLModel(Qwen2_5_VLConfig(**config.transformers_values()))
    return network


MLLM = Family(
    name="mllm",
    title="Qwen2.5-VL",
    network=_network,
    infer=infer_mllm_config,
    formats=(
        # Files as published, and those that transformers 5 keeps in memory and on disk.
        CheckpointFormat(
            name="published",
            marker=r"^model\.(?:embed_tokens|layers|norm)\.",
            renames=(("model", "language_model"), ("lm_head", None)),
        ),
        CheckpointFormat(name="official", renames=(("lm_head", None),)),
    ),
    signature=r"(?:^|\.)visual\.merger\.ln_q\.weight$",
    files=("*.safetensors",),
    half_dtype="bfloat16",
)
"""The language model that reads prompt and pictures; native names are those of transformers 5's Qwen2_5_VLModel."""


def mllm_config(folder: Path) -> MLLMConfig:
    """The dims of the network in a folder. Raises CheckpointError for one that is none, or not whole."""
    from wan_core.checkpoints import native_weights, read_weights

    config: MLLMConfig = MLLM.read_config(folder, native_weights(read_weights(folder), MLLM))
    return config


def open_mllm(folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Any]:
    """The network of a folder on a device, and its tokenizer. Raises CheckpointError."""
    from wan_core.checkpoints import load_model, native_weights, read_weights

    tokenizer = load_chat_tokenizer(folder)
    native = native_weights(read_weights(folder), MLLM)
    config = MLLM.read_config(folder, native)
    return load_model(config, native, family=MLLM, dtype=dtype, device=device), tokenizer


def load_chat_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder of Qwen2.5-VL. Raises CheckpointError where there is none."""
    from transformers import AutoTokenizer

    from wan_core import CheckpointError
    from wan_core.files import plain_text
    from wan_core.llm import PICTURE_TOKEN

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = plain_text(str(error).strip().partition("\n")[0])[:120]
        raise CheckpointError(
            f"{folder} has no tokenizer of Qwen2.5-VL ({reason}); copy its tokenizer files"
        ) from error
    if PICTURE_TOKEN not in tokenizer.get_vocab():
        raise CheckpointError(
            f"{folder} has no tokenizer of Qwen2.5-VL: it has no {PICTURE_TOKEN}; copy its tokenizer files"
        )
    return tokenizer
