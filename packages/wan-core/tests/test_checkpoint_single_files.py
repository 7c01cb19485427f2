"""Files as people have them on disk: ComfyUI's, with 8-bit weights and scales; GGUF; whole models; trainers' files."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wan_core.checkpoints import (
    MemorySource,
    in_format,
    load_model,
    native_weights,
    read_weights,
)
from wan_core.errors import BackendError, CheckpointError
from wan_core.models import CLIPConfig, UMT5Config, VAEConfig, WanDiTConfig

from .gguf_files import QUANTISED, write_gguf
from .networks import build, infer_clip_config, infer_dit_config, infer_umt5_config, infer_vae_config

DIT = WanDiTConfig(dim=256, ffn_dim=256, num_heads=2, num_layers=2, text_dim=32, text_len=512, freq_dim=32)
VAE = VAEConfig(dim=8)
UMT5 = UMT5Config(vocab_size=32, dim=32, dim_attn=32, dim_ffn=32, num_heads=2, num_layers=2)
MARK = torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
CLIP = CLIPConfig(dim=160, ffn_dim=64, num_heads=2, num_layers=1, image_size=28)


def weights(config: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build(config).state_dict().items()}
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def saved(path: Path, tensors: Mapping[str, Tensor], prefix: str = "") -> Path:
    save_file({f"{prefix}{name}": tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def dit_weights(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What a transformer loaded from a file holds."""
    source = native_weights(read_weights(path), "dit")
    return load_model(infer_dit_config(source), source, family="dit", dtype=dtype).state_dict()


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_comfyui_single_files(tmp_path: Path, prefix: str, dtype: torch.dtype) -> None:
    expected = {name: tensor.to(dtype) for name, tensor in weights(DIT).items()}
    loaded = dit_weights(saved(tmp_path / "w.safetensors", expected, prefix))
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in expected.items())


def scaled(tensors: Mapping[str, Tensor], suffix: str, per_row: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """8-bit matrices with scales beside them, and the weights that they stand for."""
    stored: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stored[name] = expected[name] = tensor
        if tensor.ndim == 2 and ".norm" not in name:
            scale = (tensor.abs().amax(1, keepdim=True) if per_row else tensor.abs().amax()) / 448
            stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
            stored[name.replace(".weight", suffix)] = scale.float()
            expected[name] = stored[name].float() * scale
    return stored, expected


@pytest.mark.parametrize(
    ("suffix", "per_row", "extra"),
    [
        (".scale_weight", False, {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}),
        (".scale_weight", False, {"blocks.0.ffn.0.scale_input": torch.ones(1)}),
        (
            ".weight_scale",
            True,
            {"blocks.0.ffn.0.comfy_quant": MARK},
        ),
        (".weight_scale", False, {"blocks.0.ffn.0.input_scale": torch.ones(())}),
    ],
)
def test_scaled_fp8_files_are_dequantised(tmp_path: Path, suffix: str, per_row: bool, extra: dict[str, Tensor]) -> None:
    stored, expected = scaled(weights(DIT), suffix, per_row)
    loaded = dit_weights(saved(tmp_path / "w.safetensors", stored | extra, "model.diffusion_model."))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    source = native_weights(read_weights(tmp_path / "w.safetensors"), "dit")
    assert load_model(DIT, source, family="dit").blocks[0].ffn[0].weight.dtype == torch.bfloat16


def test_scaled_fp8_works_in_diffusers_names_too(tmp_path: Path) -> None:
    diffusers = in_format(MemorySource(weights(DIT)), "dit", "diffusers")
    stored, expected = scaled({name: diffusers.read(name) for name in diffusers}, ".scale_weight", False)
    loaded = dit_weights(saved(tmp_path / "w.safetensors", stored))
    native = native_weights(MemorySource(expected), "dit")
    assert all(torch.equal(loaded[name], native.read(name)) for name in native)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"blocks.0.ffn.9.scale_weight": torch.ones(())}, "1 scales have no weight"),
        ({"blocks.0.ffn.0.scale_weight": torch.ones(3)}, "such packing is not known"),
        ({"blocks.0.norm3.scale_weight": torch.ones(())}, "such packing is not known"),
        ({"blocks.0.ffn.0.scale_weight": torch.ones(256, dtype=torch.uint8)}, "such packing is not known"),
        ({"blocks.0.ffn.0.weight": torch.ones(256, 128, dtype=torch.uint8)}, "such packing is not known"),
    ],
)
def test_scales_that_do_not_fit_are_refused(change: dict[str, Tensor], words: str) -> None:
    stored, _ = scaled(weights(DIT), ".scale_weight", False)
    with pytest.raises(CheckpointError, match=words):
        native_weights(MemorySource(stored | change), "dit")


