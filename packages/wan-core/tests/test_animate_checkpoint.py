"""Weights of Wan-Animate in both layouts, held against diffusers' network run live."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers import WanAnimateTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor, nn

from tools.make_checkpoint import make_checkpoint
from wan_core.checkpoints import (
    ANIMATE,
    LoRA,
    MemorySource,
    in_format,
    load_model,
    native_weights,
    read_weights,
    with_loras,
)
from wan_core.cli import wan
from wan_core.errors import CheckpointError
from wan_core.models import AnimateDiT, AnimateDiTConfig, AnimateInputs

from .dit_networks import noise

CONFIG = AnimateDiTConfig(
    in_dim=10, out_dim=3, dim=24, ffn_dim=20, num_heads=2, num_layers=4, freq_dim=8, text_dim=6, text_len=512,
    image_dim=7, image_tokens=4, pose_dim=3, motion_encoder_channels=(3, 4, 5), motion_style_dim=6, motion_dim=3,
    motion_encoder_dim=8, face_encoder_hidden_dim=5, face_encoder_num_heads=2, inject_face_latents_blocks=2,
)  # fmt: skip


def peer(config: AnimateDiTConfig = CONFIG) -> nn.Module:
    """diffusers' network of the config that we would write for it, every weight random."""
    values = dict(ANIMATE.diffusers_config(config)) if ANIMATE.diffusers_config else {}
    torch.manual_seed(5)
    network = WanAnimateTransformer3DModel.from_config(values).eval()
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and "bias" not in name), std=0.2)
    return network.requires_grad_(False)


@pytest.mark.parametrize("batch", [1, 2])
def test_equals_the_peer(batch: int) -> None:
    theirs = peer()
    ours: AnimateDiT = load_model(CONFIG, MemorySource(theirs.state_dict()), family=ANIMATE)
    latents, known = noise(batch, 3, 4, 4, 6), noise(batch, 7, 4, 4, 6)
    context, image = noise(batch, 512, 6), noise(batch, 4, 7)
    poses, faces = noise(batch, 3, 3, 4, 6), noise(batch, 3, 9, 16, 16)
    times = torch.tensor([870.0, 41.0])[:batch]
    with torch.no_grad():
        given = AnimateInputs(
            context=context,
            image_context=image,
            channel_concat=known,
            pose_latents=poses,
            face_tokens=ours.encode_face(faces),
        )
        wanted = theirs(torch.cat([latents, known], dim=1), times, context, image, poses, faces, return_dict=False)[0]
        torch.testing.assert_close(
            ours(latents, times, given), wanted, atol=5e-5 * max(1.0, wanted.abs().max().item()), rtol=0
        )


def test_names_of_the_peer_and_ours_are_each_others() -> None:
    theirs = peer().state_dict()
    native = native_weights(MemorySource(theirs), ANIMATE)
    assert native.format == "diffusers"
    back = in_format(native, ANIMATE, "diffusers")
    assert set(back) == set(theirs)
    assert all(torch.equal(back.read(name), tensor) for name, tensor in theirs.items())


