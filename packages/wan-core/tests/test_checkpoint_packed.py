"""Layers that describe how they are packed: each format undone by its published formula, anything unknown refused."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wan_core.checkpoints import MemorySource, find_weights, inspect_weights, load_model, native_weights, read_weights
from wan_core.checkpoints.readers.packings import PACKINGS, rotated, unblocked
from wan_core.checkpoints.readers.quantized import DESCRIPTIONS, dequantized, joined_descriptions
from wan_core.errors import CheckpointError
from wan_core.models import WanDiTConfig

from .networks import build, infer_dit_config
from .packed_layers import Parts, awq, int8_rows, matrix, mxfp8, nvfp4, tiles, turned, w4a4, w4a8

DIT = WanDiTConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=1, text_dim=32, text_len=512, freq_dim=32)
LAYER = "blocks.0.ffn.0"


def mark(settings: Mapping[str, Any]) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(settings).encode()), dtype=torch.uint8)


def read(parts: Mapping[str, Tensor], settings: Mapping[str, Any], layer: str = LAYER) -> Tensor:
    stored = {f"{layer}.{name}": tensor for name, tensor in parts.items()}
    source = dequantized(MemorySource(stored | {f"{layer}.comfy_quant": mark(settings)}))
    assert list(source) == [f"{layer}.weight"]
    weight = source.read(f"{layer}.weight")
    assert (tuple(weight.shape), weight.dtype) == (source.info(f"{layer}.weight").shape, torch.float32)
    return weight


# -- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 16, 64, 256])
def test_a_rotation_is_a_matrix_product_over_blocks_and_its_own_inverse(size: int) -> None:
    weight = matrix()
    assert torch.allclose(rotated(weight, size), turned(weight, size), atol=1e-5)
    assert torch.allclose(rotated(rotated(weight, size), size), weight, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (48, 32), (128, 4), (272, 5)])
def test_tiles_of_block_scales_come_back_in_rows(rows: int, columns: int) -> None:
    scales = torch.arange(rows * columns).view(rows, columns).float()
    assert torch.equal(unblocked(tiles(scales), rows, columns), scales)


@pytest.mark.parametrize("size", [4, 64, 256])
@pytest.mark.parametrize("nested", [False, True])
def test_int8_with_a_hadamard_rotation_is_turned_back(size: int, nested: bool) -> None:
    weight = matrix()
    parts = int8_rows(turned(weight, size))
    expected = turned(parts["weight"].float() * parts["weight_scale"], size)
    rotation = {"convrot": True, "convrot_groupsize": size}
    said = {"format": "int8_tensorwise", **({"params": rotation} if nested else {**rotation, "per_row": True})}
    found = read(parts, said)
    assert torch.allclose(found, expected, atol=2e-6)
    assert (found - weight).abs().max() < 0.06  # without the turn it is noise
    assert (parts["weight"] * parts["weight_scale"] - weight).abs().max() > 1


def test_the_size_of_a_rotation_is_256_where_none_is_said() -> None:
    parts = int8_rows(turned(matrix(), 256))
    assert (read(parts, {"format": "int8_tensorwise", "convrot": True}) - matrix()).abs().max() < 0.06


PLAIN: dict[str, Callable[[Tensor], tuple[Parts, Tensor]]] = {
    "nvfp4": nvfp4,
    "mxfp8": mxfp8,
    "convrot_w4a4": lambda weight: w4a4(weight, 256),
    "awq_w4a16": lambda weight: awq(weight, 64),
}


@pytest.mark.parametrize("form", PLAIN)
@pytest.mark.parametrize("rows", [48, 272])
def test_formats_of_tensor_cores_and_of_four_bits(form: str, rows: int) -> None:
    parts, expected = PLAIN[form](matrix(rows))
    assert torch.allclose(read(parts, {"format": form}), expected, atol=3e-6)


@pytest.mark.parametrize("with_book", [False, True])
def test_four_bits_on_a_grid_of_eight(with_book: bool) -> None:
    book = torch.linspace(-8, 7, 16) ** 3 / 64 if with_book else None
    parts, expected = w4a8(matrix(), 16, book)
    said = {"format": "asym_w4a8_int8", "group_size": 16, "convrot_groupsize": 64}
    assert torch.allclose(read(parts, said), expected, atol=3e-6)
    parts["weight_s_rel"] = parts["weight_s_rel"].view(torch.uint8)
    assert torch.allclose(read(parts, said), expected, atol=3e-6)


def test_exponents_in_their_own_dtype_are_read_as_bytes(tmp_path: Path) -> None:
    parts, expected = mxfp8(matrix())
    parts["weight_scale"] = parts["weight_scale"].view(torch.float8_e8m0fnu)
    stored = {f"x.{name}": tensor for name, tensor in parts.items()} | {"x.comfy_quant": mark({"format": "mxfp8"})}
    save_file(stored, tmp_path / "w.safetensors")
    assert torch.equal(dequantized(read_weights(tmp_path / "w.safetensors")).read("x.weight"), expected)


def test_smoothing_of_the_inputs_goes_into_the_weight() -> None:
    parts, expected = nvfp4(matrix())
    factors = torch.linspace(0.5, 2, 512)
    assert torch.allclose(read(parts | {"pre_quant_scale": factors}, {"format": "nvfp4"}), expected * factors)


@pytest.mark.parametrize("form", ["float8_e4m3fn", "float8_e4m3fn_rowwise", "float8_e5m2"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_fp8_may_be_kept_as_bytes(form: str, as_bytes: bool) -> None:
    dtype = torch.float8_e5m2 if "e5m2" in form else torch.float8_e4m3fn
    scale = matrix().abs().amax(1, keepdim=True) / 448 if "row" in form else matrix().abs().max() / 448
    small = (matrix() / scale).to(dtype)
    parts = {"weight": small.view(torch.uint8) if as_bytes else small, "weight_scale": scale}
    said = {"format": form, "full_precision_matrix_mult": True, "orig_dtype": "torch.bfloat16"}
    assert torch.equal(read(parts, said), small.float() * scale)


@pytest.mark.parametrize("form", ["int8_blockwise", "float8_e4m3fn_blockwise"])
def test_one_scale_for_each_square(form: str) -> None:
    weight, scale = matrix(), torch.rand(3, 32, generator=torch.Generator().manual_seed(1))
    small = weight.mul(20).to(torch.int8 if "int8" in form else torch.float8_e4m3fn)
    expected = small.float().view(3, 16, 32, 16) * scale[:, None, :, None]
    found = read({"weight": small, "weight_scale": scale}, {"format": form, "group_size": 16})
    assert torch.equal(found, expected.view(48, 512))


def test_scales_for_parts_of_rows_need_no_description() -> None:
    scale = torch.rand(48, 8, 1, generator=torch.Generator().manual_seed(1))
    small = matrix().to(torch.float8_e4m3fn)
    source = dequantized(MemorySource({"x.weight": small, "x.scale_weight": scale}))
    assert torch.equal(source.read("x.weight"), (small.float().view(48, 8, 64) * scale).view(48, 512))


def test_a_matrix_that_is_not_packed_may_have_a_scale_too() -> None:
    stored = {"x.weight": matrix().bfloat16(), "x.scale_weight": torch.ones(())}
    assert torch.equal(dequantized(MemorySource(stored)).read("x.weight"), matrix().bfloat16().float())


# -- where the description stands -------------------------------------------------------------------------------------


def network(pack: Callable[[str, Tensor], tuple[Parts, Tensor]]) -> tuple[Parts, Parts, list[str]]:
    """A transformer with its big matrices packed; what it stands for; the packed layers."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build(DIT).state_dict().items()}
    expected = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    stored, layers = dict(expected), []
    for name, tensor in expected.items():
        layer = name.removesuffix(".weight")
        if name.startswith("blocks.") and tensor.ndim == 2 and name.endswith(".weight"):
            del stored[name]
            parts, expected[name] = pack(layer, tensor)
            stored |= {f"{layer}.{part}": value for part, value in parts.items()}
            layers.append(layer)
    return stored, expected, layers


