"""Networks in trainers' files: found by the names that they have, wherever they lie; and two experts in one file."""

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoKrConfig, LoraConfig, get_peft_model
from torch import Tensor

from wan_core.checkpoints import (
    Family,
    LoRA,
    MemorySource,
    find_weights,
    in_format,
    inspect_weights,
    native_weights,
    networks_in,
    with_loras,
)
from wan_core.checkpoints.families import DIT
from wan_core.checkpoints.prefixes import by_prefix, known_layers, prefix_of, unwrapped
from wan_core.errors import CheckpointError
from wan_core.models import UMT5Config, VAEConfig, WanDiTConfig

from .networks import build

CONFIG = WanDiTConfig(dim=128, ffn_dim=48, num_heads=1, num_layers=2, text_dim=24, text_len=512, freq_dim=16)
UMT5 = UMT5Config(vocab_size=32, dim=32, dim_attn=32, dim_ffn=32, num_heads=2, num_layers=2)
Tensors = dict[str, Tensor]


def weights(config: Any = CONFIG, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build(config).state_dict().items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def saved(path: Path, content: Mapping[str, Any]) -> Path:
    torch.save(dict(content), path)
    return path


def taken(path: Path, **choice: Any) -> Tensors:
    (found,) = find_weights(path).of("dit")
    source = native_weights(found.source, "dit", **choice)
    return {name: source.read(name) for name in source}


def assert_equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert set(left) == set(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.ones(())}}, "param_groups": [{"lr": 1e-4}]}


@pytest.mark.parametrize(
    "key", ["model", "module", "state_dict", "model_state_dict", "app", "generator", "net.wan", "x"]
)
def test_a_network_is_found_under_any_key(tmp_path: Path, key: str) -> None:
    content = {key: weights(), "optimizer": OPTIMIZER, "lr_scheduler": {"last_epoch": 3}, "step": 600, "epoch": 1}
    content["args"] = Namespace(lr=1e-4, name="run")
    assert_equal(taken(saved(tmp_path / "w.pt", content)), weights())


def test_weights_in_a_tuple_beside_a_step_are_found(tmp_path: Path) -> None:
    torch.save((weights(), 600), tmp_path / "w.pt")
    assert_equal(taken(tmp_path / "w.pt"), weights())


@pytest.mark.parametrize(
    "prefix",
    [
        "module.", "model.diffusion_model.", "_fsdp_wrapped_module.", "_orig_mod.", "net.wan.", "pipe.dit.", "net.",
        "_forward_module.module._orig_mod.", "a.b.c.d.", "transformer.", "base_model.model.",
    ],
)  # fmt: skip
@pytest.mark.parametrize("inner", ["", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "_other_module."])
def test_whatever_stands_before_the_names_is_taken_off(prefix: str, inner: str) -> None:
    named = {f"{prefix}{name.replace('blocks.1.', f'blocks.1.{inner}')}": tensor for name, tensor in weights().items()}
    source = native_weights(MemorySource(named), "dit")
    assert_equal({name: source.read(name) for name in source}, weights())


@pytest.mark.parametrize("format_name", ["diffusers", "official"])
def test_any_prefix_goes_with_any_naming(format_name: str) -> None:
    foreign = in_format(MemorySource(weights()), "dit", format_name)
    named = {f"some.thing.{name}": foreign.read(name) for name in foreign}
    assert native_weights(MemorySource(named), "dit").format == format_name
    assert set(native_weights(MemorySource(named), "dit")) == set(weights())


@pytest.mark.parametrize(("config", "family"), [(VAEConfig(dim=8), "vae"), (UMT5, "umt5")], ids=["vae", "umt5"])
def test_other_networks_are_found_the_same_way(config: Any, family: str) -> None:
    named = {f"trainer.part.{name}": tensor for name, tensor in weights(config).items()}
    assert set(native_weights(MemorySource(named | {"step": torch.ones(())}), family)) == set(weights(config))


