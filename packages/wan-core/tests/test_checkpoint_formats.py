"""Names: every table is idempotent on native ones, every layout survives a round trip, and the peers read ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import UMT5Config as PeerUMT5Config
from transformers import UMT5EncoderModel

from wan_core.checkpoints import MemorySource, in_format, load_model, native_weights, read_weights, write_shards
from wan_core.checkpoints.families import get_family
from wan_core.checkpoints.formats import rename
from wan_core.checkpoints.members import family_of
from wan_core.errors import CheckpointError
from wan_core.models import CLIPConfig, DiTInputs, UMT5Config, VAEConfig, WanDiTConfig, Wav2Vec2Config

from .networks import (
    build,
    infer_clip_config,
    infer_dit_config,
    infer_umt5_config,
    infer_vae_config,
    infer_wav2vec2_config,
)

DIT = WanDiTConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=2, text_dim=24, text_len=8, freq_dim=16)
VAE_22 = VAEConfig(dim=8, dec_dim=8, z_dim=48, patch_size=2, residual=True)
CLIP = CLIPConfig(dim=160, ffn_dim=64, num_heads=2, num_layers=2, image_size=28)
UMT5 = UMT5Config(vocab_size=40, dim=16, dim_attn=24, dim_ffn=20, num_heads=2, num_layers=2)
WAV2VEC2 = Wav2Vec2Config(
    dim=128, ffn_dim=24, num_heads=2, num_layers=2, conv_dims=(8,) * 7, position_kernel=8, position_groups=4
)
NETWORKS: Mapping[str, tuple[str, Any]] = {
    "dit": ("dit", DIT),
    "dit with image branch": ("dit", WanDiTConfig(**{**DIT.__dict__, "in_dim": 36, "image_dim": 160})),
    "dit without norms": ("dit", WanDiTConfig(**{**DIT.__dict__, "qk_norm": False, "cross_attn_norm": False})),
    "vae 2.1": ("vae", VAEConfig(dim=8)),
    "vae 2.1, one block a stage": ("vae", VAEConfig(dim=8, num_res_blocks=1)),
    "vae 2.1, two stages": ("vae", VAEConfig(dim=8, dim_mult=(1, 2), temporal_downsample=(True,), num_res_blocks=3)),
    "vae 2.2": ("vae", VAE_22),
    "vae 2.2, one block a stage": ("vae", VAEConfig(**{**VAE_22.__dict__, "num_res_blocks": 1})),
    "umt5": ("umt5", UMT5),
    "clip": ("clip", CLIP),
    "wav2vec2": ("wav2vec2", WAV2VEC2),
}


def weights(config: Any, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a network, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build(config).state_dict().items()}
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def tensors(source: Any) -> dict[str, Tensor]:
    return {name: source.read(name) for name in source}


def assert_equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert set(left) == set(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_table_leaves_native_names_alone(network: str) -> None:
    family, config = NETWORKS[network]
    names = list(weights(config))
    for candidate in get_family(family).formats:
        rules = dict(candidate.table(names))
        assert [rename(name, rules) for name in names] == names, candidate.name


@pytest.mark.parametrize("network", NETWORKS)
def test_native_weights_stay_as_they_are(network: str) -> None:
    family, config = NETWORKS[network]
    source = native_weights(MemorySource(weights(config)), family)
    assert_equal(tensors(source), weights(config))
    assert_equal(tensors(native_weights(source, family)), weights(config))


@pytest.mark.parametrize("network", NETWORKS)
def test_every_format_survives_a_round_trip(network: str) -> None:
    family, config = NETWORKS[network]
    for candidate in get_family(family).formats:
        foreign = in_format(MemorySource(weights(config)), family, candidate.name)
        assert native_weights(foreign, family).format in (candidate.name, get_family(family).formats[-1].name)
        assert family_of(foreign) == family
        assert_equal(tensors(native_weights(foreign, family)), weights(config))


INFERENCE = {
    "dit": infer_dit_config,
    "vae": infer_vae_config,
    "umt5": infer_umt5_config,
    "clip": infer_clip_config,
    "wav2vec2": infer_wav2vec2_config,
}


@pytest.mark.parametrize("network", NETWORKS)
def test_shapes_tell_the_config(network: str) -> None:
    family, config = NETWORKS[network]
    metadata = {"config": '{"num_heads": 2, "text_len": 8}'} if family == "dit" else {}
    inferred = INFERENCE[family](MemorySource(weights(config), metadata=metadata))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build(inferred).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in weights(config).items()}
    for name in ("num_heads", "text_len", "patch_size", "temporal_downsample", "residual", "image_size"):
        assert getattr(inferred, name, None) == getattr(config, name, None), name


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([6, 8, 12]),
    layers=st.integers(1, 12),
    in_dim=st.integers(1, 40),
    image_dim=st.none() | st.integers(1, 9),
    norms=st.booleans(),
    prefix=st.sampled_from(["", "model.diffusion_model.", "diffusion_model.", "model.", "pipe.dit.", "transformer."]),
    wrapper=st.sampled_from(
        ["", "_orig_mod.", "_fsdp_wrapped_module.", "_fsdp_wrapped_module._checkpoint_wrapped_module."]
    ),
    nest=st.sampled_from(["", "generator.", "generator_ema.", "state_dict."]),
)
def test_any_dit_comes_back_from_any_layout(
    heads: int,
    head_dim: int,
    layers: int,
    in_dim: int,
    image_dim: int | None,
    norms: bool,
    prefix: str,
    wrapper: str,
    nest: str,
) -> None:
    config = WanDiTConfig(
        dim=heads * head_dim, num_heads=heads, num_layers=layers, ffn_dim=8, in_dim=in_dim, image_dim=image_dim,
        qk_norm=norms, cross_attn_norm=norms, text_dim=4, freq_dim=4, text_len=2,
    )  # fmt: skip
    expected = weights(config)
    official = {f"{nest}{prefix}{name.replace('blocks.', 'blocks.' + wrapper, 1)}": t for name, t in expected.items()}
    assert_equal(tensors(native_weights(MemorySource(official), "dit")), expected)
    diffusers = in_format(MemorySource(expected), "dit", "diffusers")
    wrapped = {f"{prefix}{name}": diffusers.read(name) for name in diffusers}
    assert_equal(tensors(native_weights(MemorySource(wrapped), "dit")), expected)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    stages=st.lists(st.sampled_from([1, 2, 4]), min_size=2, max_size=4),
    blocks=st.integers(1, 4),
    residual=st.booleans(),
    times=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_any_vae_comes_back_from_diffusers_names(
    stages: list[int], blocks: int, residual: bool, times: list[bool]
) -> None:
    stages = sorted(stages)
    if residual:  # whose last stage keeps its width
        stages[-1] = stages[-2]
    config = VAEConfig(
        dim=4, dim_mult=tuple(stages), num_res_blocks=blocks, residual=residual, z_dim=4,
        temporal_downsample=tuple(times[: len(stages) - 1]), patch_size=2 if residual else 1,
    )  # fmt: skip
    expected = weights(config)
    diffusers = in_format(MemorySource(expected), "vae", "diffusers")
    peer = AutoencoderKLWan(**vae_arguments(config))
    assert {n: tuple(t.shape) for n, t in peer.state_dict().items()} == {n: diffusers.info(n).shape for n in diffusers}
    assert_equal(tensors(native_weights(diffusers, "vae")), expected)


# -- the peers read what we write, and compute the same ----------------------------------------------------------------


def vae_arguments(config: VAEConfig) -> dict[str, Any]:
    arguments = {
        "base_dim": config.dim,
        "decoder_base_dim": config.decoder_dim,
        "z_dim": config.z_dim,
        "dim_mult": list(config.dim_mult),
        "num_res_blocks": config.num_res_blocks,
        "temperal_downsample": list(config.temporal_downsample),
        "is_residual": config.residual,
        "latents_mean": [0.0] * config.z_dim,
        "latents_std": [1.0] * config.z_dim,
    }
    channels = {"in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": config.spatial_stride}
    return arguments | (channels if config.patch_size == 2 else {})


def dit_arguments(config: WanDiTConfig) -> dict[str, Any]:
    branch = {} if config.image_dim is None else {"image_dim": config.image_dim, "added_kv_proj_dim": config.dim}
    return branch | {
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.in_dim,
        "out_channels": config.out_dim,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
        "rope_max_seq_len": 32,
    }


def in_folder(path: Path, family: str, config: Any, peer: nn.Module) -> Path:
    """Our weights in the peer's layout, in two shards, with the peer's own config."""
    native = MemorySource(weights(config))
    write_shards(in_format(native, family, "diffusers"), path, max_shard_bytes=native.nbytes // 2)
    peer.config.save_pretrained(path) if hasattr(peer.config, "save_pretrained") else peer.save_config(path)
    return path


@pytest.mark.parametrize("network", ["dit", "dit with image branch"])
def test_diffusers_reads_our_transformer_and_computes_the_same(tmp_path: Path, network: str) -> None:
    config = NETWORKS[network][1]
    folder = in_folder(tmp_path / "transformer", "dit", config, WanTransformer3DModel(**dit_arguments(config)))
    peer = WanTransformer3DModel.from_pretrained(folder).eval()
    ours = load_model(config, read_weights(folder), family="dit")
    latents, context = torch.randn(1, config.in_dim, 2, 4, 6), torch.randn(1, 8, config.text_dim)
    states = None if config.image_dim is None else torch.randn(1, 257, config.image_dim)
    with torch.no_grad():
        if states is not None:  # the peer cuts image tokens off by a fixed text length of 512
            context = torch.cat([context, torch.zeros(1, 504, config.text_dim)], dim=1)
            ours = load_model(WanDiTConfig(**{**config.__dict__, "text_len": 512}), read_weights(folder), family="dit")
        expected = peer(latents, torch.tensor([37.0]), context, encoder_hidden_states_image=states, return_dict=False)[
            0
        ]
        result = ours(latents, torch.tensor([37.0]), DiTInputs(context=context, image_context=states))
    assert torch.allclose(result, expected, atol=2e-5)


@pytest.mark.parametrize("network", ["vae 2.1", "vae 2.2"])
def test_diffusers_reads_our_vae_and_computes_the_same(tmp_path: Path, network: str) -> None:
    config = NETWORKS[network][1]
    folder = in_folder(tmp_path / "vae", "vae", config, AutoencoderKLWan(**vae_arguments(config)))
    peer = AutoencoderKLWan.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    ours = load_model(config, read_weights(folder), family="vae")
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = peer.encode(video).latent_dist.mode()
        assert torch.allclose(ours.encode(video), expected, atol=2e-5)
        assert torch.allclose(ours.decode(expected), peer.decode(expected).sample, atol=2e-5)


def test_transformers_reads_our_umt5_and_computes_the_same(tmp_path: Path) -> None:
    peer_config = PeerUMT5Config(
        vocab_size=40, d_model=16, d_kv=12, d_ff=20, num_layers=2, num_heads=2, dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    peer = UMT5EncoderModel(peer_config)
    native = MemorySource(weights(UMT5))
    write_shards(in_format(native, "umt5", "diffusers"), tmp_path, stem="model", max_shard_bytes=native.nbytes // 2)
    peer.config.save_pretrained(tmp_path)
    peer, information = UMT5EncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not information["missing_keys"]
    ids = torch.randint(0, 40, (2, 9))
    ours = load_model(UMT5, read_weights(tmp_path), family="umt5")
    with torch.no_grad():
        assert torch.allclose(ours(ids), peer.eval()(ids).last_hidden_state, atol=2e-5)


# -- single points -----------------------------------------------------------------------------------------------------


def test_the_embedding_may_be_stored_once_under_either_name_or_twice() -> None:
    native = MemorySource(weights(UMT5))
    once = tensors(in_format(native, "umt5", "diffusers"))
    assert "shared.weight" in once
    table = once["shared.weight"]
    renamed = {name.replace("shared", "encoder.embed_tokens"): tensor for name, tensor in once.items()}
    twice = {"encoder.embed_tokens.weight": torch.zeros_like(table)} | once
    for stored in (once, renamed, twice):
        assert torch.equal(native_weights(MemorySource(stored), "umt5").read("token_embedding.weight"), table)


def test_the_decoder_of_a_whole_t5_is_left_out() -> None:
    stored = tensors(in_format(MemorySource(weights(UMT5)), "umt5", "diffusers"))
    stored |= {"decoder.block.0.layer.0.layer_norm.weight": torch.ones(2), "lm_head.weight": torch.ones(2)}
    source = native_weights(MemorySource(stored), "umt5")
    assert_equal(tensors(source), weights(UMT5))


def test_the_unused_halves_of_the_clip_file_are_left_out() -> None:
    stored = tensors(in_format(MemorySource(weights(CLIP)), "clip", "official"))
    extra = {"textual.model.x": torch.ones(1), "log_scale": torch.ones(1), "visual.head": torch.ones(2, 2)}
    source = native_weights(MemorySource(stored | extra), "clip")
    assert_equal(tensors(source), weights(CLIP))
    assert source.format == "official"


def test_older_transformers_names_of_clip_are_known() -> None:
    stored = {f"vision_model.{name}": tensor for name, tensor in weights(CLIP).items()}
    stored |= {"vision_model.embeddings.position_ids": torch.arange(5), "visual_projection.weight": torch.ones(2, 2)}
    assert_equal(tensors(native_weights(MemorySource(stored), "clip")), weights(CLIP))


def test_fused_projections_of_diffusers_are_cut_apart() -> None:
    native = MemorySource(weights(NETWORKS["dit with image branch"][1]))
    stored = tensors(in_format(native, "dit", "diffusers"))
    for kind in ("weight", "bias"):
        for block in range(2):
            for whole, parts in {
                "attn1.to_qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
                "attn2.to_kv": ("attn2.to_k", "attn2.to_v"),
                "attn2.to_added_kv": ("attn2.add_k_proj", "attn2.add_v_proj"),
            }.items():
                pieces = [stored.pop(f"blocks.{block}.{part}.{kind}") for part in parts]
                stored[f"blocks.{block}.{whole}.{kind}"] = torch.cat(pieces)
    assert_equal(tensors(native_weights(MemorySource(stored), "dit")), tensors(native))


def test_averaged_weights_win_unless_another_group_is_named() -> None:
    expected = weights(DIT)
    other = {name: tensor + 1 for name, tensor in expected.items()}
    stored = {f"generator_ema.model.{n}": t for n, t in expected.items()} | {
        f"generator.model.{n}": t for n, t in other.items()
    }
    stored |= {f"critic.model.{n}": t for n, t in other.items()}
    assert_equal(tensors(native_weights(MemorySource(stored), "dit")), expected)
    assert_equal(tensors(native_weights(MemorySource(stored), "dit", group="generator")), other)
    with pytest.raises(CheckpointError, match="no group 'teacher'"):
        native_weights(MemorySource(stored), "dit", group="teacher")


def test_a_file_with_one_tensor_under_two_layouts_is_refused() -> None:
    stored = tensors(in_format(MemorySource(weights(DIT)), "dit", "diffusers"))
    stored["head.head.weight"] = stored["proj_out.weight"]
    with pytest.raises(CheckpointError, match=r"proj_out\.weight and head\.head\.weight|mixes two layouts"):
        native_weights(MemorySource(stored), "dit")


@pytest.mark.parametrize("shape", [(), (2,), (1,), (1, 1)])
def test_a_fused_tensor_of_odd_shape_is_one_error(shape: tuple[int, ...]) -> None:
    stored = {"visual.pre_norm.weight": torch.ones(2), "visual.cls_embedding": torch.ones(shape)}
    stored["visual.transformer.0.attn.to_qkv.weight"] = torch.ones(shape)
    with pytest.raises(CheckpointError, match="cannot be cut up"):
        native_weights(MemorySource(stored), "clip")


def test_unknown_formats_are_named() -> None:
    with pytest.raises(CheckpointError, match="known: diffusers, official"):
        in_format(MemorySource({}), "dit", "onnx")


def test_absurd_indices_make_no_long_tables() -> None:
    names = ["decoder.up_blocks.99999999.resnets.99999999.norm1.gamma", "encoder.mid_block.resnets.0.norm1.gamma"]
    source = native_weights(MemorySource({name: torch.ones(1) for name in names}), "vae")
    assert names[0] in source
