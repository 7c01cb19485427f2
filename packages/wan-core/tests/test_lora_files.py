"""What real LoRA files are like: any prefix, several models, halves for two experts, a branch that is not there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wan_core.checkpoints import LoRA, MemorySource, with_loras
from wan_core.checkpoints.lora.merge import read_lora
from wan_core.checkpoints.lora.summary import lora_summary
from wan_core.errors import CheckpointError
from wan_core.presets.fit import lora_presets

from .dit_networks import CONFIG, network
from .lora_files import BASE, QUERY, SPELLINGS, assert_close, diffusers_name, merged, read, spelt, updates, write

# -- several in one file, and what stands before the names ------------------------------------------------------------

PREFIXES = [
    "pipe.model.net.",
    "a.b.c.",
    "model.module.dit._fsdp_wrapped_module.",
    "x_y.",
    "generator_lora.base_model.model.",
]
JOINED = ["lora_dit_", "lora_wan_model_", "net_", "state_dict.lora_unet_"]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", [str, diffusers_name], ids=["official", "diffusers"])
def test_any_prefix_is_found(tmp_path: Path, prefix: str, name: Callable[[str], str]) -> None:
    halves = updates(BASE, 2)
    tensors: dict[str, Tensor] = {}
    for layer, (down, up) in halves.items():
        tensors |= {f"{prefix}{name(layer)}.lora_A.weight": down, f"{prefix}{name(layer)}.lora_B.weight": up}
    path = write(tmp_path / "lora.safetensors", tensors)
    assert_close(read(path), merged(BASE, halves, 1.0))
    assert "blocks.N.self_attn.q" in lora_summary(read_lora(path).source).targets or name is not str


@pytest.mark.parametrize("prefix", JOINED)
@pytest.mark.parametrize("name", [str, diffusers_name], ids=["official", "diffusers"])
def test_any_prefix_of_joined_names_is_found(tmp_path: Path, prefix: str, name: Callable[[str], str]) -> None:
    halves = updates(BASE, 2)
    tensors: dict[str, Tensor] = {}
    for layer, (down, up) in halves.items():
        start = prefix + name(layer).replace(".", "_")
        tensors |= {f"{start}.lora_down.weight": down, f"{start}.lora_up.weight": up}
    assert_close(read(write(tmp_path / "lora.safetensors", tensors)), merged(BASE, halves, 1.0))


@pytest.mark.parametrize("start", ["diffusion_model.vace_blocks.0.self_attn.q", "lora_unet_vace_blocks_0_self_attn_q"])
@pytest.mark.parametrize("more", [False, True])
def test_blocks_of_another_part_are_not_taken_for_ours(tmp_path: Path, start: str, more: bool) -> None:
    down, up = updates(BASE, 2)[QUERY]
    spelling = "ComfyUI, down and up" if "." in start else "kohya and musubi"
    ours = spelt({QUERY: (down, up)}, spelling) if more else {}
    tensors = ours | {f"{start}.lora_down.weight": down, f"{start}.lora_up.weight": up}
    with pytest.raises(CheckpointError, match="2 without a place in this model"):
        read(write(tmp_path / "lora.safetensors", tensors))


def trained(**models: int) -> dict[str, dict[str, Tensor]]:
    """LoRAs under the names of models, each random by its seed, as trainers nest them."""
    return {name: spelt({QUERY: updates(BASE, 2, seed=seed)[QUERY]}, "peft") for name, seed in models.items()}


def only(seed: int) -> dict[str, Tensor]:
    return merged(BASE, {QUERY: updates(BASE, 2, seed=seed)[QUERY]}, 1.0)


@pytest.mark.parametrize(
    ("models", "taken", "aside"),
    [
        ({"generator_lora": 1, "critic_lora": 2}, "generator_lora", "critic_lora"),
        ({"critic_lora": 2, "generator_lora": 1}, "generator_lora", "critic_lora"),
        ({"generator_lora": 2, "generator_lora_ema": 1, "critic_lora": 3}, "generator_lora_ema", "generator_lora"),
        ({"generator": 1, "fake_score": 2}, "generator", "fake_score"),
        ({"lora": 1, "critic": 2}, "lora", "critic"),
    ],
)
def test_of_a_trainers_models_the_generator_is_taken_and_said(
    tmp_path: Path, models: dict[str, int], taken: str, aside: str
) -> None:
    beside = {"step": 600, "epoch": torch.tensor(3), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    torch.save({**trained(**models), **beside}, tmp_path / "lora.pt")
    source = with_loras(MemorySource(BASE), [LoRA(tmp_path / "lora.pt")])
    assert_close({name: source.read(name) for name in source}, only(1))
    (note,) = source.notes
    assert note.endswith(f"; {taken} is taken")
    assert aside in note.partition(";")[0]


def test_a_critic_alone_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(trained(critic_lora=1), tmp_path / "lora.pt")
    with pytest.raises(CheckpointError, match=r"holds only critic_lora.*generator_lora"):
        read(tmp_path / "lora.pt")


HALVES = {
    "diffusers": ("transformer.", "transformer_2."),
    "DiffSynth": ("pipe.dit.", "pipe.dit2."),
    "folders": ("high_noise_model.", "low_noise_model."),
    "peft of diffusers": ("base_model.model.transformer.", "base_model.model.transformer_2."),
}


def halved(name: str, high: int | None, low: int | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for prefix, seed in zip(HALVES[name], (high, low), strict=True):
        if seed is not None:
            down, up = updates(BASE, 2, seed=seed)[QUERY]
            tensors |= {f"{prefix}{QUERY}.lora_A.weight": down, f"{prefix}{QUERY}.lora_B.weight": up}
    return tensors


@pytest.mark.parametrize("name", HALVES)
def test_two_halves_go_to_the_two_experts(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "lora.safetensors", halved(name, 1, 2))
    assert_close(read(path, expert="high"), only(1))
    assert_close(read(path, expert="low"), only(2))
    with pytest.raises(CheckpointError, match=r"each of two experts.*this model has one network"):
        read(path)


@pytest.mark.parametrize("name", HALVES)
def test_a_half_that_is_for_the_low_expert_goes_there_alone(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "lora.safetensors", halved(name, None, 2))
    assert_close(read(path, expert="low"), only(2))
    other = with_loras(MemorySource(BASE), [LoRA(path)], expert="high")
    assert_close({key: other.read(key) for key in other}, BASE)
    assert "for the other expert alone" in other.notes[0]
    said = with_loras(MemorySource(BASE), [LoRA(path, 1.0, "high")], expert="high")
    assert_close({key: said.read(key) for key in said}, only(2))


def test_a_file_of_one_transformer_goes_to_both(tmp_path: Path) -> None:
    path = write(tmp_path / "lora.safetensors", halved("diffusers", 1, None))
    assert_close(read(path, expert="high"), only(1))
    assert_close(read(path, expert="low"), only(1))


def test_each_half_has_its_own_settings(tmp_path: Path) -> None:
    said = {"transformer.lora_alpha": 4, "transformer.r": 2, "transformer_2.lora_alpha": 1, "transformer_2.r": 2}
    metadata = {"lora_adapter_metadata": json.dumps(said)}
    path = write(tmp_path / "lora.safetensors", halved("diffusers", 1, 1), metadata)
    halves = {QUERY: updates(BASE, 2, seed=1)[QUERY]}
    assert_close(read(path, expert="high"), merged(BASE, halves, 2.0))
    assert_close(read(path, expert="low"), merged(BASE, halves, 0.5))


# -- an image-to-video LoRA of Wan2.1 on Wan2.2, which has no image branch -------------------------------------------

NO_BRANCH = {
    name: tensor for name, tensor in BASE.items() if not any(part in name for part in ("_img", "img_emb"))
}  # in_dim 5, out_dim 3: images in channels


def without_branch(path: Path, **options: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    source = with_loras(MemorySource(NO_BRANCH), [LoRA(path)], **options)
    return {name: source.read(name) for name in source}, source.notes


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_image_branch_that_wan22_lacks_is_left_out_and_counted(tmp_path: Path, spelling: str) -> None:
    halves = updates(BASE, 2)
    more = {"diffusion_model.blocks.0.cross_attn.norm_k_img.diff": torch.ones(24)} if spelling == "lightx2v" else {}
    path = write(tmp_path / "lora.safetensors", spelt(halves, spelling) | more)
    found, notes = without_branch(path)
    branch = [layer for layer in halves if f"{layer}.weight" not in NO_BRANCH]
    assert len(branch) == 2 * 2 + 2
    assert_close(found, merged(NO_BRANCH, {name: halves[name] for name in halves if name not in branch}, 1.0))
    (note,) = notes
    assert f"{2 * len(branch) + len(more)} tensors" in note
    assert "image branch" in note


def test_other_misfits_beside_an_image_branch_stay_refused(tmp_path: Path) -> None:
    halves = updates(BASE, 2)
    path = write(tmp_path / "lora.safetensors", spelt(halves | {"blocks.7.ffn.0": halves["blocks.0.ffn.0"]}, "ComfyUI"))
    with pytest.raises(CheckpointError, match=r"2 without a place in this model: diffusion_model\.blocks\.7\.ffn\.0"):
        without_branch(path)


def test_an_image_branch_alone_is_refused(tmp_path: Path) -> None:
    name = "blocks.0.cross_attn.k_img"
    tensors = spelt({name: updates(BASE, 2)[name]}, "ComfyUI")
    for more in ({}, {f"diffusion_model.{name}.alpha": torch.tensor(2.0)}):
        path = write(tmp_path / "lora.safetensors", tensors | more)
        with pytest.raises(CheckpointError, match="2 without a place"):
            without_branch(path)
        with pytest.raises(CheckpointError, match="2 without a place"):
            with_loras(MemorySource(NO_BRANCH), [LoRA(path)], force=True)


def test_an_image_branch_on_text_to_video_stays_refused(tmp_path: Path) -> None:
    plain = {name: tensor.clone() for name, tensor in network(CONFIG).state_dict().items()}
    halves = {name: pair for name, pair in updates(BASE, 2).items() if name != "patch_embedding"}
    path = write(tmp_path / "lora.safetensors", spelt(halves, "ComfyUI"))
    with pytest.raises(CheckpointError, match=r"12 without a place in this model.*--force-lora"):
        with_loras(MemorySource(plain), [LoRA(path)])


def test_inspect_names_wan22_for_a_lora_with_an_image_branch() -> None:
    found = lora_presets(5120, 40, has_image_branch=True)
    assert {"i2v-14B-480P", "i2v-A14B"} <= set(found)
    assert not any(name.startswith("t2v") for name in found)


# -- packed, and twice ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
@pytest.mark.parametrize("role", ["diff", "set_weight", "lora_down.weight", "lora_up.weight", "diff_b"])
def test_whole_numbers_that_nothing_describes_are_refused(tmp_path: Path, role: str, dtype: torch.dtype) -> None:
    tensors = {f"diffusion_model.{QUERY}.lora_down.weight": torch.ones(2, 24)}
    tensors[f"diffusion_model.{QUERY}.lora_up.weight"] = torch.ones(24, 2)
    shape = {"lora_down.weight": (2, 24), "lora_up.weight": (24, 2), "diff_b": (24,)}.get(role, (24, 24))
    name = f"diffusion_model.{QUERY}.{role}"
    alpha = {f"diffusion_model.{QUERY}.alpha": torch.tensor(2)}  # which may be one
    path = write(tmp_path / "lora.safetensors", tensors | alpha | {name: torch.ones(shape, dtype=dtype)})
    with pytest.raises(CheckpointError, match=r"1 stored as whole numbers: .*16-bit file of the LoRA") as caught:
        read(path, force=True)
    assert name in str(caught.value)


@pytest.mark.parametrize("place", ["mark", "header"])
def test_halves_that_say_how_they_are_packed_are_unpacked(tmp_path: Path, place: str) -> None:
    said = {"format": "int8_tensorwise"}
    layer = f"diffusion_model.{QUERY}"
    down, up = torch.randint(-9, 9, (2, 24), dtype=torch.int8), torch.randn(24, 2)
    tensors = {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
    tensors[f"{layer}.lora_down.weight_scale"] = torch.tensor(0.01)
    metadata = {"format": "pt"}
    if place == "mark":
        text = bytearray(json.dumps(said).encode())
        tensors[f"{layer}.lora_down.comfy_quant"] = torch.frombuffer(text, dtype=torch.uint8)
    else:
        metadata["_quantization_metadata"] = json.dumps({"layers": {f"{layer}.lora_down": said}})
    path = write(tmp_path / "lora.safetensors", tensors, metadata)
    assert_close(read(path), merged(BASE, {QUERY: (down * 0.01, up)}, 1.0))
    metadata["_quantization_metadata"] = json.dumps({"layers": {f"{layer}.lora_down": said | {"format": "int3"}}})
    with pytest.raises(CheckpointError, match="packed as 'int3'"):
        read(write(tmp_path / "lora.safetensors", tensors, metadata))


@pytest.mark.parametrize("role", ["diff", "set_weight"])
def test_a_header_that_describes_nothing_of_a_lora_is_refused(tmp_path: Path, role: str) -> None:
    tensors = {f"diffusion_model.{QUERY}.{role}": torch.ones(24, 24, dtype=torch.int8)}
    said = json.dumps({"layers": {f"diffusion_model.{QUERY}": {"format": "int8_tensorwise"}}})
    with pytest.raises(CheckpointError, match="describes packed layers"):
        read(write(tmp_path / "lora.safetensors", tensors, {"_quantization_metadata": said}))


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "base_model.model."])
def test_a_layer_in_two_spellings_is_refused(tmp_path: Path, prefix: str) -> None:
    halves = updates(BASE, 2)
    one = {QUERY: halves[QUERY]}
    tensors: dict[str, Tensor] = {}
    for layer in (QUERY, diffusers_name(QUERY)):
        down, up = one[QUERY]
        tensors |= {f"{prefix}{layer}.lora_A.weight": down, f"{prefix}{layer}.lora_B.weight": up}
    path = write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"both change blocks.0.self_attn.q.weight; the file mixes two layouts"):
        read(path)
    fused = {f"{prefix}blocks.0.attn1.to_qkv.lora_A.weight": one[QUERY][0]}
    fused[f"{prefix}blocks.0.attn1.to_qkv.lora_B.weight"] = torch.cat([one[QUERY][1]] * 3)
    for spelling in (QUERY, diffusers_name(QUERY)):
        own = {f"{prefix}{spelling}.lora_A.weight": one[QUERY][0], f"{prefix}{spelling}.lora_B.weight": one[QUERY][1]}
        with pytest.raises(CheckpointError, match="the file mixes two layouts"):
            read(write(tmp_path / "lora.safetensors", fused | own))