@pytest.mark.parametrize(
    "averaged", ["ema", "generator_ema", "ema_model", "model_ema", "ema_0.9999", "averaged_model", "swa", "model-ema"]
)
def test_averaged_weights_are_taken_unless_the_others_are_named(tmp_path: Path, averaged: str) -> None:
    content = {"model": weights(seed=1), averaged: weights(), "optimizer": OPTIMIZER, "step": 3}
    path = saved(tmp_path / "w.pt", content)
    assert_equal(taken(path), weights())
    assert_equal(taken(path, group="model"), weights(seed=1))
    (found,) = find_weights(path).of("dit")
    assert inspect_weights(found).groups == (averaged, "model")
    (note,) = native_weights(found.source, "dit").notes
    assert note == f"note: w.pt holds {averaged}, model; {averaged} is taken"


def test_the_state_of_an_optimizer_is_never_taken(tmp_path: Path) -> None:
    moments = {"exp_avg": weights(seed=1), "exp_avg_sq": weights(seed=2)}
    named = {name: {"exp_avg": tensor, "exp_avg_sq": tensor} for name, tensor in weights(seed=3).items()}
    content = {"model": weights(), "optimizer": moments, "optim": {"state": named}, "grads": weights(seed=4)}
    assert_equal(taken(saved(tmp_path / "w.pt", content)), weights())
    only = saved(tmp_path / "o.pt", {"optimizer": moments, "optimizer_1": {"state": named}})
    assert find_weights(only).weights[0].family == ""


@pytest.mark.parametrize(
    "key",
    ["gradient", "gradients", "grad", "grad_accum", "accumulated_grads", "m", "v", "muon", "muon_momentum", "mu", "nu",
     "state.m", "first_moment"],
)  # fmt: skip
def test_what_an_optimizer_keeps_of_each_weight_is_never_taken(tmp_path: Path, key: str) -> None:
    content: dict[str, Any] = weights(seed=1)
    for part in reversed(key.split(".")):
        content = {part: content}
    path = saved(tmp_path / "w.pt", {"model": weights(), **content})
    assert_equal(taken(path), weights())
    assert not native_weights(find_weights(path).of("dit")[0].source, "dit").notes
    assert find_weights(saved(tmp_path / "o.pt", content)).weights[0].family == ""


@pytest.mark.parametrize("counts", [("decay", "num_updates"), ("initted", "step"), ("n_averaged",)])
def test_counts_beside_averaged_weights_are_passed_over(tmp_path: Path, counts: tuple[str, ...]) -> None:
    numbers = {name: torch.tensor(1) for name in counts}
    path = saved(tmp_path / "w.pt", {"model": weights(seed=1), "model_ema": weights() | numbers})
    assert_equal(taken(path), weights())
    flat = weights(seed=1) | {f"model_ema.{name}": tensor for name, tensor in (weights() | numbers).items()}
    assert_equal(taken(saved(tmp_path / "flat.pt", flat)), weights())


AVERAGES: dict[str, dict[str, Any]] = {
    "a list": {"ema": {"shadow_params": list(weights(seed=1).values()), "decay": 0.99}},
    "a list, diffusers": {"ema_state": {"shadow_params": tuple(weights(seed=1).values()), "optimization_step": 3}},
    "LitEma": {"model_ema": {name.replace(".", ""): tensor for name, tensor in weights(seed=1).items()}},
    "LitEma, counted": {
        "model_ema": {"decay": torch.tensor(0.9), "num_updates": torch.tensor(3), "blocks0normweight": torch.ones(3)}
    },
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_averaged_weights_that_cannot_be_read_are_told(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / "w.pt", {"model": weights(), **AVERAGES[kind]})
    assert_equal(taken(path), weights())
    (found,) = find_weights(path).of("dit")
    (note,) = native_weights(found.source, "dit").notes
    assert f"also holds averaged weights ({next(iter(AVERAGES[kind]))}." in note
    assert note in inspect_weights(found).notes


@pytest.mark.parametrize("helper", ["critic", "discriminator", "teacher", "fake_score", "real_score", "ref_model"])
def test_networks_that_only_help_training_are_not_taken(tmp_path: Path, helper: str) -> None:
    path = saved(tmp_path / "w.pt", {helper: {"model": weights(seed=1)}, "student": {"model": weights()}})
    assert_equal(taken(path), weights())
    assert_equal(taken(path, group=helper), weights(seed=1))


def test_a_network_that_only_helps_training_is_told_where_it_is_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"critic": {"model": weights()}})
    (found,) = find_weights(path).of("dit")
    (note,) = native_weights(found.source, "dit").notes
    assert note == "note: w.pt holds critic.model alone, which by its name only helps in training"