def whole_model() -> dict[str, Tensor]:
    """One file with every part, under ComfyUI's prefixes."""
    parts: dict[str, Mapping[str, Tensor]] = {
        "model.diffusion_model.": weights(DIT),
        "first_stage_model.": weights(VAE),
        "text_encoders.umt5xxl.transformer.": as_format(weights(UMT5), "umt5", "diffusers"),
        "clip_vision.vision_model.": weights(CLIP),
    }
    joined = {f"{prefix}{name}": tensor for prefix, part in parts.items() for name, tensor in part.items()}
    extra = {"text_encoders.umt5xxl.logit_scale": torch.ones(()), "text_encoders.umt5xxl.spiece_model": torch.ones(3)}
    return joined | extra


def as_format(tensors: Mapping[str, Tensor], family: str, name: str) -> dict[str, Tensor]:
    source = in_format(MemorySource(tensors), family, name)
    return {key: source.read(key).contiguous() for key in source}


def test_every_part_of_a_whole_model_in_one_file_is_read(tmp_path: Path) -> None:
    source = read_weights(saved(tmp_path / "w.safetensors", whole_model()))
    parts: dict[str, tuple[Any, Callable[..., Any]]] = {
        "dit": (DIT, infer_dit_config),
        "vae": (VAE, infer_vae_config),
        "umt5": (UMT5, infer_umt5_config),
        "clip": (CLIP, infer_clip_config),
    }
    for family, (config, infer) in parts.items():
        native = native_weights(source, family)
        loaded = load_model(infer(native), native, family=family).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in weights(config).items()), family


# -- trainers' files ---------------------------------------------------------------------------------------------------


def test_self_forcing_files(tmp_path: Path) -> None:
    expected = weights(DIT)
    wrapped = {f"model._fsdp_wrapped_module.{name.replace('blocks.', 'blocks._checkpoint_wrapped_module.')}": tensor
               for name, tensor in expected.items()}  # fmt: skip
    other = {name: tensor + 1 for name, tensor in wrapped.items()}
    torch.save({"generator": other, "generator_ema": wrapped, "critic": other, "step": 600}, tmp_path / "model.pt")
    loaded = dit_weights(tmp_path / "model.pt")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    source = native_weights(read_weights(tmp_path / "model.pt"), "dit", group="generator")
    assert torch.equal(source.read("head.head.bias"), expected["head.head.bias"] + 1)
    torch.save({"generator": wrapped}, tmp_path / "ode_init.pt")
    assert torch.equal(dit_weights(tmp_path / "ode_init.pt")["head.head.bias"], expected["head.head.bias"])


# -- GGUF --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F16", *QUANTISED])
def test_gguf_files_are_dequantised(tmp_path: Path, kind: str) -> None:
    expected = write_gguf(tmp_path / "w.gguf", weights(DIT), kind)
    source = native_weights(read_weights(tmp_path / "w.gguf"), "dit")
    assert source.info("patch_embedding.weight").shape == (256, 16, 1, 2, 2)
    assert source.metadata["general.architecture"] == "wan"
    loaded = dit_weights(tmp_path / "w.gguf")
    for name, tensor in expected.items():
        assert torch.equal(loaded[name].nan_to_num(), tensor.float().nan_to_num()), name
    stored = load_model(DIT, source, family="dit").blocks[0].ffn[0].weight.dtype
    assert stored == (torch.float16 if kind == "F16" else torch.bfloat16)


def test_the_text_encoder_under_llama_cpp_names(tmp_path: Path) -> None:
    stored = as_format(weights(UMT5), "umt5", "llama.cpp")
    assert "enc.blk.1.ffn_gate.weight" in stored
    write_gguf(tmp_path / "w.gguf", stored, "F16")
    source = native_weights(read_weights(tmp_path / "w.gguf"), "umt5")
    assert source.format == "llama.cpp"
    loaded = load_model(infer_umt5_config(source), source, family="umt5", dtype=torch.float32)
    assert all(torch.equal(t, weights(UMT5)[name].half().float()) for name, t in loaded.state_dict().items())


def test_without_the_package_quantised_tensors_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "w.gguf", weights(DIT), "Q8_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    source = native_weights(read_weights(tmp_path / "w.gguf"), "dit")
    assert source.read("head.head.bias").shape == (64,)
    with pytest.raises(BackendError, match=r"pip install 'wan-core\[gguf\]'"):
        source.read("blocks.0.ffn.0.weight")
