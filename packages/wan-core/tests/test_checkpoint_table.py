"""The table of formats and models in docs/checkpoints.md: every pair that it promises loads, and loads the weights."""

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tools.make_checkpoint import LAYOUTS, make_checkpoint
from wan_core.checkpoints import (
    ExportOptions,
    PipelineFacts,
    export_networks,
    find_weights,
    native_weights,
    networks_in,
    read_weights,
)
from wan_core.cli.progress import byte_progress
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.presets import get_preset
from wan_core.tasks import Experts

from .gguf_files import write_gguf
from .packed_layers import turned

PAGE = Path(__file__).resolve().parents[3] / "docs" / "checkpoints.md"
Tensors = dict[str, Tensor]
Write = Callable[[Tensors, Path], Mapping[str, Tensor]]


def table() -> dict[str, list[str]]:
    """The page's table: formats, and the models that load from each."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    start = next(number for number, line in enumerate(lines) if line.startswith("| format |"))
    models = [cell.strip().strip("`") for cell in lines[start].split("|")[2:-1]]
    rows: dict[str, list[str]] = {}
    for line in lines[start + 2 :]:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) != len(models) + 1:
            break
        rows[re.sub(r"[`*]", "", cells[0])] = [m for m, cell in zip(models, cells[1:], strict=True) if cell == "yes"]
    return rows


def as_floats(dtype: torch.dtype) -> Write:
    def write(tensors: Tensors, stem: Path) -> Mapping[str, Tensor]:
        stored = {f"model.diffusion_model.{name}": tensor.to(dtype) for name, tensor in tensors.items()}
        save_file(stored, stem.with_suffix(".safetensors"))
        return {name: tensor.to(dtype).float() for name, tensor in tensors.items()}

    return write


def as_scaled_fp8(tensors: Tensors, stem: Path) -> Mapping[str, Tensor]:
    stored: Tensors = {"diffusion_model.scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    expected = {}
    for name, tensor in tensors.items():
        stored[f"diffusion_model.{name}"] = expected[name] = tensor
        if tensor.ndim == 2 and name.startswith("blocks."):
            scale = tensor.abs().amax() / 448
            small = (tensor / scale).to(torch.float8_e4m3fn)
            stored |= {f"diffusion_model.{name}": small, f"diffusion_model.{name[:-6]}scale_weight": scale}
            expected[name] = small.float() * scale
    save_file(stored, stem.with_suffix(".safetensors"))
    return expected


def as_turned_int8(tensors: Tensors, stem: Path) -> Mapping[str, Tensor]:
    stored, expected, layers = {}, dict(tensors), {}
    for name, tensor in tensors.items():
        stored[name] = tensor
        if tensor.ndim == 2 and name.startswith("blocks."):
            small, scale = tensor.mul(64).round().clamp(-127, 127).to(torch.int8), torch.full((len(tensor), 1), 2.0**-6)
            stored |= {name: small, f"{name}_scale": scale}
            layers[name.removesuffix(".weight")] = {
                "format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16,
            }  # fmt: skip
            expected[name] = turned(small * scale, 16)  # exact: whole numbers and powers of two
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    save_file(stored, stem.with_suffix(".safetensors"), metadata)
    return expected


def as_folded_gguf(tensors: Tensors, stem: Path) -> Mapping[str, Tensor]:
    folded = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.ndim == 5:
            folded[name] = tensor.flatten(0, 1)
        elif name.endswith("modulation"):
            folded[name] = tensor[0]
    return {
        name: tensor.view(tensors[name].shape)
        for name, tensor in write_gguf(stem.with_suffix(".gguf"), folded, "F16").items()
    }


def as_gguf(tensors: Tensors, stem: Path) -> Mapping[str, Tensor]:
    return write_gguf(stem.with_suffix(".gguf"), tensors, "Q8_0")


def as_trainer_file(tensors: Tensors, stem: Path) -> Mapping[str, Tensor]:
    averaged = {f"model._fsdp_wrapped_module.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"generator": {f"model.{n}": t + 1 for n, t in tensors.items()}, "generator_ema": averaged, "step": 1},
               stem.with_suffix(".pt"))  # fmt: skip
    return tensors


SINGLE: dict[str, Write] = {
    "single file, float16": as_floats(torch.float16),
    "single file, bfloat16": as_floats(torch.bfloat16),
    "single file, fp8": as_floats(torch.float8_e4m3fn),
    "single file, scaled fp8": as_scaled_fp8,
    "single file, int8 with ConvRot": as_turned_int8,
    "GGUF": as_gguf,
    "GGUF of stable-diffusion.cpp": as_folded_gguf,
    "trainer's .pt": as_trainer_file,
}
"""How the file of a transformer is written; what it stands for is returned."""

FORMATS = ["official", "diffusers", *SINGLE]
UNKNOWN = {"diffusers": {"s2v-14B"}}
"""Models that a format has no class for."""


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def folder(preset: str) -> Path:
        return make_checkpoint(preset, tmp_path_factory.mktemp("official") / preset)

    return folder


def in_layout(source: Path, out: Path, layout: str) -> Path:
    contents = find_weights(source)
    facts = PipelineFacts(flow_shift=5.0, boundary=0.9)
    options = ExportOptions(layout=layout)  # type: ignore[arg-type]
    export_networks(networks_in(contents), contents, out, options, facts=facts, progress=byte_progress("", quiet=True))
    return out


def transformers(folder: Path, preset: str) -> list[Tensors]:
    """The weights of every transformer of a model, read and placed as for generation; the high-noise expert first."""
    dit = load_pipeline(preset, folder, RuntimeOptions(device="cpu", dtype="float32", offload=False)).components.dit
    found = []
    for placed in (dit.high, dit.low) if isinstance(dit, Experts) else (dit,):
        with placed.active() as network:
            found.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
    return found


def test_the_table_names_every_format_and_model() -> None:
    rows = table()
    assert list(rows) == FORMATS
    assert all({*models} == {*LAYOUTS} - UNKNOWN.get(form, set()) for form, models in rows.items())


@pytest.mark.parametrize(("form", "preset"), [(form, preset) for form, models in table().items() for preset in models])
def test_every_pair_of_the_table_loads(form: str, preset: str, official: Callable[[str], Path], tmp_path: Path) -> None:
    source = official(preset)
    expected = [dict(tensors) for tensors in transformers(source, preset)]
    folder = source
    if form != "official":
        folder = in_layout(source, tmp_path / "w", "diffusers" if form == "diffusers" else "single")
    if form in SINGLE:
        files = sorted((folder / "diffusion_models").iterdir())  # "high" comes before "low"
        for number, file in enumerate(files):
            native = native_weights(read_weights(file), get_preset(preset).part("dit").family)
            tensors = {name: native.read(name).clone() for name in native}
            file.unlink()
            expected[number] = dict(SINGLE[form](tensors, file.with_suffix("")))
        config = source / (LAYOUTS[preset].folders[0]) / "config.json"
        (folder / "diffusion_models" / "config.json").write_text(config.read_text())
    for found, wanted in zip(transformers(folder, preset), expected, strict=True):
        assert set(found) == set(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
