"""Golden cases of the video autoencoders: whole, streamed, tiled, with explicit state, and block by block."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.goldens.harness import GoldenCase, finished, handles
from wan_core.checkpoints import MemorySource, load_model
from wan_core.models import VAEConfig, VideoVAE
from wan_core.models.vae.causal import DecoderCache, EncoderCache, FeatureCache
from wan_core.models.vae.config import (
    WAN21_LATENTS_MEAN,
    WAN21_LATENTS_STD,
    WAN22_LATENTS_MEAN,
    WAN22_LATENTS_STD,
)
from wan_core.models.vae.layers import AttentionBlock, ChannelNorm, Downsample, ResidualBlock, Upsample
from wan_core.models.vae.shortcuts import average_downsample, duplicate_upsample, patchify, unpatchify
from wan_core.models.vae.tiling import Tiling

_STATISTICS = {16: (WAN21_LATENTS_MEAN, WAN21_LATENTS_STD), 48: (WAN22_LATENTS_MEAN, WAN22_LATENTS_STD)}


def _config(values: dict[str, Any], *, is_22: bool, statistics: tuple[Any, Any] | None = None) -> VAEConfig:
    """Our config from a reference's (dim, dec_dim) or diffusers' (base_dim, decoder_base_dim) constructor arguments."""
    residual = bool(values.get("is_residual", is_22))
    mean, std = statistics or _STATISTICS.get(values["z_dim"], ((), ()))
    return VAEConfig(
        dim=values.get("dim", values.get("base_dim")),
        dec_dim=values.get("dec_dim", values.get("decoder_base_dim")),
        z_dim=values["z_dim"],
        dim_mult=values["dim_mult"],
        num_res_blocks=values["num_res_blocks"],
        temporal_downsample=values["temperal_downsample"],
        patch_size=values.get("patch_size", 2 if residual else None) or 1,
        residual=residual,
        attn_scales=values.get("attn_scales", ()),
        dropout=values.get("dropout", 0.0),
        latents_mean=mean,
        latents_std=std,
    )


def _statistics(inputs: dict[str, Tensor]) -> tuple[Any, Any] | None:
    """Latent statistics that the case brings itself, else None: those of the release with as many channels."""
    if "mean" not in inputs:
        return None
    std = inputs["std"] if "std" in inputs else 1.0 / inputs["inv_std"]
    return inputs["mean"].tolist(), std.tolist()


def _decoding_half(config: VAEConfig, weights: dict[str, Tensor]) -> VideoVAE:
    """A model from a file that holds the decoder and its input convolution only."""
    model = VideoVAE(config)
    model.decoder.load_state_dict(_part(weights, "decoder."))
    model.conv2.load_state_dict(_part(weights, "conv2."))
    return finished(model)


def _part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


@contextmanager
def _recorded(network: nn.Module, prefix: str, into: dict[str, Tensor]) -> Iterator[None]:
    """Collect the outputs of all submodules as ``<prefix>.<child path>`` while the block runs."""

    def recorder(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            into[f"{prefix}.{name}"] = output.clone()

        return hook

    hooks = [module.register_forward_hook(recorder(name)) for name, module in network.named_modules() if name]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@handles("wan_vae21", "wan_vae22")
def autoencoder(case: GoldenCase) -> dict[str, Tensor]:
    """Encode and decode whole clips and streams; every argument is in the name of an expected tensor."""
    inputs, results = case.inputs, {}
    config = _config(case.config, is_22=case.family.endswith("22"), statistics=_statistics(inputs))
    model = finished(load_model(config, MemorySource(case.weights), family="vae", dtype=torch.float32))
    for name in case.expected:
        if match := re.fullmatch(r"out\.latents_f(\d+)", name):
            results[name] = model.encode(inputs["video"][:, :, : int(match[1])], drop_tail=True)
        elif match := re.fullmatch(r"mid\.moments_f(\d+)", name):
            results[name] = model.encode_moments(inputs["video"][:, :, : int(match[1])], drop_tail=True)
        elif match := re.fullmatch(r"out\.video(_raw)?_t(\d+)", name):
            results[name] = model.decode(inputs["latents"][:, :, : int(match[2])], clamp=not match[1])
    if "out.stream_chunk0" in case.expected:
        for index, chunk in enumerate(model.stream_decode(inputs["latents"], clamp=False)):
            results[f"out.stream_chunk{index}"] = chunk
    results |= _layer_outputs(model, inputs)
    return {name: value for name, value in results.items() if name in case.expected}


def _layer_outputs(model: VideoVAE, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}
    stride = model.config.temporal_stride
    if "video_mid" in inputs:
        video, encoder_cache = inputs["video_mid"], EncoderCache()
        frames = video.shape[2]
        for index, start in enumerate([0, *range(1, frames, stride)]):
            with _recorded(model.encoder, f"mid.encoder.chunk{index}", results):
                model.encode_chunk(video[:, :, start : start + stride if start else 1], encoder_cache)
    if "latents_mid" in inputs:
        decoder_cache = DecoderCache()
        for index, latent in enumerate(inputs["latents_mid"].split(1, dim=2)):
            with _recorded(model.decoder, f"mid.decoder.chunk{index}", results):
                model.decode_chunk(latent, decoder_cache)
    return results


@handles("wan_vae_tiled")
def tiled(case: GoldenCase) -> dict[str, Tensor]:
    """diffusers' names and options, plain and tiled; that model leaves latents unnormalised."""
    config = _config(case.config, is_22=False, statistics=((), ()))
    model = finished(load_model(config, MemorySource(case.weights), family="vae", dtype=torch.float32))
    options = case.call.get("enable_tiling", {})
    options = {name.removeprefix("tile_sample_"): value for name, value in options.items() if value is not None}
    tiling = Tiling(**{name.replace("min_", "tile_"): value for name, value in options.items()})
    results = {}
    for name in case.expected:
        chosen = tiling if name.endswith("_tiled") else None
        if name.startswith("out.moments"):
            results[name] = model.encode_moments(case.inputs["video"], tiling=chosen, drop_tail=True)
        elif name.startswith("out.video"):
            results[name] = model.decode(case.inputs["latents_denorm"], tiling=chosen)
    return results


