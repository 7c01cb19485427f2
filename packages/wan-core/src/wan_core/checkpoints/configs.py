"""Network configs read from a checkpoint: from ``config.json`` where there is one, from tensor shapes elsewhere.

What shapes cannot tell comes from a JSON object under the key ``config`` of the file's metadata, where it has one (our
own tiny models do), and otherwise is that of the released models.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

from wan_core.checkpoints.readers.shards import read_json
from wan_core.checkpoints.readers.sources import TensorSource
from wan_core.errors import CheckpointError, ConfigError
from wan_core.models import CLIP_VIT_H14, WAN21_VAE, WAN22_VAE, CLIPConfig, UMT5Config, VAEConfig, WanDiTConfig

ConfigT = TypeVar("ConfigT")

CONFIG_NAME = "config.json"
HEAD_DIM = 128
"""Width of one attention head in every released Wan DiT."""

CLIP_HEAD_DIM = CLIP_VIT_H14.dim // CLIP_VIT_H14.num_heads

_DIFFUSERS_DIT = {
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
_OFFICIAL_DIT = (
    "in_dim", "out_dim", "dim", "ffn_dim", "num_heads", "num_layers", "freq_dim", "text_dim", "text_len", "patch_size",
    "qk_norm", "cross_attn_norm", "eps",
)  # fmt: skip
_MAX_LAYERS = 512


def read_dit_config(path: str | Path, source: TensorSource) -> WanDiTConfig:
    """The config of a DiT whose tensors, under native names, are ``source``.

    ``path`` is the folder or file of the weights; a ``config.json`` beside them, in official or diffusers keys, adds
    what shapes cannot tell (heads, text length). Whether there is an image branch is told by the tensors, as both
    networks call themselves ``i2v``. Raises CheckpointError for values that cannot be or that contradict the tensors,
    before anything is built.
    """
    path = Path(path)
    file = (path if path.is_dir() else path.parent) / CONFIG_NAME
    if not file.is_file():
        return infer_dit_config(source)
    stated = _stated(source, ("text_len",)) | dit_config_values(read_json(file))  # diffusers has no text length
    found = _dit_values(source)
    if "num_heads" not in stated:
        stated["num_heads"] = _heads(source, found["dim"], HEAD_DIM)
    config = _build(WanDiTConfig, found | stated, file)
    for name in found.keys() & stated.keys():
        if getattr(config, name) != found[name]:
            raise CheckpointError(
                f"{file} says {name} is {getattr(config, name)}, the tensors in {source.path} say {found[name]}; "
                "they belong to different models"
            )
    return config


def dit_config_values(content: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :class:`WanDiTConfig` in the JSON of a ``config.json``, official or diffusers."""
    heads, width = content.get("num_attention_heads"), content.get("attention_head_dim")
    if heads is None:
        return {key: content[key] for key in _OFFICIAL_DIT if key in content}
    values = {ours: content[theirs] for theirs, ours in _DIFFUSERS_DIT.items() if content.get(theirs) is not None}
    # What is no product becomes a string, which is refused as any wrong type.
    values["dim"] = heads * width if type(heads) is int and type(width) is int else f"{heads} x {width}"
    values["qk_norm"] = content.get("qk_norm", True) not in (None, False)
    return values


def infer_dit_config(source: TensorSource) -> WanDiTConfig:
    """The config of a DiT from its tensors, under native names. Heads are 128 wide unless the metadata say otherwise.

    Raises CheckpointError when the tensors are not those of a DiT.
    """
    values = _dit_values(source) | _stated(source, ("num_heads", "text_len", "eps"))
    if "num_heads" not in values:
        values["num_heads"] = _heads(source, values["dim"], HEAD_DIM)
    return _build(WanDiTConfig, values, source.path)


def _dit_values(source: TensorSource) -> dict[str, Any]:
    """What the tensors tell."""
    shape = _Shapes(source, "DiT")
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


def _heads(source: TensorSource, dim: int, head_dim: int) -> int:
    """Heads of the released width. Raises CheckpointError where they do not fit: a wrong count would load, and lie."""
    if dim % head_dim:
        raise CheckpointError(
            f"{source.path} does not say how many heads it has (width {dim} is no multiple of {head_dim}); "
            f"put num_heads into a {CONFIG_NAME} beside it"
        )
    return dim // head_dim


def _image_dim(source: TensorSource) -> int | None:
    name = "img_emb.proj.0.weight"
    return source.info(name).shape[0] if name in source and source.info(name).shape else None


