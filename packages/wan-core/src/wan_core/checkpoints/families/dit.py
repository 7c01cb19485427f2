"""The diffusion transformer: official and diffusers' names, its ``config.json`` in both keys, where its files lie."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core import models
from wan_core.checkpoints.families.record import Family, Places
from wan_core.checkpoints.families.relatives import refusing_relatives
from wan_core.checkpoints.families.shapes import Shapes, build_config, heads_of, stated
from wan_core.checkpoints.folds import Fold
from wan_core.checkpoints.formats import CheckpointFormat, Renames
from wan_core.errors import CheckpointError
from wan_core.models import FLF2VConfig, WanDiTConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wan_core.checkpoints.readers.sources import TensorSource

HEAD_DIM = 128
"""Width of one attention head in every released Wan DiT."""

DIFFUSERS_VERSION = "0.35.0"
"""The diffusers version from which the configs that we write can be read."""

_CONFIG_NAME = "config.json"
_DIFFUSERS_KEYS = {
    "in_channels": "in_dim",
    "out_channels": "out_dim",
    "num_attention_heads": "num_heads",
    "num_layers": "num_layers",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "text_dim": "text_dim",
    "patch_size": "patch_size",
    "eps": "eps",
    "cross_attn_norm": "cross_attn_norm",
}
# Keys without effect on a network; whether there is an image branch the tensors tell.
_IGNORED = frozenset(
    {
        "model_type", "_class_name", "_diffusers_version", "_name_or_path", "image_dim",
        "attention_head_dim", "qk_norm", "added_kv_proj_dim", "pos_embed_seq_len", "rope_max_seq_len",
        "motion_token_num", "use_img_emb", "use_context_parallel", "latent_channels",
        "motion_encoder_size", "motion_encoder_channel_sizes", "motion_encoder_batch_size",
    }
)  # fmt: skip
# Parts that relatives add, off in the networks that are ours; and what VideoX-Fun writes beside: dims of these
# parts, two names that its networks do not use, and the kind of cross-attention, which the tensors tell.
_OFF = frozenset(
    {
        "inject_sample_info", "add_control_adapter", "add_ref_conv",
        "enable_motioner", "enable_tsm", "trainable_token_pos_emb",
    }
)  # fmt: skip
_BESIDE = frozenset(
    {
        "in_channels", "hidden_size", "cross_attn_type", "in_dim_control_adapter", "downscale_factor_control_adapter",
        "in_dim_ref_conv",
    }
)  # fmt: skip
# What limits attention, with the value that does not.
_UNLIMITED: Mapping[str, Any] = {"window_size": [-1, -1], "local_attn_size": -1, "sink_size": 0}
_LATER = ("qk_norm", "cross_attn_norm", "text_dim", "patch_size")
"""Options that a published ``config.json`` leaves out."""


def dit_config_reader(
    kind: type[WanDiTConfig] = WanDiTConfig, more: Callable[[TensorSource], Mapping[str, Any]] = lambda source: {}
) -> Callable[[Path, TensorSource], WanDiTConfig]:
    """The ``infer`` of a family of transformers: it reads the config of weights at a path, under native names.

    ``kind`` is the config's class, ``more`` reads the dims that it adds from the tensors. A ``config.json`` beside the
    weights, in official or diffusers keys, adds what shapes cannot tell (heads, text length). The reader raises
    CheckpointError, before anything is built, for values that cannot be or that contradict the tensors, for options
    that are not known, and for attention within a window, which no released network has.
    """

    def infer(path: Path, source: TensorSource) -> WanDiTConfig:
        from wan_core.checkpoints.readers.shards import read_json

        found = {**_dims(source), **more(source)}
        file = (path if path.is_dir() else path.parent) / _CONFIG_NAME
        said = stated(source, ("num_heads", "text_len", "eps", *added_fields(kind)))
        if file.is_file():
            # The file itself says only what its config leaves out, such as the text length in diffusers' keys.
            said |= _config_values(read_json(file), kind, file)
        if "num_heads" not in said:
            said["num_heads"] = heads_of(source, found["dim"], HEAD_DIM)
        config = build_config(kind, found | said, file if file.is_file() else source.path)
        for name in found.keys() & said.keys():
            if getattr(config, name) != found[name]:
                raise CheckpointError(
                    f"{file} says {name} is {getattr(config, name)}, the tensors in {source.path} say {found[name]}; "
                    "they belong to different models"
                )
        return config

    return infer


def added_fields(kind: type[WanDiTConfig]) -> tuple[str, ...]:
    """What a subclass of the config adds."""
    return tuple(field.name for field in fields(kind) if not hasattr(WanDiTConfig, field.name))


def _config_values(content: Mapping[str, Any], kind: type[WanDiTConfig], file: Path) -> dict[str, Any]:
    """Arguments of the config in the JSON of a ``config.json``, official or diffusers."""
    _refuse_packed(content, file)
    content = _without_limits(content, file)
    is_diffusers = content.get("num_attention_heads") is not None
    keys = _known_keys(kind, is_diffusers=is_diffusers)
    said = {key for key, value in content.items() if value is not None and not (value is False and key in _OFF)}
    unknown = sorted(said - {*keys, *_IGNORED, *(() if is_diffusers else _BESIDE)})
    if unknown:
        raise CheckpointError(f"{file}: {', '.join(unknown[:5])} is no option of a Wan transformer that is known here")
    values = {ours: content[theirs] for theirs, ours in keys.items() if content.get(theirs) is not None}
    values.pop("image_dim", None)
    if is_diffusers:
        heads, width = content["num_attention_heads"], content.get("attention_head_dim")
        # What is no product becomes a string, which is refused as any wrong type.
        values["dim"] = heads * width if type(heads) is int and type(width) is int else f"{heads} x {width}"
        values["qk_norm"] = content.get("qk_norm", True) not in (None, False)
    return values


def _known_keys(kind: type[WanDiTConfig], *, is_diffusers: bool) -> Mapping[str, str]:
    """Keys of a ``config.json`` with the fields that they are; those that a subclass adds are called alike in both."""
    if is_diffusers:
        return {**_DIFFUSERS_KEYS, **{name: name for name in added_fields(kind)}}
    return {field.name: field.name for field in fields(kind)}


def _without_limits(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    for name, value in _UNLIMITED.items():
        if content.get(name) not in (None, value):
            raise CheckpointError(f"{file}: {name} {content[name]} limits attention, which this network does not do")
    return {name: value for name, value in content.items() if name not in _UNLIMITED}


def _refuse_packed(content: Mapping[str, Any], file: Path) -> None:
    """diffusers notes there who packed the weights; ours and plain ones have no such note."""
    packer = content.get("quantization_config")
    if packer is not None:
        method = packer.get("quant_method", "a tool that it does not name") if isinstance(packer, dict) else packer
        raise CheckpointError(
            f"{file}: by quantization_config the weights are packed by {str(method)[:60]}, which is not read here; get "
            "the 16-bit, fp8 or GGUF file of the model"
        )


def _dims(source: TensorSource) -> dict[str, Any]:
    """What the tensors tell."""
    shape = Shapes(source, "DiT")
    dim, in_dim, *patch = shape.of("patch_embedding.weight", 5)
    return {
        "dim": dim,
        "in_dim": in_dim,
        "patch_size": tuple(patch),
        "out_dim": shape.of("head.head.weight", 2)[0] // (patch[0] * patch[1] * patch[2]),
        "ffn_dim": shape.of("blocks.0.ffn.0.weight", 2)[0],
        "freq_dim": shape.of("time_embedding.0.weight", 2)[1],
        "text_dim": shape.of("text_embedding.0.weight", 2)[1],
        "num_layers": shape.count(r"blocks\.(\d+)\."),
        "qk_norm": "blocks.0.self_attn.norm_q.weight" in source,
        "cross_attn_norm": "blocks.0.norm3.weight" in source,
        "image_dim": _image_dim(source),
    }


def _image_dim(source: TensorSource) -> int | None:
    name = "img_emb.proj.0.weight"
    return source.info(name).shape[0] if name in source and source.info(name).shape else None


def official_config(config: WanDiTConfig) -> dict[str, Any]:
    """``config.json`` of a transformer for the original code.

    Keys beyond the published ones, and those that a subclass of the config adds, only where they are not the default.
    """
    published = {field.name: getattr(config, field.name) for field in fields(WanDiTConfig) if field.name not in _LATER}
    further = [*_LATER, *added_fields(type(config))]
    defaults = {field.name: field.default for field in fields(config)}
    extra = {name: getattr(config, name) for name in further if getattr(config, name) != defaults[name]}
    for name in ("image_dim", "image_tokens"):  # the tensors tell
        published.pop(name)
    return (
        {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "model_type": model_type(config)}
        | published
        | extra
    )


def model_type(config: WanDiTConfig) -> str:
    """What the original code calls a network of these dims: ``t2v``, ``i2v`` or ``ti2v``."""
    if config.in_dim > config.out_dim:
        return "i2v"
    return "ti2v" if config.out_dim == 48 else "t2v"


def diffusers_config(config: WanDiTConfig) -> dict[str, Any]:
    """``config.json`` of a transformer for diffusers. Raises CheckpointError for a network that it does not have."""
    if not config.qk_norm:
        raise CheckpointError("diffusers has no Wan transformer without norms of queries and keys")
    values = {theirs: getattr(config, ours) for theirs, ours in _DIFFUSERS_KEYS.items()} | {
        "_class_name": "WanTransformer3DModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "added_kv_proj_dim": None if config.image_dim is None else config.dim,
        "attention_head_dim": config.head_dim,
        "image_dim": config.image_dim,
        "patch_size": list(config.patch_size),
        "pos_embed_seq_len": None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
    }
    return dict(sorted(values.items()))


DIFFUSERS_DIT: Renames = (
    ("patch_embedding", "patch_embedding"),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
    ("proj_out", "head.head"),
    ("scale_shift_table", "head.modulation"),
    ("blocks.{}.scale_shift_table", "blocks.{}.modulation"),
    ("blocks.{}.norm2", "blocks.{}.norm3"),  # only this file format: a native norm2 has no weights
    ("blocks.{}.ffn.net.0.proj", "blocks.{}.ffn.0"),
    ("blocks.{}.ffn.net.2", "blocks.{}.ffn.2"),
    *(
        (f"blocks.{{}}.{theirs}.{part}", f"blocks.{{}}.{ours}.{name}")
        for theirs, ours in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for part, name in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"),
                           ("norm_q", "norm_q"), ("norm_k", "norm_k"))
    ),
    ("blocks.{}.attn2.add_k_proj", "blocks.{}.cross_attn.k_img"),
    ("blocks.{}.attn2.add_v_proj", "blocks.{}.cross_attn.v_img"),
    ("blocks.{}.attn2.norm_added_k", "blocks.{}.cross_attn.norm_k_img"),
    ("blocks.{}.attn2.norm_added_q", None),
)  # fmt: skip

_FUSED = re.compile(r"(blocks\.\d+)\.(?:attn1\.to_qkv|attn2\.to_kv|attn2\.to_added_kv)\.(weight|bias)")
_FUSED_PARTS = {
    "attn1.to_qkv": ("self_attn.q", "self_attn.k", "self_attn.v"),
    "attn2.to_kv": ("cross_attn.k", "cross_attn.v"),
    "attn2.to_added_kv": ("cross_attn.k_img", "cross_attn.v_img"),
}


def split_fused_attention(name: str, tensor: Tensor) -> dict[str, Tensor] | None:
    """diffusers' fused projections (``fuse_qkv_projections``): equal parts along the output axis, in order q, k, v."""
    match = _FUSED.fullmatch(name)
    if match is None:
        return None
    block, kind = match.groups()
    parts = _FUSED_PARTS[name.removeprefix(f"{block}.").removesuffix(f".{kind}")]
    return {f"{block}.{part}.{kind}": piece for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True)}


