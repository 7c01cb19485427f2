"""The JSON files that go with weights, in each layout: what the original code, diffusers and transformers read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wan_core.errors import CheckpointError
from wan_core.models import CLIPConfig, UMT5Config, VAEConfig, WanDiTConfig

_DIFFUSERS = "0.35.0"
"""The diffusers version from which these files can be read."""

_TRAIN_TIMESTEPS = 1000
_CLIP_PROJECTION = 1024
_DEFAULTS = WanDiTConfig()
_OPTIONAL = ("text_dim", "patch_size", "qk_norm", "cross_attn_norm")


@dataclass(frozen=True, kw_only=True)
class PipelineFacts:
    """What a diffusers pipeline must know besides its networks.

    ``boundary`` is the share of the training steps above which the high-noise expert works; ``frame_timesteps`` tells a
    network that takes one timestep for each latent frame.
    """

    flow_shift: float
    boundary: float | None = None
    frame_timesteps: bool = False


def official_config(config: WanDiTConfig) -> dict[str, Any]:
    """``config.json`` of a transformer for the original code; keys beyond the published ones only where they differ."""
    extra = {key: getattr(config, key) for key in _OPTIONAL if getattr(config, key) != getattr(_DEFAULTS, key)}
    return {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "model_type": _model_type(config),
        "in_dim": config.in_dim,
        "out_dim": config.out_dim,
        "dim": config.dim,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "text_len": config.text_len,
        "eps": config.eps,
        **extra,
    }


def _model_type(config: WanDiTConfig) -> str:
    if config.in_dim > config.out_dim:
        return "i2v"
    return "ti2v" if config.out_dim == 48 else "t2v"


def diffusers_config(config: WanDiTConfig | VAEConfig | UMT5Config | CLIPConfig) -> dict[str, Any]:
    """``config.json`` of a network for diffusers or transformers.

    Raises CheckpointError for a network that the peer does not have.
    """
    if isinstance(config, WanDiTConfig):
        return _diffusers_dit(config)
    if isinstance(config, VAEConfig):
        return _diffusers_vae(config)
    return _transformers_umt5(config) if isinstance(config, UMT5Config) else _transformers_clip(config)


def _diffusers_dit(config: WanDiTConfig) -> dict[str, Any]:
    if not config.qk_norm:
        raise CheckpointError("diffusers has no Wan transformer without norms of queries and keys")
    return {
        "_class_name": "WanTransformer3DModel",
        "_diffusers_version": _DIFFUSERS,
        "added_kv_proj_dim": None if config.image_dim is None else config.dim,
        "attention_head_dim": config.head_dim,
        "cross_attn_norm": config.cross_attn_norm,
        "eps": config.eps,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "image_dim": config.image_dim,
        "in_channels": config.in_dim,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "out_channels": config.out_dim,
        "patch_size": list(config.patch_size),
        "pos_embed_seq_len": None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": config.text_dim,
    }


def _diffusers_vae(config: VAEConfig) -> dict[str, Any]:
    patched = {"in_channels": 12, "out_channels": 12, "patch_size": 2} if config.patch_size == 2 else {}
    return {
        "_class_name": "AutoencoderKLWan",
        "_diffusers_version": _DIFFUSERS,
        "attn_scales": [],
        "base_dim": config.dim,
        "decoder_base_dim": config.decoder_dim,
        "dim_mult": list(config.dim_mult),
        "dropout": config.dropout,
        "is_residual": config.residual,
        "latents_mean": list(config.latents_mean) or [0.0] * config.z_dim,
        "latents_std": list(config.latents_std) or [1.0] * config.z_dim,
        "num_res_blocks": config.num_res_blocks,
        "scale_factor_spatial": config.spatial_stride,
        "scale_factor_temporal": config.temporal_stride,
        "temperal_downsample": list(config.temporal_downsample),  # spelt so
        "z_dim": config.z_dim,
        **patched,
    }


def _transformers_umt5(config: UMT5Config) -> dict[str, Any]:
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


def _transformers_clip(config: CLIPConfig) -> dict[str, Any]:
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "attention_dropout": 0.0,
        "hidden_act": config.activation,
        "hidden_size": config.dim,
        "image_size": config.image_size,
        "intermediate_size": config.ffn_dim,
        "layer_norm_eps": config.eps,
        "num_attention_heads": config.num_heads,
        "num_channels": 3,
        "num_hidden_layers": config.num_layers,
        "patch_size": config.patch_size,
        "projection_dim": _CLIP_PROJECTION,
    }


def image_processor(config: CLIPConfig) -> dict[str, Any]:
    """``preprocessor_config.json`` for the pictures of a CLIP tower: OpenAI's mean and deviation."""
    side = config.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side},
    }


def scheduler(facts: PipelineFacts) -> dict[str, Any]:
    """``scheduler_config.json``: UniPC on the flow schedule of the model."""
    return {
        "_class_name": "UniPCMultistepScheduler",
        "_diffusers_version": _DIFFUSERS,
        "flow_shift": facts.flow_shift,
        "num_train_timesteps": _TRAIN_TIMESTEPS,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "solver_type": "bh2",
        "use_flow_sigmas": True,
    }


def model_index(network: WanDiTConfig, facts: PipelineFacts, *, num_networks: int, has_clip: bool) -> dict[str, Any]:
    """``model_index.json`` of a whole model."""
    is_i2v = network.in_dim > network.out_dim
    absent = [None, None]
    clip = {
        "image_encoder": ["transformers", "CLIPVisionModel"] if has_clip else absent,
        "image_processor": ["transformers", "CLIPImageProcessor"] if has_clip else absent,
    }
    return {
        "_class_name": "WanImageToVideoPipeline" if is_i2v else "WanPipeline",
        "_diffusers_version": _DIFFUSERS,
        "boundary_ratio": facts.boundary if num_networks == 2 else None,
        "expand_timesteps": facts.frame_timesteps,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": ["diffusers", "WanTransformer3DModel"] if num_networks == 2 else absent,
        "vae": ["diffusers", "AutoencoderKLWan"],
        **(clip if is_i2v else {}),
    }


def unsaid(config: WanDiTConfig | VAEConfig | UMT5Config | CLIPConfig) -> Mapping[str, Any]:
    """What the shapes of a network do not tell, where it is not as in the released models."""
    if isinstance(config, WanDiTConfig):
        usual: dict[str, Any] = {"num_heads": config.dim // 128, "text_len": 512, "eps": 1e-6}
    elif isinstance(config, UMT5Config):
        usual = {"max_distance": 128, "eps": 1e-6}
    elif isinstance(config, CLIPConfig):
        usual = {"num_heads": config.dim // 80, "activation": "gelu", "eps": 1e-5}
    else:
        usual = {} if config.z_dim in (16, 48) else {"latents_mean": (), "latents_std": ()}
    return {name: getattr(config, name) for name, value in usual.items() if getattr(config, name) != value}