def infer_vae_config(source: TensorSource) -> VAEConfig:
    """The config of a video autoencoder from its tensors, under native names.

    Latent statistics are the released ones for 16 (Wan 2.1) and 48 (Wan 2.2) channels, else those in the metadata, else
    none. Raises CheckpointError when the tensors are not those of such a network.
    """
    shape = _Shapes(source, "VAE")
    residual = any(re.match(r"encoder\.downsamples\.\d+\.downsamples\.", name) for name in source)
    widths, downsamples = _nested_levels(shape) if residual else _flat_levels(shape)
    dim, channels = shape.of("encoder.conv1.weight", 5)[:2]
    z_dim = shape.of("conv2.weight", 5)[0]
    dim_mult = tuple(width // dim for width in widths)
    decoder_last = shape.of("decoder.head.2.weight", 5)[1]
    values = {
        "dim": dim,
        "dec_dim": decoder_last // max(dim_mult[0], 1),
        "z_dim": z_dim,
        "dim_mult": dim_mult,
        "num_res_blocks": shape.count(r"decoder\.upsamples\.0\.upsamples\.(\d+)\.residual\.") - 1
        if residual
        else _flat_blocks(shape),
        "temporal_downsample": downsamples,
        "patch_size": 2 if channels == 12 else 1,
        "residual": residual,
    }
    released = {16: WAN21_VAE, 48: WAN22_VAE}.get(z_dim)
    if released is not None:
        values |= {"latents_mean": released.latents_mean, "latents_std": released.latents_std}
    return _build(VAEConfig, values | _stated(source, ("latents_mean", "latents_std")), source.path)


def _flat_blocks(shape: "_Shapes") -> int:
    """Residual blocks per encoder stage: those before the first resampling, or all in a network of one stage."""
    resamples = shape.indices(r"encoder\.downsamples\.(\d+)\.resample\.")
    return min(resamples, default=shape.count(r"encoder\.downsamples\.(\d+)\."))


def _flat_levels(shape: "_Shapes") -> tuple[list[int], tuple[bool, ...]]:
    """Width of each stage, and whether time shrinks after each but the last."""
    blocks = _flat_blocks(shape)
    count = shape.count(r"encoder\.downsamples\.(\d+)\.")
    stages = (count + 1) // (blocks + 1)
    widths = [shape.of(f"encoder.downsamples.{s * (blocks + 1)}.residual.2.weight", 5)[0] for s in range(stages)]
    ends = [f"encoder.downsamples.{s * (blocks + 1) + blocks}.time_conv.weight" for s in range(stages - 1)]
    return widths, tuple(name in shape.source for name in ends)


def _nested_levels(shape: "_Shapes") -> tuple[list[int], tuple[bool, ...]]:
    stages = shape.count(r"encoder\.downsamples\.(\d+)\.")
    widths = [shape.of(f"encoder.downsamples.{s}.downsamples.0.residual.2.weight", 5)[0] for s in range(stages)]
    names = shape.source.keys()
    halved = [
        any(re.match(rf"encoder\.downsamples\.{s}\.downsamples\.\d+\.time_conv\.", n) for n in names)
        for s in range(stages)
    ]
    return widths, tuple(halved[:-1])


def infer_umt5_config(source: TensorSource) -> UMT5Config:
    """The config of a UMT5 encoder from its tensors, under native names; heads are the columns of the bias table.

    Raises CheckpointError when the tensors are not those of such a network.
    """
    shape = _Shapes(source, "UMT5 encoder")
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
    return _build(UMT5Config, values | _stated(source, ("max_distance", "eps")), source.path)


def infer_clip_config(source: TensorSource) -> CLIPConfig:
    """The config of a CLIP image tower from its tensors, under native names; heads are 80 wide unless metadata say so.

    Raises CheckpointError when the tensors are not those of such a network.
    """
    shape = _Shapes(source, "CLIP image tower")
    dim, _, patch, _ = shape.of("embeddings.patch_embedding.weight", 4)
    tokens = shape.of("embeddings.position_embedding.weight", 2)[0]
    side = round(max(tokens - 1, 0) ** 0.5)
    if side * side + 1 != tokens:
        raise CheckpointError(f"{source.path}: {tokens} positions are not a square of patches and a class token")
    values: dict[str, Any] = {
        "dim": dim,
        "patch_size": patch,
        "image_size": side * patch,
        "ffn_dim": shape.of("encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_layers": shape.count(r"encoder\.layers\.(\d+)\."),
    }
    values |= _stated(source, ("num_heads", "activation", "eps"))
    if "num_heads" not in values:
        values["num_heads"] = _heads(source, dim, CLIP_HEAD_DIM)
    return _build(CLIPConfig, values, source.path)


class _Shapes:
    """Shapes and counts of a source, with errors that name the network they should be of."""

    def __init__(self, source: TensorSource, what: str) -> None:
        self.source = source
        self.what = what

    def of(self, name: str, ndim: int) -> tuple[int, ...]:
        if name not in self.source:
            raise CheckpointError(f"{self.source.path} holds no {self.what} that we know: it has no tensor {name}")
        shape = self.source.info(name).shape
        if len(shape) != ndim or min(shape) < 1:
            raise CheckpointError(f"{self.source.path}: {name} must have {ndim} dimensions, its shape is {list(shape)}")
        return shape

    def indices(self, pattern: str) -> list[int]:
        return [int(match[1]) for name in self.source if (match := re.match(pattern, name))]

    def count(self, pattern: str) -> int:
        """One more than the highest index."""
        count = max(self.indices(pattern), default=-1) + 1
        if not 1 <= count <= _MAX_LAYERS:
            raise CheckpointError(f"{self.source.path}: a {self.what} has 1 to {_MAX_LAYERS} layers, this has {count}")
        return count


def _stated(source: TensorSource, names: tuple[str, ...]) -> dict[str, Any]:
    """What the file itself says about its config."""
    text = source.metadata.get("config", "")
    try:
        content = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source.path}: the config in its metadata is no JSON") from error
    return {name: content[name] for name in names if name in content} if isinstance(content, dict) else {}


def _build(config: type[ConfigT], values: Mapping[str, Any], origin: Path) -> ConfigT:
    """The config with these values, whose types are checked: they come from a file."""
    whole = {field.name for field in fields(cast(Any, config)) if field.type in (int, "int")}
    wrong = [n for n, value in values.items() if not _is_sane(value) or (n in whole and type(value) is not int)]
    if wrong:
        raise CheckpointError(f"{origin}: {wrong[0]} is {str(values[wrong[0]])[:60]!r}, which makes no sense")
    try:
        return config(**values)
    except (ConfigError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{origin}: {str(error)[:200]}") from error


def _is_sane(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 4096 and all(_is_sane(item) and not isinstance(item, list | tuple) for item in value)
    return value is None or isinstance(value, str | bool) or (isinstance(value, int | float) and abs(value) <= 2**24)