def _network(config: WanDiTConfig) -> nn.Module:
    return models.WanDiT(config)


DIT = Family(
    name="dit",
    title="the diffusion transformer",
    network=_network,
    infer=refusing_relatives(dit_config_reader()),
    formats=(
        CheckpointFormat(
            name="diffusers",
            marker=r"(?:^|\.)condition_embedder\.|\.attn[12]\.|\.ffn\.net\.",
            renames=DIFFUSERS_DIT,
            split=split_fused_attention,
        ),
        CheckpointFormat(name="official"),
    ),
    signature=r"(?:^|\.)blocks\.0\.(?:self_attn\.q|attn1\.to_q|attn1\.to_qkv)\.(?:weight|bias)(?:\.|$)",
    folds=(
        Fold(r"patch_embedding\.weight", 5, kernel=(1, 2, 2)),
        Fold(r"(?:blocks\.\d+|head)\.modulation|img_emb\.emb_pos", 3),
    ),
    usual=lambda config: {"num_heads": config.dim // HEAD_DIM, "text_len": 512, "eps": 1e-6},
    official_config=official_config,
    diffusers_config=diffusers_config,
    places=Places(
        official=lambda config, expert: f"{expert}_noise_model" if expert else "",
        diffusers="transformer",
        second="transformer_2",
        single="diffusion_models",
        also=("", "diffusion_models", "unet"),
        single_name=lambda config, expert: f"wan_{model_type(config)}" + (f"_{expert}_noise" if expert else ""),
    ),
    is_denoiser=True,
)
"""Wan 2.1 and 2.2 transformers; the native names are the official ones."""


def _two_images(source: TensorSource) -> dict[str, Any]:
    return {"image_tokens": Shapes(source, "first-last-frame DiT").of("img_emb.emb_pos", 3)[1]}


def _two_image_network(config: FLF2VConfig) -> nn.Module:
    return models.FLF2VDiT(config)


FLF2V = replace(
    DIT,
    name="flf2v",
    title="the first-last-frame transformer",
    network=_two_image_network,
    infer=refusing_relatives(dit_config_reader(FLF2VConfig, _two_images)),
    signature=r"(?:^|\.)(?:img_emb\.emb_pos|condition_embedder\.image_embedder\.pos_embed)$",
    official_config=lambda config: {**official_config(config), "model_type": "flf2v"},
    diffusers_config=lambda config: {**diffusers_config(config), "pos_embed_seq_len": config.image_tokens},
)
"""Wan 2.1 FLF2V: a transformer with one further tensor."""
