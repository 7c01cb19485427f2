import pytest
import torch
from safetensors import safe_open
from torch import nn

from wan_core.errors import ConfigError, MediaError
from wan_core.models import DiTInputs, WanDiTConfig
from wan_core.runtime import prepare_model
from wan_core.training import LoRASettings, attach_lora, lora_tensors, merge_lora, trained_tensors
from wan_core.training.lora import save_lora

from .networks import build


def tiny():
    torch.manual_seed(0)
    config = WanDiTConfig(in_dim=4, out_dim=4, dim=24, ffn_dim=32, num_heads=2, num_layers=2, text_dim=8, text_len=4)
    dit = build(config)
    nn.init.normal_(dit.head.head.weight)
    return dit


def velocity(dit):
    torch.manual_seed(1)
    inputs = DiTInputs(context=torch.randn(1, 3, 8))
    return dit(torch.randn(1, 4, 2, 4, 4), torch.tensor([500.0]), inputs)


def stir(dit) -> None:
    torch.manual_seed(2)
    for parameter in trained_tensors(dit).values():
        nn.init.normal_(parameter, std=0.1)


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained() -> None:
    dit = tiny()
    before = velocity(dit)
    names = attach_lora(dit, LoRASettings(rank=2))
    torch.testing.assert_close(velocity(dit), before)
    assert len(names) == 2 * 10
    assert len(trained_tensors(dit)) == 2 * len(names)
    assert all("lora_" in name for name in trained_tensors(dit))


def test_merging_gives_the_adapted_output_and_the_old_names() -> None:
    dit = tiny()
    keys = set(dit.state_dict())
    attach_lora(dit, LoRASettings(rank=2, alpha=6.0))
    stir(dit)
    adapted = velocity(dit)
    merge_lora(dit)
    assert set(dit.state_dict()) == keys
    torch.testing.assert_close(velocity(dit), adapted, rtol=1e-4, atol=1e-5)


def test_saved_names_and_alpha_are_the_published_ones(tmp_path) -> None:
    dit = tiny()
    attach_lora(dit, LoRASettings(rank=2, alpha=6.0, targets=("blocks.*.ffn.0",)))
    stir(dit)
    save_lora(dit, tmp_path / "lora.safetensors", dtype=torch.bfloat16, metadata={"steps": "7"})
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        assert sorted(file.keys())[:3] == [
            "diffusion_model.blocks.0.ffn.0.alpha",
            "diffusion_model.blocks.0.ffn.0.lora_A.weight",
            "diffusion_model.blocks.0.ffn.0.lora_B.weight",
        ]
        assert file.get_tensor("diffusion_model.blocks.0.ffn.0.alpha").item() == 6.0
        assert file.metadata()["steps"] == "7"


def test_diffusers_reads_the_saved_adapter() -> None:
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_wan_lora_to_diffusers

    dit = tiny()
    attach_lora(dit, LoRASettings(rank=2))
    stir(dit)
    converted = _convert_non_diffusers_wan_lora_to_diffusers(lora_tensors(dit))
    assert "transformer.blocks.0.attn1.to_q.lora_A.weight" in converted
    assert len([name for name in converted if name.endswith("lora_B.weight")]) == 20


def test_patterns_that_match_nothing_are_named() -> None:
    with pytest.raises(ConfigError, match=r"layers\.\*"):
        attach_lora(tiny(), LoRASettings(targets=("layers.*",)))


def test_adapters_come_before_the_kernels_of_inference() -> None:
    dit = tiny()
    attach_lora(dit, LoRASettings(rank=2))
    stir(dit)
    before = velocity(dit)
    prepare_model(dit, inference=True)
    torch.testing.assert_close(velocity(dit), before, rtol=1e-4, atol=1e-5)
    fast = tiny()
    prepare_model(fast, inference=True)
    with pytest.raises(ConfigError, match="prepared for inference"):
        attach_lora(fast, LoRASettings(rank=2))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": -1.0}, {"targets": ()}])
def test_impossible_settings_are_refused(wrong) -> None:
    with pytest.raises(ConfigError):
        LoRASettings(**wrong)


def test_saving_needs_adapters_and_a_writable_place(tmp_path) -> None:
    dit = tiny()
    with pytest.raises(ConfigError, match="no LoRA"):
        save_lora(dit, tmp_path / "lora.safetensors")
    attach_lora(dit, LoRASettings(rank=1))
    (tmp_path / "file").write_text("")
    with pytest.raises(MediaError, match="cannot write"):
        save_lora(dit, tmp_path / "file" / "lora.safetensors")