@handles("wan_vae_stream_state")
def stream_state(case: GoldenCase) -> dict[str, Tensor]:
    """Block-wise decoding on a cache that starts empty (``none``) or as an all-zero past (``zero``)."""
    is_22 = case.metadata.get("vae", "2.1") == "2.2"
    model = _decoding_half(_config(case.config, is_22=is_22), case.weights)
    latents = case.inputs["latents"].transpose(1, 2)  # stored as [B, T, C, h, w]
    blocks = json.loads(case.metadata["blocks"])
    results = {}
    for mode in ("zero", "none"):
        cache = DecoderCache(zero_history=mode == "zero")
        for index, block in enumerate(latents.split(blocks, dim=2)):
            results[f"out.{mode}_block{index}"] = model.decode_chunk(block, cache).transpose(1, 2)
    return {name: value for name, value in results.items() if name in case.expected}


@handles("sf_vae_streaming_decode")
def streaming_decode(case: GoldenCase) -> dict[str, Tensor]:
    """One-shot decode, and the same in chunks of several latents on one cache."""
    inputs = case.inputs
    config = _config(case.config, is_22=False, statistics=_statistics(inputs))
    model = _decoding_half(config, case.weights)
    results = {"out.frames": model.decode(inputs["z"], clamp=False)}
    cache = DecoderCache()
    chunks = [model.decode_chunk(z, cache, clamp=False) for z in inputs["z"].split(case.call["chunks"], dim=2)]
    streamed = torch.cat(chunks, dim=2)
    if not torch.allclose(streamed, results["out.frames"], atol=1e-4):
        raise ValueError("decoding in chunks differs from decoding at once")
    if [chunk.shape[2] for chunk in chunks] != case.call["frames_per_chunk"]:
        raise ValueError(f"frames per chunk {[chunk.shape[2] for chunk in chunks]}")
    return results


@handles("wan_vae_blocks")
def blocks(case: GoldenCase) -> dict[str, Tensor]:
    """Building blocks; ``call`` holds one entry of options per output or group of chunks."""
    results: dict[str, Tensor] = {}
    for pattern, options in case.call.items():
        name = pattern.removeprefix("out.")
        stem, _, rest = name.partition(".")
        if rest in ("chunk*", "*"):
            results |= _chunked_block(case, stem, options)
        else:
            weights = case.named(f"weights.{options.get('weights', name)}.")
            results[pattern] = _single_block(options, weights, case.inputs[name])
    return {name: value for name, value in results.items() if name in case.expected}


def _single_block(options: dict[str, Any], weights: dict[str, Tensor], x: Tensor) -> Tensor:
    operation = options["op"].lower()
    if operation.startswith(("avgdown", "dupup")):
        sizes = (options["out_channels"], options["factor_t"], options["factor_s"])
        if operation.startswith("avgdown"):
            return average_downsample(x, *sizes)
        return duplicate_upsample(x, *sizes, is_first_chunk=options["first_chunk"])
    if operation.startswith("patchify"):
        return patchify(x, options["patch"])
    if operation.startswith("unpatchify"):
        return unpatchify(x, options["patch"])
    if "norm" in operation:
        return _loaded(ChannelNorm(x.shape[1], per_frame=weights["gamma"].ndim == 3), weights)(x)
    if operation.startswith("attention"):
        return _loaded(AttentionBlock(x.shape[1]), weights)(x)
    raise ValueError(f"unknown block {options['op']!r}")


def _chunked_block(case: GoldenCase, stem: str, options: dict[str, Any]) -> dict[str, Tensor]:
    weights = case.named(f"weights.{stem}.")
    chunks = [case.inputs[key] for key in _numbered(case.inputs, f"{stem}.chunk")]
    results, cache = {}, FeatureCache()
    module = _chunked_module(options, weights, chunks[0].shape[1])
    for index, chunk in enumerate(chunks):
        results[f"out.{stem}.chunk{index}"] = module(chunk, cache)
        cache.finish_chunk()
    if f"out.{stem}.full" in case.expected:
        results[f"out.{stem}.full"] = module(torch.cat(chunks, dim=2))
    return results


def _chunked_module(options: dict[str, Any], weights: dict[str, Tensor], channels: int) -> nn.Module:
    mode = options.get("mode")
    if mode is None:
        return _loaded(ResidualBlock(channels, weights["residual.2.weight"].shape[0]), weights)
    temporal = mode.endswith("3d")
    if mode.startswith("down"):
        return _loaded(Downsample(channels, temporal=temporal), weights)
    return _loaded(Upsample(channels, weights["resample.1.weight"].shape[0], temporal=temporal), weights)


def _loaded(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    module.load_state_dict(weights)
    return module.eval()


def _numbered(tensors: dict[str, Tensor], prefix: str) -> list[str]:
    names = [name for name in tensors if re.fullmatch(re.escape(prefix) + r"\d+", name)]
    return sorted(names, key=lambda name: int(name.removeprefix(prefix)))
