"""Shapes that other programs fold are viewed back where the numbers are the same in the same order."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from wan_core.checkpoints import FLF2V, MemorySource, load_model, native_weights, read_weights
from wan_core.errors import CheckpointError
from wan_core.models import FLF2VConfig, VAEConfig, WanDiTConfig

from .networks import build, infer_dit_config, infer_vae_config

DIT = WanDiTConfig(dim=128, ffn_dim=48, num_heads=1, num_layers=2, text_dim=24, text_len=512, freq_dim=16)
Tensors = dict[str, Tensor]


def weights(network: Any) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(t.shape, generator=generator) for name, t in network.state_dict().items()}


def folded(tensor: Tensor) -> Tensor:
    """As stable-diffusion.cpp keeps it: at most four dimensions, the first two joined; no ones in front."""
    shape = list(tensor.shape)
    if len(shape) == 5:
        shape = [shape[0] * shape[1], *shape[2:]]
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return tensor.reshape(shape)


def write_gguf(path: Path, tensors: Mapping[str, Tensor]) -> None:
    writer = gguf.GGUFWriter(path, "wan")
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_transformer_of_stable_diffusion_cpp(tmp_path: Path) -> None:
    expected = weights(build(DIT))
    stored = {f"model.diffusion_model.{name}": folded(tensor) for name, tensor in expected.items()}
    assert stored["model.diffusion_model.patch_embedding.weight"].shape == (128 * 16, 1, 2, 2)
    assert stored["model.diffusion_model.blocks.0.modulation"].shape == (6, 128)
    assert stored["model.diffusion_model.head.modulation"].shape == (2, 128)
    write_gguf(tmp_path / "w.gguf", stored)
    source = native_weights(read_weights(tmp_path / "w.gguf"), "dit")
    config = infer_dit_config(source)
    assert (config.dim, config.in_dim, config.patch_size) == (128, 16, (1, 2, 2))
    loaded = load_model(config, source, family="dit", dtype=torch.float32).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_the_positions_of_two_images_without_their_leading_one() -> None:
    config = FLF2VConfig(**{**DIT.__dict__, "in_dim": 36, "image_dim": 160, "image_tokens": 514})
    expected = weights(FLF2V.build(config))
    source = native_weights(MemorySource({name: folded(tensor) for name, tensor in expected.items()}), FLF2V)
    assert source.info("img_emb.emb_pos").shape == (1, 514, 160)
    assert all(torch.equal(source.read(name), tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "config", [VAEConfig(dim=8), VAEConfig(dim=8, dec_dim=8, z_dim=48, patch_size=2, residual=True)]
)
def test_an_autoencoder_of_stable_diffusion_cpp(tmp_path: Path, config: VAEConfig) -> None:
    expected = weights(build(config))
    write_gguf(tmp_path / "w.gguf", {f"first_stage_model.{name}": folded(t) for name, t in expected.items()})
    source = native_weights(read_weights(tmp_path / "w.gguf"), "vae")
    loaded = load_model(infer_vae_config(source), source, family="vae", dtype=torch.float32).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_a_kernel_of_one_frame_may_lack_its_time() -> None:
    expected = weights(build(DIT))
    source = native_weights(
        MemorySource(expected | {"patch_embedding.weight": expected["patch_embedding.weight"][:, :, 0]}), "dit"
    )
    assert torch.equal(source.read("patch_embedding.weight"), expected["patch_embedding.weight"])


def test_the_embedding_of_patches_may_be_a_matrix() -> None:
    expected = weights(build(DIT))
    matrix = expected["patch_embedding.weight"].flatten(1)
    stored = {f"net.{name}": t for name, t in (expected | {"patch_embedding.weight": matrix}).items()}
    source = native_weights(MemorySource(stored), "dit")
    assert infer_dit_config(source).in_dim == 16
    assert torch.equal(source.read("patch_embedding.weight"), expected["patch_embedding.weight"])


def test_quantised_tensors_are_viewed_back_as_well(tmp_path: Path) -> None:
    tensor = weights(build(replace(DIT, in_dim=64)))["patch_embedding.weight"]
    bias = torch.zeros(128)
    blocks = gguf.quantize(tensor.reshape(-1, 256).numpy(), gguf.GGMLQuantizationType.Q8_0)
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "wan")
    writer.add_array("comfy.gguf.orig_shape.patch_embedding.weight", [128 * 64, 1, 2, 2])
    writer.add_tensor("patch_embedding.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("patch_embedding.bias", bias.numpy())
    writer.add_tensor("blocks.0.self_attn.q.bias", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = native_weights(read_weights(tmp_path / "w.gguf"), "dit")
    expected = torch.from_numpy(gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)).view(tensor.shape)
    assert torch.equal(source.read("patch_embedding.weight"), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"patch_embedding.weight": torch.zeros(16 * 128 + 1, 1, 2, 2)},  # no multiple of the outputs
        {"patch_embedding.weight": torch.zeros(16, 128, 1, 2, 2)},  # transposed
        {"patch_embedding.weight": torch.zeros(64, 128)},
        {"patch_embedding.weight": torch.zeros(128, 66)},
        {"patch_embedding.weight": torch.zeros(128 * 64)},
        {"head.modulation": torch.zeros(256)},
        {"blocks.0.ffn.0.weight": torch.zeros(128, 48)},
        {"blocks.0.ffn.0.weight": torch.zeros(48 * 128)},
        {"blocks.1.modulation": torch.zeros(128, 6)},
    ],
)
def test_nothing_else_is_viewed(change: Tensors) -> None:
    source = native_weights(MemorySource(weights(build(DIT)) | change), "dit")
    with pytest.raises(CheckpointError, match=r"of another shape|must have|how many heads"):
        load_model(infer_dit_config(source), source, family="dit")