def convrot(layer: str, weight: Tensor) -> tuple[Parts, Tensor]:
    parts = int8_rows(turned(weight, 64))
    return parts, turned(parts["weight"] * parts["weight_scale"], 64)


SAID = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64}


@pytest.mark.parametrize("place", ["marks", "header", "both", "header without prefix", "header with prefix"])
def test_a_whole_file_is_read_as_its_layers_or_its_header_say(tmp_path: Path, place: str) -> None:
    stored, expected, layers = network(convrot)
    prefix = "" if place == "header with prefix" else "model.diffusion_model."
    named = {f"{prefix}{name}": tensor.contiguous() for name, tensor in stored.items()}
    metadata = {"format": "pt"}
    if place in ("marks", "both"):
        named |= {f"{prefix}{layer}.comfy_quant": mark(SAID) for layer in layers}
    if place != "marks":
        front = {"header without prefix": "", "header with prefix": "model.diffusion_model."}.get(place, prefix)
        said = {"format_version": "1.0", "layers": {f"{front}{layer}": SAID for layer in layers}}
        metadata["_quantization_metadata"] = json.dumps(said)
    save_file(named, tmp_path / "w.safetensors", metadata)
    source = native_weights(read_weights(tmp_path / "w.safetensors"), "dit")
    loaded = load_model(infer_dit_config(source), source, family="dit", dtype=torch.float32).state_dict()
    assert all(torch.allclose(loaded[name], tensor, atol=2e-6) for name, tensor in expected.items())
    (weights,) = find_weights(tmp_path / "w.safetensors").weights
    assert inspect_weights(weights).notes == (f"packed as int8_tensorwise with ConvRot ({len(layers)} layers)",)
    assert load_model(DIT, source, family="dit").blocks[0].ffn[0].weight.dtype == torch.bfloat16


