"""LoRA files in diffusers, run live: the peer with its own loader computes what our merged network computes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from wan_core.checkpoints import LoRA, MemorySource, in_format, load_model, with_loras
from wan_core.models import DiTInputs, WanDiT, WanDiTConfig
from wan_core.training import LoRASettings, attach_lora, trained_tensors
from wan_core.training.lora import save_lora

from .lora_files import Halves, spelt, updates, write
from .networks import build

CONFIG = WanDiTConfig(
    in_dim=4, out_dim=4, dim=24, ffn_dim=40, num_heads=2, num_layers=2, freq_dim=16, text_dim=8, text_len=6
)
TRAINED = LoRASettings(rank=3, alpha=6.0)


def weights() -> dict[str, Tensor]:
    torch.manual_seed(1)
    model = build(CONFIG)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and "bias" not in name), std=0.2)
    return dict(model.state_dict())


WEIGHTS = weights()
LATENTS = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(2))
TIMES = torch.tensor([400])
CONTEXT = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(3))


def peer() -> WanTransformer3DModel:
    model = WanTransformer3DModel(
        patch_size=CONFIG.patch_size, num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=8, freq_dim=16, ffn_dim=40, num_layers=2, cross_attn_norm=True,
    )  # fmt: skip
    source = in_format(MemorySource(WEIGHTS), "dit", "diffusers")
    model.load_state_dict({name: source.read(name) for name in source})
    return model.eval()


@torch.no_grad()
def theirs(path: Path, strength: float = 1.0) -> Tensor:
    """The peer's velocity with the LoRA that its own pipeline code read from a file."""
    model = peer()
    state = WanLoraLoaderMixin.lora_state_dict(path.parent, weight_name=path.name, return_lora_metadata=True)
    model.load_lora_adapter(state[0], metadata=state[1], adapter_name="ours")
    model.set_adapters(["ours"], [strength])
    return model(LATENTS, TIMES, CONTEXT, return_dict=False)[0]


@torch.no_grad()
def velocity(model: WanDiT) -> Tensor:
    return model(LATENTS, TIMES, DiTInputs(context=CONTEXT))


def ours(path: Path, strength: float = 1.0) -> Tensor:
    return velocity(load_model(CONFIG, with_loras(MemorySource(WEIGHTS), [LoRA(path, strength)]), family="dit"))


def assert_same(left: Tensor, right: Tensor) -> None:
    plain = velocity(load_model(CONFIG, MemorySource(WEIGHTS), family="dit"))
    changed = (right - plain).abs().max().item()
    assert changed > 0.05, "the LoRA does nothing"
    torch.testing.assert_close(left, right, atol=1e-4 * max(1.0, right.abs().max().item()), rtol=0)


def trained() -> WanDiT:
    """Our network with adapters that have been trained for a while, so to speak."""
    model = load_model(CONFIG, MemorySource(WEIGHTS), family="dit")
    attach_lora(model, TRAINED)
    torch.manual_seed(4)
    for parameter in trained_tensors(model).values():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("strength", [1.0, -0.6])
def test_what_we_train_and_save_is_the_same_in_diffusers_and_merged(tmp_path: Path, strength: float) -> None:
    model = trained()
    path = save_lora(model, tmp_path / "trained.safetensors")
    merged = ours(path, strength)
    if strength == 1.0:
        torch.testing.assert_close(merged, velocity(model), rtol=1e-4, atol=1e-4)
    assert_same(merged, theirs(path, strength))


def blocks_only() -> dict[str, Halves]:
    """Updates of the layers that every program's LoRA has."""
    kinds = ("self_attn.", "cross_attn.", "ffn.")
    return {layer: halves for layer, halves in updates(WEIGHTS, 2).items() if any(kind in layer for kind in kinds)}


FILES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "diffusers": lambda: spelt(blocks_only(), "diffusers"),
    "ComfyUI": lambda: spelt(blocks_only(), "ComfyUI"),
    "ComfyUI with alpha": lambda: spelt(blocks_only(), "ComfyUI", 5.0),
    "kohya and musubi": lambda: spelt(blocks_only(), "kohya and musubi", 3.0),
    "lightx2v": lambda: {
        **spelt(blocks_only(), "lightx2v"),
        **{
            f"diffusion_model.{layer}.diff_b": torch.full_like(WEIGHTS[f"{layer}.bias"], 0.3) for layer in blocks_only()
        },
    },
    "lightx2v with embeddings": lambda: spelt(
        {layer: halves for layer, halves in updates(WEIGHTS, 2).items() if not layer.startswith("patch_embedding")},
        "lightx2v",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_programs_give_the_peers_output(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "lora.safetensors", FILES[name]())
    assert_same(ours(path, 0.7), theirs(path, 0.7))


def test_what_the_peer_trains_and_saves_is_the_same_merged(tmp_path: Path) -> None:
    model = peer()
    settings = LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_v", "ffn.net.2"], init_lora_weights=False)
    torch.manual_seed(6)
    model.add_adapter(settings, adapter_name="theirs")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    model.save_lora_adapter(tmp_path / "adapter", adapter_name="theirs")
    WanLoraLoaderMixin.save_lora_weights(
        tmp_path / "pipeline",
        transformer_lora_layers=get_peft_model_state_dict(model, adapter_name="theirs"),
        transformer_lora_adapter_metadata=settings.to_dict(),
    )
    with torch.no_grad():
        expected = model(LATENTS, TIMES, CONTEXT, return_dict=False)[0]
    for folder in ("adapter", "pipeline"):
        assert_same(ours(tmp_path / folder), expected)
