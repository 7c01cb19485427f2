"""Weights of Wan-Animate in both layouts, held against diffusers' network run live."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers import WanAnimateTransformer3DModel
from torch import Tensor, nn

from tools.make_checkpoint import make_checkpoint
from wan_core.checkpoints import ANIMATE, MemorySource, in_format, load_model, native_weights, read_weights
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
