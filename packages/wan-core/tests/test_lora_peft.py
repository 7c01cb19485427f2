"""Adapters that peft itself made, saved and merged: what we merge from its folder is what it merges."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from wan_core.checkpoints import LoRA, MemorySource, with_loras
from wan_core.errors import CheckpointError

from .dit_networks import CONFIG, network

TARGETS = ["self_attn.q", "self_attn.v", "cross_attn.o", "ffn.0", "ffn.2"]
PLAIN = network(CONFIG).state_dict()

CONFIGS: dict[str, Any] = {
    "plain": LoraConfig(r=3, lora_alpha=5),
    "patterns": LoraConfig(
        r=3,
        lora_alpha=5,
        alpha_pattern={r"blocks\.0\..*ffn.*": 1, r"(self|cross)_attn\.[qo]": 7, "^blocks.1.ffn.0": 2, "ffn": 50},
        rank_pattern={r"blocks\.\d+\.self_attn\.v": 2, r".*1\.ffn\.[02]": 4},
    ),
    "anchored patterns": LoraConfig(
        r=2, lora_alpha=6, alpha_pattern={"^self_attn.q": 1, "^blocks.0.self_attn.q": 3, "0.self_attn.v": 4}
    ),
    "root of rank": LoraConfig(r=4, lora_alpha=5, use_rslora=True, rank_pattern={"q$": 2}),
    "DoRA": LoraConfig(r=3, lora_alpha=5, use_dora=True),
    "DoRA, root of rank": LoraConfig(r=3, lora_alpha=5, use_dora=True, use_rslora=True),
    "bias of the update": LoraConfig(r=3, lora_alpha=5, lora_bias=True),
    "all biases": LoraConfig(r=3, lora_alpha=5, bias="all"),
    "biases of the layers": LoraConfig(r=3, lora_alpha=5, bias="lora_only"),
    "whole modules": LoraConfig(r=3, lora_alpha=5, modules_to_save=["head.head", "time_projection", "norm3"]),
    "whole layers and all biases": LoraConfig(r=3, lora_alpha=5, bias="all", modules_to_save=["head.head", "norm3"]),
    "whole modules and biases of layers": LoraConfig(
        r=3, lora_alpha=5, bias="lora_only", modules_to_save=["head.head"]
    ),
    "a transposed layer that is none": LoraConfig(r=3, lora_alpha=5, fan_in_fan_out=True),
    "one block": LoraConfig(r=3, lora_alpha=5, layers_to_transform=[1], layers_pattern="blocks"),
    "orthogonal start": LoraConfig(r=4, lora_alpha=5, init_lora_weights="orthogonal"),
    "MiCA": LoraConfig(r=4, lora_alpha=5, init_lora_weights="mica"),
    "LoHa": LoHaConfig(r=3, alpha=5),
    "LoHa, patterns": LoHaConfig(r=3, alpha=5, alpha_pattern={r".*ffn\.\d": 2}, rank_pattern={"self_attn.q": 2}),
    "LoKr of whole matrices": LoKrConfig(r=64, alpha=5),
    "LoKr of one low-rank matrix": LoKrConfig(r=1, alpha=5),
    "LoKr of two low-rank matrices": LoKrConfig(r=1, alpha=5, decompose_both=True, decompose_factor=4),
    "LoKr, patterns": LoKrConfig(
        r=1, alpha=5, decompose_factor=4, rank_pattern={r".*ffn.*": 64}, alpha_pattern={r"\w+\.0\.ffn\.0": 16}
    ),
}


def adapted(config: Any) -> PeftModel:
    """The network with an adapter that has been trained for a while, so to speak."""
    config.target_modules = set(TARGETS)
    model = get_peft_model(network(CONFIG), config)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)
        elif "magnitude" in name:
            parameter.data *= 1.5
    return model


def ours(folder: Path, strength: float = 1.0) -> dict[str, Tensor]:
    source = with_loras(MemorySource(PLAIN), [LoRA(folder, strength)])
    return {name: source.read(name) for name in source}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_peft_saved_is_merged_as_it_merges(tmp_path: Path, name: str) -> None:
    model = adapted(CONFIGS[name])
    model.save_pretrained(tmp_path)
    found = ours(tmp_path)
    expected = model.merge_and_unload().state_dict()
    assert set(found) == set(expected)
    changed = [key for key in PLAIN if not torch.equal(expected[key], PLAIN[key])]
    assert len(changed) >= 5
    for key in PLAIN:
        torch.testing.assert_close(
            found[key], expected[key], rtol=1e-4, atol=1e-5, msg=lambda text, key=key: key + text
        )


def test_the_strength_of_a_dora_goes_from_the_weight_to_the_merged_one(tmp_path: Path) -> None:
    model = adapted(LoraConfig(r=3, lora_alpha=5, use_dora=True))
    model.save_pretrained(tmp_path)
    expected = model.merge_and_unload().state_dict()
    for strength in (0.25, -1.0, 0.0):
        found = ours(tmp_path, strength)
        for key in PLAIN:
            between = PLAIN[key] + strength * (expected[key] - PLAIN[key])
            torch.testing.assert_close(found[key], between, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, PLAIN[key]) for key, tensor in ours(tmp_path, 0.0).items())


def test_patterns_that_keep_python_busy_for_ever_are_matched_all_the_same(tmp_path: Path) -> None:
    adapted(LoraConfig(r=2, lora_alpha=2)).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    plain = ours(tmp_path)
    patterns = {r"((\w+\.?)+)+!": 9, r"(.*.*)*\.q": 6}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"alpha_pattern": patterns}))
    found = ours(tmp_path)
    for key, weight in PLAIN.items():
        factor = 3 if key.endswith(".q.weight") else 1
        torch.testing.assert_close(found[key], weight + factor * (plain[key] - weight), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"init_lora_weights": "of next year"}, "of next year"),
        ({"peft_type": "OFT"}, "OFT"),
        ({"peft_type": "VERA"}, "VERA"),
        ({"peft_type": "ADALORA"}, "ADALORA"),
        ({"use_qalora": True}, "use_qalora"),
        ({"use_something_new": True}, "use_something_new"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"use_dora": True}, "without the other half"),
        ({"alpha_pattern": {"(a+)+(": 1}}, "no regular expression"),
    ],
)
def test_settings_that_say_something_else_are_refused_by_name(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    adapted(LoraConfig(r=2, lora_alpha=2)).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=words) as caught:
        ours(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("kind", ["OFT", "BOFT", "IA3", "VERA", "HRA"])
def test_other_adapters_of_peft_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    from peft import BOFTConfig, HRAConfig, IA3Config, OFTConfig, VeraConfig

    configs = {
        "OFT": OFTConfig(r=0, oft_block_size=4), "BOFT": BOFTConfig(boft_block_size=4),
        "IA3": IA3Config(feedforward_modules=["ffn.2"]), "VERA": VeraConfig(r=2), "HRA": HRAConfig(r=2),
    }  # fmt: skip
    config = configs[kind]
    config.target_modules = {"self_attn.q", "ffn.2"} if kind == "IA3" else {"self_attn.q"}
    get_peft_model(network(CONFIG), config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"this is {kind}") as caught:
        ours(tmp_path)
    assert "cannot be merged" in str(caught.value)
    (tmp_path / "adapter_config.json").unlink()  # the names tell it, too
    with pytest.raises(CheckpointError, match="VeRA" if kind == "VERA" else kind):
        ours(tmp_path)


TYPES = (
    "FOURIERFT", "LN_TUNING", "MISS", "VBLORA", "RANDLORA", "SHIRA", "C3A", "ROAD", "WAVEFT", "DELORA", "GRALORA",
    "OSF", "PVERA", "XLORA", "OF_NEXT_YEAR",
)  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_a_type_of_adapter_without_names_that_are_known_is_refused_by_its_settings(tmp_path: Path, kind: str) -> None:
    layer = "base_model.model.blocks.0.self_attn.q"
    save_file({f"{layer}.some_vector": torch.ones(24)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "r": 2}))
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        with pytest.raises(CheckpointError, match=f"says that this is {kind}, which cannot be merged"):
            with_loras(MemorySource(PLAIN), [LoRA(path)])


def test_a_trained_module_is_taken_and_what_it_was_before_is_not(tmp_path: Path) -> None:
    start = "base_model.model.head"
    tensors = {f"{start}.original_module.head.bias": torch.zeros(PLAIN["head.head.bias"].shape)}
    tensors[f"{start}.modules_to_save.default.head.bias"] = PLAIN["head.head.bias"] + 1
    layer = "base_model.model.blocks.0.self_attn.q"
    tensors |= {f"{layer}.lora_A.weight": torch.zeros(2, 24), f"{layer}.lora_B.weight": torch.zeros(24, 2)}
    save_file(tensors, tmp_path / "lora.safetensors")
    source = with_loras(MemorySource(PLAIN), [LoRA(tmp_path / "lora.safetensors")])
    assert torch.equal(source.read("head.head.bias"), PLAIN["head.head.bias"] + 1)


@pytest.mark.parametrize("bias", ["none", "all"])
def test_a_module_that_peft_wraps_twice_is_refused(tmp_path: Path, bias: Any) -> None:
    """Of ``head`` and ``head.head``, both of that name, the file has the inner one as it was."""
    adapted(LoraConfig(r=3, lora_alpha=5, bias=bias, modules_to_save=["head"])).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"peft saves whole, inside another that it does \(head\)"):
        ours(tmp_path)
