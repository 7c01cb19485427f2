"""The networks. Each has a frozen config with ``.build()``; a network runs in the dtype of its parameters."""

from wan_core.models.image import CLIP_VIT_H14, CLIPConfig, CLIPVision, clip_pixels
from wan_core.models.text import (
    UMT5_XXL,
    TextEncoder,
    Tokenizer,
    UMT5Config,
    UMT5Encoder,
    clean_prompt,
    load_tokenizer,
    relative_position_bucket,
)

__all__ = [
    "CLIP_VIT_H14",
    "UMT5_XXL",
    "CLIPConfig",
    "CLIPVision",
    "TextEncoder",
    "Tokenizer",
    "UMT5Config",
    "UMT5Encoder",
    "clean_prompt",
    "clip_pixels",
    "load_tokenizer",
    "relative_position_bucket",
]