def test_several_networks_of_one_kind_are_refused_until_one_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"red": weights(seed=1), "blue": weights()})
    (found,) = find_weights(path).of("dit")
    with pytest.raises(CheckpointError, match=r"several networks of one kind \(blue, red\).*--group NAME"):
        native_weights(found.source, "dit")
    assert "blue, red" in inspect_weights(found).problem
    assert_equal(taken(path, group="blue"), weights())
    (network,) = networks_in(find_weights(path), group="red")
    assert_equal({name: network.native.read(name) for name in network.native}, weights(seed=1))
    with pytest.raises(CheckpointError, match=r"no group 'green'; it holds blue, red"):
        taken(path, group="green")


def test_a_state_dict_beside_averaged_weights_at_its_own_level() -> None:
    named = weights(seed=1) | {f"ema.{name}": tensor for name, tensor in weights().items()}
    source = native_weights(MemorySource(named), "dit")
    assert_equal({name: source.read(name) for name in source}, weights())


# -- two experts in one file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("high", "low"),
    [
        ("transformer", "transformer_2"), ("pipe.dit", "pipe.dit2"), ("high_noise_model", "low_noise_model"),
        ("model.high", "model.low"), ("ema.transformer", "ema.transformer_2"),
    ],
)  # fmt: skip
def test_two_experts_in_one_file_go_to_high_and_low(tmp_path: Path, high: str, low: str) -> None:
    content = {f"{high}.{name}": tensor for name, tensor in weights().items()}
    content |= {f"{low}.{name}": tensor for name, tensor in weights(seed=1).items()}
    path = saved(tmp_path / "both.pt", content)
    networks = {network.expert: network.native for network in networks_in(find_weights(path))}
    assert set(networks) == {"high", "low"}
    assert_equal({name: networks["high"].read(name) for name in networks["high"]}, weights())
    assert_equal({name: networks["low"].read(name) for name in networks["low"]}, weights(seed=1))
    names = [found.name for found in find_weights(path).of("dit")]
    assert [name.endswith((", high noise)", ", low noise)")) for name in names] == [True, True]
    (alone,) = networks_in(find_weights(path), group=low)
    assert_equal({name: alone.native.read(name) for name in alone.native}, weights(seed=1))
    with pytest.raises(CheckpointError, match="several networks"):
        native_weights(MemorySource(content), "dit")
    assert_equal(
        {name: native_weights(MemorySource(content), "dit", expert="low").read(name) for name in weights()},
        weights(seed=1),
    )


# -- LoRAs ------------------------------------------------------------------------------------------------------------


def updates(prefix: str) -> Tensors:
    layer = "base_model.model.model.blocks.0.self_attn.q"
    return {
        f"{prefix}.{layer}.lora_A.default.weight": torch.ones(2, 128),
        f"{prefix}.{layer}.lora_B.default.weight": torch.ones(128, 2),
    }