def test_native_names_stay_as_they_are() -> None:
    tensors = AnimateDiT(CONFIG).state_dict()
    native = native_weights(MemorySource(tensors), ANIMATE)
    assert list(native) == list(tensors)
    there = in_format(native, ANIMATE, "diffusers")
    again = native_weights(MemorySource({name: there.read(name) for name in there}), ANIMATE)
    assert set(again) == set(tensors)
    assert all(torch.equal(again.read(name), tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("layers", [2, 6])
def test_the_config_follows_from_the_tensors(layers: int) -> None:
    config = replace(CONFIG, num_layers=layers, image_tokens=257)
    source = MemorySource(AnimateDiT(config).state_dict(), metadata={"config": '{"num_heads": 2}'})
    assert ANIMATE.read_config(Path("w"), native_weights(source, ANIMATE)) == config


def converted(source: Path, out: Path, layout: str) -> Path:
    result = CliRunner().invoke(wan, ["convert", str(source), str(out), "--to", layout])
    assert result.exit_code == 0, result.output
    return out


def all_tensors(path: Path) -> dict[str, Tensor]:
    native = native_weights(read_weights(path), ANIMATE)
    return {name: native.read(name).clone() for name in native}


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("animate-14B", tmp_path_factory.mktemp("animate") / "official")


def test_a_checkpoint_goes_to_diffusers_and_back(official: Path, tmp_path: Path) -> None:
    there = converted(official, tmp_path / "diffusers", "diffusers")
    index = json.loads((there / "model_index.json").read_text())
    assert index["_class_name"] == "WanAnimatePipeline"
    assert index["transformer"] == ["diffusers", "WanAnimateTransformer3DModel"]
    theirs = WanAnimateTransformer3DModel.from_pretrained(there / "transformer")
    assert theirs.config.motion_encoder_size == 32
    back = converted(there, tmp_path / "official", "official")
    before, after = all_tensors(official), all_tensors(back)
    assert set(before) == set(after)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    said = [json.loads((folder / "config.json").read_text()) for folder in (official, back)]
    assert [each.pop("use_context_parallel", None) for each in said] == [False, None]
    assert said[0] == said[1]
    assert said[0]["_class_name"] == "WanAnimateModel"


def test_inspect_names_it(official: Path) -> None:
    result = CliRunner().invoke(wan, ["inspect", str(official), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = {entry["family"]: entry for entry in json.loads(result.output)["weights"]}
    assert {"animate", "vae", "umt5", "clip"} <= set(found)
    assert found["animate"]["problem"] == ""


def test_a_half_of_keys_and_values_is_refused() -> None:
    tensors = dict(peer().state_dict())
    del tensors["face_adapter.1.to_v.bias"]
    with pytest.raises(CheckpointError, match=r"lacks face_adapter\.1\.to_v\.bias"):
        native_weights(MemorySource(tensors), ANIMATE)


def test_adapters_that_do_not_go_evenly_among_the_blocks_are_refused() -> None:
    tensors = AnimateDiT(replace(CONFIG, num_layers=6)).state_dict()
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("blocks.5.")}
    with pytest.raises(CheckpointError, match="3 face adapters do not go evenly among 5 blocks"):
        ANIMATE.read_config(Path("w"), native_weights(MemorySource(kept), ANIMATE))


def test_a_network_that_diffusers_cannot_have_is_not_written_for_it() -> None:
    assert ANIMATE.diffusers_config is not None
    with pytest.raises(CheckpointError, match="twice as many and four"):
        ANIMATE.diffusers_config(replace(CONFIG, in_dim=9))


@pytest.mark.parametrize("kind", ["pair", "DoRA", "bias and change"])
def test_a_lora_of_diffusers_on_what_is_fused_here_changes_its_rows(tmp_path: Path, kind: str) -> None:
    """Keys and values of a face, which diffusers has apart: merged here as there."""
    theirs = peer().state_dict()
    changed, tensors = dict(theirs), dict[str, Tensor]()
    for number, layer in enumerate(("face_adapter.1.to_v", "face_adapter.0.to_k", "face_adapter.1.to_q")):
        weight, start = theirs[f"{layer}.weight"], f"transformer.{layer}"
        down, up = noise(3, weight.shape[1]) + number, noise(weight.shape[0], 3)
        merged = weight + up @ down
        if kind == "bias and change":
            added, more = noise(*weight.shape), noise(weight.shape[0])
            tensors |= {f"{start}.diff": added, f"{start}.diff_b": more}
            changed |= {f"{layer}.weight": weight + added, f"{layer}.bias": theirs[f"{layer}.bias"] + more}
            continue
        tensors |= {f"{start}.lora_A.weight": down, f"{start}.lora_B.weight": up}
        if kind == "DoRA":
            lengths = noise(weight.shape[0]).abs() + 1
            tensors[f"{start}.lora_magnitude_vector"] = lengths
            merged *= (lengths / merged.norm(dim=1))[:, None]
        changed[f"{layer}.weight"] = merged
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    wanted = native_weights(MemorySource(changed), ANIMATE)
    found = with_loras(MemorySource(theirs), [LoRA(path)], family=ANIMATE)
    for name in wanted:
        torch.testing.assert_close(found.read(name), wanted.read(name), atol=1e-5, rtol=1e-5)


def test_a_lora_of_diffusers_of_another_width_on_fused_rows_is_refused(tmp_path: Path) -> None:
    halves = {"A": (2, CONFIG.dim), "B": (CONFIG.dim * 2, 2)}
    tensors = {f"face_adapter.0.to_k.lora_{half}.weight": torch.ones(shape) for half, shape in halves.items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"of another shape: face_adapter\.0\.to_k"):
        with_loras(MemorySource(peer().state_dict()), [LoRA(tmp_path / "lora.safetensors")], family=ANIMATE)
