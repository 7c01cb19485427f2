"""``wan inspect``: what a file is, which models it fits, and what is wrong with it."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

from tools.make_checkpoint import make_checkpoint
from wan_core.checkpoints import MemorySource, build_on_meta, in_format, native_weights, read_weights, write_shards
from wan_core.cli import wan
from wan_core.models import WanDiT
from wan_core.presets import get_preset

from .gguf_files import write_gguf


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(preset: str) -> Path:
        if preset not in made:
            made[preset] = make_checkpoint(preset, tmp_path_factory.mktemp("checkpoints") / preset)
        return made[preset]

    return folder


def inspect(*arguments: object, exit_code: int = 0) -> str:
    result = CliRunner().invoke(wan, ["inspect", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return result.output


def inspected(path: Path, *options: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(inspect(path, "--json", *options))
    return content


def dit_tensors(folder: Path) -> dict[str, Tensor]:
    source = native_weights(read_weights(folder), "dit")
    return {name: source.read(name).clone() for name in source}


@pytest.mark.parametrize(
    ("preset", "models", "families"),
    [
        ("t2v-A14B", ["t2v-A14B"], ["dit", "dit", "vae", "umt5"]),
        ("i2v-A14B", ["i2v-A14B"], ["dit", "dit", "vae", "umt5"]),
        ("ti2v-5B", ["ti2v-5B", "mi2v-5B", "poze-5B"], ["dit", "vae", "umt5"]),
        ("t2v-1.3B", ["t2v-1.3B", "t2v-14B"], ["dit", "vae", "umt5"]),
        ("i2v-14B-480P", ["i2v-14B-480P", "i2v-14B-720P", "unianimate-14B"], ["dit", "vae", "umt5", "clip"]),
    ],
)
def test_a_whole_checkpoint_names_its_models_and_parts(
    folders: Callable[[str], Path], preset: str, models: list[str], families: list[str]
) -> None:
    report = inspected(folders(preset))
    whole = [name for name, entry in report["models"].items() if entry == {"missing_parts": []}]
    assert sorted(whole) == sorted(models)
    assert [entry["family"] for entry in report["weights"]] == families
    assert all(entry["format"] == "official" and not entry["problem"] for entry in report["weights"])
    assert "google/umt5-xxl" in report["tokenizers"]
    text = inspect(folders(preset))
    assert models[0] in text.splitlines()[1]
    assert "Wan2" in text


def test_a_missing_part_is_named(folders: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(folders("t2v-A14B"), tmp_path / "w")
    (tmp_path / "w" / "Wan2.1_VAE.pth").unlink()
    assert inspected(tmp_path / "w")["models"] == {"t2v-A14B": {"missing_parts": ["Wan2.1_VAE.pth"]}}
    assert "t2v-A14B, but lacks Wan2.1_VAE.pth" in inspect(tmp_path / "w")


def test_the_networks_of_real_size_name_their_model(tmp_path: Path) -> None:
    """Headers only: the file is sparse."""
    for name, models in (("t2v-1.3B", {"t2v-1.3B"}), ("t2v-14B", {"t2v-14B", "t2v-A14B"})):
        network = build_on_meta(partial(WanDiT, get_preset(name).dit))
        entries: dict[str, Any] = {}
        start = 0
        for key, tensor in network.state_dict().items():
            size = tensor.numel() * 2
            entries[key] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, start + size]}
            start += size
        header = json.dumps(entries).encode()
        with (tmp_path / "w.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + start)
        report = inspected(tmp_path / "w.safetensors")
        assert set(report["models"]) == models
        assert report["parameters"] == sum(tensor.numel() for tensor in network.parameters())
        assert report["weights"][0]["dtypes"] == {"bfloat16": report["parameters"]}
        assert not report["weights"][0]["missing"]


def test_formats_and_dtypes_of_single_files(folders: Callable[[str], Path], tmp_path: Path) -> None:
    tensors = dit_tensors(folders("t2v-1.3B"))
    (tmp_path / "config.json").write_text((folders("t2v-1.3B") / "config.json").read_text())
    matrices = {name for name, tensor in tensors.items() if tensor.ndim == 2 and name.startswith("blocks")}
    scaled = {
        f"model.diffusion_model.{n}": t.to(torch.float8_e4m3fn) if n in matrices else t for n, t in tensors.items()
    }
    scaled |= {f"model.diffusion_model.{n.removesuffix('weight')}scale_weight": torch.ones(()) for n in matrices}
    save_file(scaled, tmp_path / "fp8.safetensors")
    write_gguf(tmp_path / "q.gguf", tensors, "Q8_0")
    torch.save({"generator": tensors, "generator_ema": tensors, "step": 600}, tmp_path / "sf.pt")
    diffusers = in_format(MemorySource(tensors), "dit", "diffusers")
    write_shards(diffusers, tmp_path, stem="d")
    expected = {
        "fp8.safetensors": ("safetensors", "official", "float8_e4m3fn"),
        "q.gguf": ("GGUF", "official", "Q8_0"),
        "sf.pt": ("torch pickle", "official", "float32"),
        "d.safetensors": ("safetensors", "diffusers", "float32"),
    }
    for name, (kind, form, dtype) in expected.items():
        (entry,) = inspected(tmp_path / name)["weights"]
        assert (entry["kind"], entry["format"], next(iter(entry["dtypes"]))) == (kind, form, dtype)
        assert entry["parameters"] == sum(tensor.numel() for tensor in tensors.values())
        assert not entry["missing"]
        assert not entry["unexpected"]
    assert "generator_ema is taken" in inspect(tmp_path / "sf.pt")
    assert inspected(tmp_path / "sf.pt")["weights"][0]["metadata"] == {"step": "600"}


def test_keys_are_listed(folders: Callable[[str], Path]) -> None:
    text = inspect(folders("t2v-1.3B") / "diffusion_pytorch_model.safetensors", "--keys")
    assert "blocks.1.ffn.2.weight  float32 [64, 128]" in text
    rows = inspected(folders("t2v-1.3B"), "--keys")["weights"][0]["keys"]
    assert {"name": "head.head.bias", "dtype": "float32", "shape": [64]} in rows


def test_parts_alone_name_the_models_that_take_them(folders: Callable[[str], Path]) -> None:
    assert "ti2v-5B" in inspected(folders("ti2v-5B") / "Wan2.2_VAE.pth")["models"]
    models = inspected(folders("t2v-1.3B") / "Wan2.1_VAE.pth")["models"]
    assert "t2v-A14B" in models
    assert "ti2v-5B" not in models


NAMINGS = {
    "peft": ("base_model.model.blocks.{}.self_attn.q", ".lora_A.weight", ".lora_B.weight"),
    "diffusers": ("transformer.blocks.{}.attn1.to_q", ".lora.down.weight", ".lora.up.weight"),
    "ComfyUI": ("diffusion_model.blocks.{}.self_attn.q", ".lora_down.weight", ".lora_up.weight"),
    "kohya": ("lora_unet_blocks_{}_self_attn_q", ".lora_down.weight", ".lora_up.weight"),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_lora_tells_rank_targets_and_model(tmp_path: Path, naming: str) -> None:
    layer, down, up = NAMINGS[naming]
    tensors = {f"{layer.format(i)}{down}": torch.zeros(16, 1536) for i in range(30)}
    tensors |= {f"{layer.format(i)}{up}": torch.zeros(1536, 16) for i in range(30)}
    tensors |= {f"{layer.format(i)}.alpha": torch.ones(()) for i in range(30)}
    save_file(tensors, tmp_path / "lora.safetensors", {"ss_network_dim": "16"})
    report = inspected(tmp_path / "lora.safetensors")
    assert list(report["models"]) == ["t2v-1.3B", "sfu-1.3B"]
    (entry,) = report["weights"]
    assert entry["family"] == "lora"
    assert entry["lora"]["ranks"] == {"16": 30}
    assert list(entry["lora"]["targets"].values()) == [30]
    assert entry["lora"]["other"] == {"alpha": 30}
    assert entry["metadata"]["ss_network_dim"] == "16"
    text = inspect(tmp_path / "lora.safetensors")
    assert "16 (30 layers)" in text
    assert "N" in text
    assert f"wan generate t2v-1.3B --ckpt-dir FOLDER --lora {tmp_path / 'lora.safetensors'} --prompt" in text
    assert f"wan merge-lora WEIGHTS OUT --lora {tmp_path / 'lora.safetensors'}" in text


def pair(layer: str, outputs: int, inputs: int) -> dict[str, Tensor]:
    return {f"{layer}.lora_A.weight": torch.zeros(2, inputs), f"{layer}.lora_B.weight": torch.zeros(outputs, 2)}


@pytest.mark.parametrize(
    "tensors",
    [
        pair("blocks.0.ffn.0", 8960, 1536),
        pair("blocks.0.ffn.2", 1536, 8960),
        pair("blocks.0.attn2.to_out.0", 1536, 1536),
        pair("blocks.0.ffn.net.0.proj", 8960, 1536),
        pair("diffusion_model.head.head", 64, 1536),
        pair("lora_unet_blocks_0_ffn_net_2", 1536, 8960),
    ],
)
def test_any_layer_that_is_as_wide_as_its_network_tells_the_model(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "lora.safetensors")
    assert list(inspected(tmp_path / "lora.safetensors")["models"]) == ["t2v-1.3B", "sfu-1.3B"]


def test_a_lora_that_does_not_tell_its_network_says_so(tmp_path: Path) -> None:
    save_file(pair("head.modulation", 3, 7) | pair("blocks.0.cross_attn.norm_q", 3, 7), tmp_path / "lora.safetensors")
    assert "its layers do not tell; --lora compares them" in inspect(tmp_path / "lora.safetensors")


def test_a_lora_of_two_halves_is_for_models_with_two_experts(tmp_path: Path) -> None:
    halves = ("transformer.", "transformer_2.")
    tensors = {f"{half}{n}": t for half in halves for n, t in pair("blocks.0.attn1.to_q", 5120, 5120).items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    report = inspected(tmp_path / "lora.safetensors")
    assert list(report["models"]) == ["t2v-A14B", "i2v-A14B"]
    assert report["weights"][0]["lora"]["experts"] == ["high", "low"]
    assert "the high-noise expert and the low-noise expert" in inspect(tmp_path / "lora.safetensors")


def test_an_adapter_that_is_not_merged_has_that_as_its_problem_and_no_command(tmp_path: Path) -> None:
    save_file({"blocks.0.self_attn.q.oft_blocks": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    text = inspect(tmp_path / "lora.safetensors")
    assert "which cannot be merged" in text
    assert "wan generate" not in text


@pytest.mark.parametrize("front", ["{}.", "model.{}.", "{}._fsdp_wrapped_module."])
def test_two_experts_in_one_file_fit_models_with_two_experts_alone(
    folders: Callable[[str], Path], tmp_path: Path, front: str
) -> None:
    names = [front.format(half) for half in ("transformer", "transformer_2")]
    tensors = {f"{name}{own}": t for name in names for own, t in dit_tensors(folders("t2v-1.3B")).items()}
    (tmp_path / "config.json").write_text((folders("t2v-1.3B") / "config.json").read_text())
    torch.save(tensors, tmp_path / "two.pt")
    report = inspected(tmp_path / "two.pt")
    assert [entry["name"] for entry in report["weights"]] == [
        f"two.pt (the diffusion transformer, {expert} noise)" for expert in ("high", "low")
    ]
    assert list(report["models"]) == ["t2v-A14B"]


def test_showing_weights_leads_to_the_inspection(tmp_path: Path) -> None:
    (tmp_path / "lora.safetensors").write_bytes(b"x")
    result = CliRunner().invoke(wan, ["show", str(tmp_path / "lora.safetensors")])
    assert result.exit_code == 2
    assert "is a file of weights; 'wan inspect' says what it is" in result.output


def test_damaged_files_in_a_folder_are_named_and_the_rest_is_shown(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(folders("t2v-1.3B"), tmp_path / "w")
    file = tmp_path / "w" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    text = inspect(tmp_path / "w", exit_code=3)
    assert "the VAE" in text
    assert "cannot be read" in text
    assert "cut off" in text
    assert "1 of the files" in text


def test_networks_with_other_tensors_fit_nothing(folders: Callable[[str], Path], tmp_path: Path) -> None:
    tensors = dit_tensors(folders("t2v-1.3B"))
    (tmp_path / "config.json").write_text((folders("t2v-1.3B") / "config.json").read_text())
    save_file(tensors | {"tail.x": torch.ones(1)}, tmp_path / "w.safetensors")
    report = inspected(tmp_path / "w.safetensors")
    assert report["models"] == {}
    assert report["weights"][0]["unexpected"] == ["tail.x"]


def test_nothing_is_read_but_headers(folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from wan_core.checkpoints.readers.file_source import FileSource

    monkeypatch.setattr(FileSource, "read", lambda self, name: pytest.fail(f"{name} was read"))
    inspect(folders("i2v-14B-480P"), "--keys")


def test_names_in_a_file_cannot_disturb_the_terminal(tmp_path: Path) -> None:
    save_file({"a\x1b[31m\nb": torch.ones(1)}, tmp_path / "w.safetensors", {"k\x1b]0;x": "v\x1b[2J\nnext"})
    text = inspect(tmp_path / "w.safetensors", "--keys")
    assert "\x1b" not in text
    assert "v[2J next" in text


def test_arrays_of_numpy_are_told_from_weights(tmp_path: Path) -> None:
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "pose.npz", body=np.zeros(3), provenance=np.array("x"))
        said = inspect(tmp_path / "pose.npz", exit_code=3)
        assert "holds arrays of numpy (body, provenance), no weights; 'wan show' says how it was made" in said