def test_dicts_of_loras_are_no_network(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", updates("generator_lora") | updates("critic_lora") | {"step": 3})
    (found,) = find_weights(path).weights
    assert found.family == "lora"
    with pytest.raises(CheckpointError, match=r"is a LoRA \(generator_lora.*give it with --lora"):
        native_weights(found.source, "dit")


def test_a_network_beside_loras_is_a_network(tmp_path: Path) -> None:
    content = {"generator": weights()} | updates("generator_lora") | updates("critic_lora")
    path = saved(tmp_path / "w.pt", content)
    assert_equal(taken(path), weights())
    (note,) = native_weights(find_weights(path).weights[0].source, "dit").notes
    assert "also holds a LoRA, which is left out" in note


SMALL = Family(name="small", title="the small network", owns=r"(?:^|\.)small\.(?=weight$)")


def test_a_network_that_owns_its_names_is_read_out_of_any_file() -> None:
    small = {"wrap.small.weight": torch.ones(2)}
    for others in ({}, updates("wrap"), {f"wrap.{name}": tensor for name, tensor in weights().items()}):
        native = native_weights(MemorySource({**others, **small}), SMALL)
        assert list(native) == ["small.weight"]
    with pytest.raises(CheckpointError, match="holds nothing of the small network: none of its 2 tensors is"):
        native_weights(MemorySource(updates("wrap")), SMALL)


# -- the shared function ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("net.wan.blocks.0.self_attn.q", "net.wan."),
        ("blocks.0.self_attn.q", ""),
        ("generator_lora.base_model.model.model.blocks.1.ffn.2", "generator_lora.base_model.model.model."),
        ("transformer_2.blocks.0.attn1.to_q", "transformer_2."),
        ("x.head.head", "x."),
        ("x.scale_shift_table", "x."),
        ("x.blocks.3.scale_shift_table", "x."),
        ("lora_unet__blocks_0_self_attn_q", "lora_unet__"),
        ("lora_unet_blocks_10_cross_attn_k_img", "lora_unet_"),
        ("lora_transformer_blocks_0_attn1_to_out_0", "lora_transformer_"),
        ("my_new_thing_patch_embedding", "my_new_thing_"),
        ("time_embedding.0", ""),
        ("something.else", None),
    ],
)
def test_the_prefix_is_what_stands_before_the_first_known_name(name: str, prefix: str | None) -> None:
    assert prefix_of(name, known_layers(DIT.formats, joined=True)) == prefix


def test_names_are_sorted_by_prefix() -> None:
    names = ["a.head.head", "b.blocks.0.ffn.0", "a.blocks.0.ffn.2", "c.unknown"]
    found = by_prefix(names, known_layers(DIT.formats))
    assert found == {"a.": ["a.head.head", "a.blocks.0.ffn.2"], "b.": ["b.blocks.0.ffn.0"]}


def test_segments_of_wrappers_are_taken_out_anywhere() -> None:
    assert unwrapped("_orig_mod.a._fsdp_wrapped_module.b._forward_module.weight") == "a.b.weight"
    assert unwrapped("blocks.0.modulation") == "blocks.0.modulation"
    assert unwrapped("a_mod.b_module.c") == "a_mod.b_module.c"


def test_two_names_that_are_one_without_wrappers_are_refused() -> None:
    named = weights() | {"_orig_mod.head.head.bias": torch.ones(64)}
    with pytest.raises(CheckpointError, match="mixes two layouts"):
        native_weights(MemorySource(named), "dit")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("naming", ["official", "diffusers"])
@pytest.mark.parametrize("adapter", [LoraConfig, LoKrConfig])
def test_a_network_that_peft_has_wrapped_is_refused_with_what_merges_it(
    tmp_path: Path, naming: str, nested: bool, adapter: Any
) -> None:
    layer = "blocks.0.self_attn.q" if naming == "official" else "blocks.0.attn1.to_q"
    foreign = in_format(MemorySource(weights()), "dit", naming)
    plain = {f"base_model.model.{name}": foreign.read(name) for name in foreign}
    block = torch.nn.ModuleDict({"q": torch.nn.Linear(128, 128)})
    wrapped = get_peft_model(block, adapter(r=2, target_modules=["q"])).state_dict()
    own = {name.replace("model.q.", f"model.{layer}."): tensor for name, tensor in wrapped.items()}
    kept = {name: t for name, t in plain.items() if not name.startswith(f"base_model.model.{layer}.")}
    path = saved(tmp_path / "w.pt", {"model": {**kept, **own}} if nested else {**kept, **own})
    (found,) = find_weights(path).weights
    message = r"adapter of peft that is not merged into it .*base_layer\.weight.* after model\.merge_and_unload\(\)"
    assert re.search(message, inspect_weights(found).problem)
    for read in (lambda: native_weights(found.source, "dit"), lambda: networks_in(find_weights(path))):
        with pytest.raises(CheckpointError, match=message):
            read()
    with pytest.raises(CheckpointError, match=message):
        with_loras(MemorySource(weights()), [LoRA(path)])
