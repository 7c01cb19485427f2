"""Dims of Qwen2.5-VL, whose states BindWeave reads, from either way in which its ``config.json`` is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wan_core import ConfigError


@dataclass(frozen=True, kw_only=True)
class MLLMConfig:
    """Dims of a Qwen2.5-VL; the defaults are those of the 7B model (Bai et al., 2025, and its ``config.json``).

    ``mrope_section`` are the pairs of a head that turn with time, row and column; ``full_attention`` are the vision
    blocks that see the whole picture, the others see windows of ``window_size`` pixels. ``picture_id`` is the token
    that stands for ``merge_size`` x ``merge_size`` patches.
    """

    dim: int = 3584
    ffn_dim: int = 18944
    num_layers: int = 28
    num_heads: int = 28
    num_kv_heads: int = 4
    vocab_size: int = 152064
    max_length: int = 128000
    eps: float = 1e-6
    rope_theta: float = 1e6
    mrope_section: tuple[int, ...] = (16, 24, 24)
    vision_dim: int = 1280
    vision_ffn_dim: int = 3420
    vision_layers: int = 32
    vision_heads: int = 16
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112
    full_attention: tuple[int, ...] = (7, 15, 23, 31)
    picture_id: int = 151655
    video_id: int = 151656
    vision_start_id: int = 151652
    vision_end_id: int = 151653

    def __post_init__(self) -> None:
        counts = {name: value for name, value in vars(self).items() if type(value) is int and not name.endswith("_id")}
        wrong = [name for name, value in counts.items() if value < 1]
        if wrong:
            raise ConfigError(f"{wrong[0]} must be at least 1, got {counts[wrong[0]]}")
        if self.dim % self.num_heads or self.num_heads % self.num_kv_heads or self.vision_dim % self.vision_heads:
            raise ConfigError("the heads of a Qwen2.5-VL must divide its widths")
        pairs = self.dim // self.num_heads // 2
        if len(self.mrope_section) != 3 or sum(self.mrope_section) != pairs:
            raise ConfigError(f"mrope_section {list(self.mrope_section)} must be three counts of {pairs} in all")
        if self.window_size < self.merge_size * self.patch_size:
            raise ConfigError(f"window_size {self.window_size} is smaller than a token of a picture")

    def transformers_values(self) -> dict[str, Any]:
        """The arguments of transformers' config, in the spelling that its releases 4 and 5 both take."""
        return {
            "text_config": {
                "hidden_size": self.dim,
                "intermediate_size": self.ffn_dim,
                "num_hidden_layers": self.num_layers,
                "num_attention_heads": self.num_heads,
                "num_key_value_heads": self.num_kv_heads,
                "vocab_size": self.vocab_size,
                "max_position_embeddings": self.max_length,
                "rms_norm_eps": self.eps,
                "rope_theta": self.rope_theta,
                "rope_scaling": {"type": "mrope", "mrope_section": list(self.mrope_section)},
                "bos_token_id": None,
                "eos_token_id": None,
                "pad_token_id": None,
                "use_cache": False,
            },
            "vision_config": {
                "hidden_size": self.vision_dim,
                "intermediate_size": self.vision_ffn_dim,
                "depth": self.vision_layers,
                "num_heads": self.vision_heads,
                "patch_size": self.patch_size,
                "spatial_merge_size": self.merge_size,
                "temporal_patch_size": self.temporal_patch_size,
                "window_size": self.window_size,
                "fullatt_block_indexes": list(self.full_attention),
                "out_hidden_size": self.dim,
            },
            "image_token_id": self.picture_id,
            "video_token_id": self.video_id,
            "vision_start_token_id": self.vision_start_id,
            "vision_end_token_id": self.vision_end_id,
        }


_TEXT_KEYS = {
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "rms_norm_eps": "eps",
    "max_position_embeddings": "max_length",
}
_VISION_KEYS = {
    "num_heads": "vision_heads",
    "spatial_merge_size": "merge_size",
    "window_size": "window_size",
    "fullatt_block_indexes": "full_attention",
}
_TOKEN_KEYS = {
    "image_token_id": "picture_id",
    "video_token_id": "video_id",
    "vision_start_token_id": "vision_start_id",
    "vision_end_token_id": "vision_end_id",
}


def stated_dims(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``config.json`` says that shapes of tensors do not: arguments of :class:`MLLMConfig`.

    Older files have the language half's values at their own level, newer ones under ``text_config``.
    """
    text = _object(content.get("text_config")) or content
    found = _renamed(text, _TEXT_KEYS) | _renamed(_object(content.get("vision_config")), _VISION_KEYS)
    found |= _renamed(content, _TOKEN_KEYS)
    rope = _object(text.get("rope_parameters")) or _object(text.get("rope_scaling"))
    found |= _renamed({**text, **rope}, {"rope_theta": "rope_theta", "mrope_section": "mrope_section"})
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def _renamed(content: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    return {ours: content[theirs] for theirs, ours in keys.items() if content.get(theirs) is not None}


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