def test_each_shard_may_describe_its_own_layers(tmp_path: Path) -> None:
    stored, expected, layers = network(convrot)
    for number in (1, 2):
        own = {name: t.contiguous() for name, t in stored.items() if ("ffn" in name) == (number == 1)}
        said = {"format_version": "1.0", "layers": {layer: SAID for layer in layers if f"{layer}.weight" in own}}
        save_file(own, tmp_path / f"w-0000{number}-of-00002.safetensors", {DESCRIPTIONS: json.dumps(said)})
    source = native_weights(read_weights(tmp_path), "dit")
    assert set(source) == set(expected)
    assert all(torch.allclose(source.read(name), tensor, atol=2e-6) for name, tensor in expected.items())


def test_a_preference_for_attention_is_no_weight() -> None:
    stored, expected, layers = network(convrot)
    marks = {f"{layer}.comfy_quant": mark(SAID) for layer in layers}
    marks["blocks.0.self_attn.comfy_attention.config"] = mark({"attention": "comfy_kitchen_int8"})
    assert set(native_weights(MemorySource(stored | marks), "dit")) == set(expected)


# -- what is refused --------------------------------------------------------------------------------------------------

GOOD = {"format": "int8_tensorwise"}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"format": "int3_magic"}, "packed as 'int3_magic', which is not known"),
        ({"format": "svdquant_w4a4"}, "packed as 'svdquant_w4a4', which is not known"),
        ({"format": None}, "packed as 'None'"),
        ({"format": ["nvfp4"]}, "not known"),
        ({}, "packed as 'None'"),
        (GOOD | {"hadamard_left": True}, "'hadamard_left' = True, which is not known"),
        (GOOD | {"convrot_seed": 3}, "'convrot_seed' = 3"),
        (GOOD | {"num_experts": 4}, "'num_experts'"),
        (GOOD | {"params": {"zero_point": 3}}, "'zero_point' = 3"),
        (GOOD | {"params": 3}, "damaged"),
        (GOOD | {"convrot": "yes"}, "no yes or no"),
        (GOOD | {"convrot": True, "convrot_groupsize": 48}, "48 does not divide"),
        (GOOD | {"convrot": True, "convrot_groupsize": 32}, "32 is no power of four"),
        (GOOD | {"convrot": True, "convrot_groupsize": 2}, "2 is no power of four"),
        (GOOD | {"convrot": True, "convrot_groupsize": "64"}, "does not divide"),
        (GOOD | {"convrot": True, "convrot_groupsize": True}, "does not divide"),
        ({"format": "nvfp4"}, "lacks weight_scale_2"),
        ({"format": "mxfp8"}, "stored as int8"),
        ({"format": "float8_e4m3fn"}, "stored as int8"),
        ({"format": "int8_blockwise"}, "group_size None"),
        ({"format": "int8_blockwise", "group_size": 16}, "a scale is float32"),
        ({"format": "awq_w4a16"}, "lacks weight_zeros"),
        ({"format": "asym_w4a8_int8"}, "lacks weight_s_rel"),
    ],
)
def test_unknown_formats_and_flags_are_refused_by_name(said: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read(int8_rows(matrix()), said)


@pytest.mark.parametrize("form", PACKINGS)
def test_an_unknown_flag_is_refused_in_every_format(form: str) -> None:
    with pytest.raises(CheckpointError, match=f"packed as {form} with 'twist' = 1"):
        read(int8_rows(matrix()), {"format": form, "twist": 1})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_scale": torch.ones(3)}, "its scale is float32"),
        ({"weight_scale": torch.ones(1, 48)}, "its scale is float32"),  # of columns
        ({"weight_scale": torch.ones(48, dtype=torch.uint8)}, "its scale is uint8"),
        ({"weight": torch.ones(48, 512)}, "stored as float32"),
    ],
)
def test_tensors_that_do_not_fit_the_description_are_refused(change: Parts, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read(int8_rows(matrix()) | change, GOOD)


def test_block_scales_of_another_shape_are_refused() -> None:
    parts, _ = nvfp4(matrix())
    with pytest.raises(CheckpointError, match="no tiles of 128 x 4"):
        read(parts | {"weight_scale": parts["weight_scale"][:64]}, {"format": "nvfp4"})


def test_a_weight_with_two_scales_is_refused() -> None:
    stored = {f"{LAYER}.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)}
    stored |= {f"{LAYER}.weight_scale": torch.tensor(2.0), f"{LAYER}.scale_weight": torch.tensor(3.0)}
    with pytest.raises(CheckpointError, match="are two scales of one weight"):
        dequantized(MemorySource(stored))


TWICE = b'{"format": "float8_e4m3fn", "format": "int8_tensorwise"}'
APART = b'{"format": "float8_e4m3fn", "params": {"format": "int8_tensorwise"}}'


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe", b"{" * 5000, TWICE, APART])
def test_a_damaged_mark_is_one_error(raw: bytes) -> None:
    stored = {f"{LAYER}.weight": torch.ones(2, 2), f"{LAYER}.comfy_quant": torch.tensor(list(raw), dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match=r"description of a layer|damaged"):
        dequantized(MemorySource(stored))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "damaged"),
        ('{"layers": []}', "no layers by name"),
        ('{"format_version": "1.0"}', "no layers by name"),
        (json.dumps({LAYER: GOOD}), "no layers by name"),
        ('{"format_version": "2.0", "layers": {}}', "format_version '2.0', and only 1.0 is known"),
        ('{"format_version": {"a": 1}, "layers": {}}', "format_version .*only 1.0 is known"),
        ("\ud800", "damaged"),
        (json.dumps({"layers": {LAYER: {"format": "x"}}}), "packed as 'x'"),
        (json.dumps({"layers": {LAYER: "nvfp4"}}), "damaged"),
        (json.dumps({"layers": {LAYER: {"format": "int8_axiswise"}}}), "say different things"),
        (json.dumps({"layers": {"ffn.0": GOOD}}), "there are 2 of that name"),
    ],
)
def test_a_header_that_is_not_understood_is_refused(text: str, words: str) -> None:
    stored = {f"blocks.{index}.ffn.0.{name}": t for index in range(2) for name, t in int8_rows(matrix()).items()}
    source = MemorySource(stored | {f"{LAYER}.comfy_quant": mark(GOOD)}, metadata={"_quantization_metadata": text})
    with pytest.raises(CheckpointError, match=words):
        dequantized(source)


@pytest.mark.parametrize(
    "version", ["", '"format_version": null, ', '"format_version": 1, ', '"format_version": "1.1", ']
)
def test_a_header_without_a_version_has_the_one_that_there_is(version: str) -> None:
    stored = {f"{LAYER}.{name}": tensor for name, tensor in int8_rows(matrix()).items()}
    text = f'{{{version}"layers": {{"{LAYER}": {json.dumps(GOOD)}}}}}'
    assert set(dequantized(MemorySource(stored, metadata={DESCRIPTIONS: text}))) == {f"{LAYER}.weight"}


def test_a_shard_of_an_unknown_version_is_not_read_as_the_others() -> None:
    texts = [json.dumps({"format_version": version, "layers": {LAYER: GOOD}}) for version in ("3.0", "1.0")]
    assert joined_descriptions(texts) == texts[0]


def test_a_header_of_another_file_is_refused() -> None:
    text = json.dumps({"layers": {"transformer.h.0.mlp": SAID}})
    stored = {f"{LAYER}.{name}": tensor for name, tensor in int8_rows(matrix()).items()}
    with pytest.raises(CheckpointError, match="it holds none of them"):
        dequantized(MemorySource(stored, metadata={"_quantization_metadata": text}))


PACKERS = {
    "quanto": {"weight._data": "i", "weight._scale": "f"},
    "bitsandbytes": {"weight": "u", "weight.absmax": "u", "weight.quant_state.bitsandbytes__nf4": "u"},
    "bitsandbytes, 8 bits": {"weight": "i", "SCB": "f"},
    "torchao": {"_weight_qdata": "i", "_weight_scale": "f"},
    "nunchaku": {"qweight": "i", "wscales": "f", "smooth_factor": "f"},
    "GPTQ": {"qweight": "i", "qzeros": "i", "g_idx": "i", "scales": "f"},
    "AWQ": {"qweight": "i", "qzeros": "i", "scales": "f"},
    "TurboDiffusion": {"int8_weight": "i", "scale": "f"},
    "HQQ": {"W_q": "u", "scale": "f", "zero": "f"},
    "compressed-tensors": {"weight_packed": "i", "weight_scale": "f", "weight_shape": "i"},
    "ModelOpt": {"weight": "u", "weight_scale": "f", "weight_scale_2": "f"},
    "blockwise fp8": {"weight": "f", "weight_scale_inv": "f"},
}
KINDS = {"i": torch.int8, "u": torch.uint8, "f": torch.float32}


@pytest.mark.parametrize("tool", PACKERS)
def test_files_of_other_packers_are_refused_by_name(tmp_path: Path, tool: str) -> None:
    stored, _, layers = network(lambda layer, weight: ({}, weight))
    for layer in layers:
        stored |= {f"{layer}.{name}": torch.ones(4, 4, dtype=KINDS[kind]) for name, kind in PACKERS[tool].items()}
    save_file(stored, tmp_path / "w.safetensors")
    source = read_weights(tmp_path / "w.safetensors")
    word = tool.split(",")[0]
    with pytest.raises(CheckpointError, match=f"packed by .*{word}"):
        native_weights(source, "dit")
    (weights,) = find_weights(tmp_path / "w.safetensors").weights  # and what it is, is told without an error
    assert word in inspect_weights(weights).problem


def test_whole_numbers_without_scales_are_no_weights() -> None:
    stored, _, layers = network(lambda layer, weight: ({"weight": weight.to(torch.int8)}, weight))
    with pytest.raises(CheckpointError, match=f"{len(layers)} stored as whole numbers: blocks.0"):
        load_model(DIT, native_weights(MemorySource(stored), "dit"), family="dit")


@pytest.mark.parametrize("place", ["marks", "header"])
def test_a_description_of_some_int8_layers_does_not_do_for_the_others(place: str) -> None:
    stored, _, layers = network(convrot)
    metadata: dict[str, str] = {}
    if place == "marks":
        stored |= {f"{layer}.comfy_quant": mark(SAID) for layer in layers[1:]}
    else:
        metadata[DESCRIPTIONS] = json.dumps({"layers": dict.fromkeys(layers[1:], SAID)})
    with pytest.raises(CheckpointError, match=f"describes how {len(layers) - 1} layers are packed.*{layers[0]}.weight"):
        native_weights(MemorySource(stored, metadata=metadata), "dit")
