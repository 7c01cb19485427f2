"""The networks. Each has a frozen config with ``.build()``; a network runs in the dtype of its parameters."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.models.audio import (
        WAV2VEC2_LARGE_XLSR_53,
        Wav2Vec2,
        Wav2Vec2Config,
        frame_rows,
        interpolate_states,
        num_audio_clips,
        num_interpolated,
        states_at,
    )
    from wan_core.models.dit import (
        AnimateDiT,
        AnimateDiTConfig,
        AnimateInputs,
        ContextCache,
        DiTInputs,
        FLF2VConfig,
        FLF2VDiT,
        InnerAttention,
        KeyRanges,
        S2VConfig,
        S2VDiT,
        S2VInputs,
        TimeRows,
        TokenSequence,
        WanDiT,
        WanDiTConfig,
        forget_rotary_tables,
        shared_rotary_tables,
    )
    from wan_core.models.image import CLIP_MEAN, CLIP_STD, CLIP_VIT_H14, CLIPConfig, CLIPVision, clip_pixels
    from wan_core.models.text import UMT5_XXL, TextEncoder, Tokenizer, UMT5Config, UMT5Encoder, load_tokenizer
    from wan_core.models.vae import WAN21_VAE, WAN22_VAE, DecoderCache, Tiling, VAEConfig, VideoVAE
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "CLIP_VIT_H14",
    "UMT5_XXL",
    "WAN21_VAE",
    "WAN22_VAE",
    "WAV2VEC2_LARGE_XLSR_53",
    "AnimateDiT",
    "AnimateDiTConfig",
    "AnimateInputs",
    "CLIPConfig",
    "CLIPVision",
    "ContextCache",
    "DecoderCache",
    "DiTInputs",
    "FLF2VConfig",
    "FLF2VDiT",
    "InnerAttention",
    "KeyRanges",
    "S2VConfig",
    "S2VDiT",
    "S2VInputs",
    "TextEncoder",
    "Tiling",
    "TimeRows",
    "TokenSequence",
    "Tokenizer",
    "UMT5Config",
    "UMT5Encoder",
    "VAEConfig",
    "VideoVAE",
    "WanDiT",
    "WanDiTConfig",
    "Wav2Vec2",
    "Wav2Vec2Config",
    "clip_pixels",
    "forget_rotary_tables",
    "frame_rows",
    "interpolate_states",
    "load_tokenizer",
    "num_audio_clips",
    "num_interpolated",
    "shared_rotary_tables",
    "states_at",
]
