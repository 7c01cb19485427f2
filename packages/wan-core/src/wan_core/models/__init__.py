"""The networks. Each has a frozen config with ``.build()``; a network runs in the dtype of its parameters."""

from wan_core.models.dit import ContextCache, DiTInputs, InnerAttention, WanDiT, WanDiTConfig, rotary_table, rotate
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
from wan_core.models.vae import WAN21_VAE, WAN22_VAE, DecoderCache, EncoderCache, Tiling, VAEConfig, VideoVAE

__all__ = [
    "CLIP_VIT_H14",
    "UMT5_XXL",
    "WAN21_VAE",
    "WAN22_VAE",
    "CLIPConfig",
    "CLIPVision",
    "ContextCache",
    "DecoderCache",
    "DiTInputs",
    "EncoderCache",
    "InnerAttention",
    "TextEncoder",
    "Tiling",
    "Tokenizer",
    "UMT5Config",
    "UMT5Encoder",
    "VAEConfig",
    "VideoVAE",
    "WanDiT",
    "WanDiTConfig",
    "clean_prompt",
    "clip_pixels",
    "load_tokenizer",
    "relative_position_bucket",
    "rotary_table",
    "rotate",
]
