"""What prepare_model promises: other layers, the same numbers, names and hooks; refusals."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wan_core.errors import ConfigError
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.models import DiTInputs, VAEConfig, VideoVAE, WanDiT
from wan_core.models.dit.attention import SelfAttention
from wan_core.models.dit.modulation import ModulatedNorm
from wan_core.runtime import prepare_model
from wan_core.runtime.kernels import apply_kernels, has_kernels
from wan_core.runtime.kernels.in_place import InPlaceModulatedNorm
from wan_core.runtime.kernels.onednn import can_be_fused

from .dit_networks import IMAGE, conditions, latents, network, prepared

TIME = torch.tensor([640.0])


def velocity(model: WanDiT, inputs: DiTInputs | None = None) -> Tensor:
    with torch.no_grad():
        return model(latents(), TIME, inputs or conditions())


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


def small_vae() -> VideoVAE:
    return VideoVAE(VAEConfig(dim=4, z_dim=4, num_res_blocks=1)).eval()


@pytest.mark.parametrize("build", [network, lambda: network(IMAGE), small_vae], ids=["text", "image", "vae"])
def test_weights_and_their_names_stay(build: Any) -> None:
    model = build()
    before = model.state_dict(keep_vars=True)
    prepare_model(model, inference=True)
    after = model.state_dict(keep_vars=True)
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    assert has_kernels(model)
    model.load_state_dict(build().state_dict())


def test_a_second_preparation_changes_nothing() -> None:
    model = prepared()
    layers = list(model.modules())
    prepare_model(model, inference=True)
    assert all(a is b for a, b in zip(layers, model.modules(), strict=True))


def test_without_a_wish_nothing_happens() -> None:
    model = network()
    layers = list(model.modules())
    prepare_model(model, inference=False)
    assert all(a is b for a, b in zip(layers, model.modules(), strict=True))
    assert not has_kernels(model)


def test_layers_are_final_before_weights_are_divided() -> None:
    model, seen = network(), []

    def shard(model: nn.Module, *, dtype: torch.dtype | None = None) -> None:
        seen.append((has_kernels(model), type(model.blocks).__name__))

    prepare_model(model, inference=True, attention="sdpa", shard=shard)
    prepare_model(network(), inference=False, shard=shard, recompute=True)
    assert seen == [(True, "ModuleList"), (False, "ModuleList")]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="inference has none"):
        prepare_model(network(), inference=True, recompute=True)
    with pytest.raises(ConfigError, match="trainable"):
        prepare_model(prepared(), inference=False, recompute=True)


def test_a_pipeline_prepares_its_networks_for_use_and_leaves_them_plain_for_training() -> None:
    components = load_pipeline("tiny-ti2v", options=RuntimeOptions(device="cpu")).components
    for placed in (components.dit, components.vae):
        assert has_kernels(placed.module())
        assert not has_kernels(placed.trainable(torch.bfloat16))
        assert next(placed.trainable(torch.bfloat16).parameters()).dtype is torch.bfloat16


# -- layers that stay plain --------------------------------------------------------------------------------------------


def test_hooks_of_a_linear_layer_are_called() -> None:
    model, called = network(), []
    for linear in (model.blocks[0].ffn[0], model.blocks[0].cross_attn.o):
        linear.register_forward_hook(lambda *_: called.append(True))
    apply_kernels(model)
    with_hooks = velocity(model)
    assert len(called) == 2
    assert_close(with_hooks, velocity(network()))


def test_a_wrapped_linear_layer_is_not_passed_by() -> None:
    class Halved(nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return super().forward(hidden) / 2

    model, halved = network(), network()
    for linear in (halved.blocks[0].ffn[0], halved.blocks[0].cross_attn.o):
        linear.__class__ = Halved
        assert not can_be_fused(linear)
    for linear in (model.blocks[0].ffn[0], model.blocks[0].cross_attn.o):
        linear.weight.div_(2)
        linear.bias.div_(2)
    apply_kernels(halved)
    assert_close(velocity(halved), velocity(model))


def test_a_layer_of_a_variant_keeps_what_it_does() -> None:
    class Silent(SelfAttention):
        def forward(self, hidden: Tensor, *_: Any) -> Tensor:
            return hidden * 0

    plain, fast = network(), network()
    for model in (plain, fast):
        model.blocks[0].self_attn.__class__ = Silent
    apply_kernels(fast)
    assert type(fast.blocks[0].self_attn) is Silent
    assert_close(velocity(fast), velocity(plain))


def test_under_autocast_a_prepared_network_runs() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        rounded = velocity(prepared())
    exact = velocity(network())
    assert (rounded - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("batch", "lengths"), [(1, (40,) * 5), (2, (40,) * 5), (1, (150, 50)), (2, (150, 50)), (2, (200,))]
)
def test_a_norm_that_rounds_as_it_writes_has_the_bits_of_one_that_is_rounded_after(
    dtype: torch.dtype, batch: int, lengths: tuple[int, ...]
) -> None:
    tokens = 3 * torch.randn(batch, 200, 96)
    shift, scale = torch.randn(2, batch, len(lengths), 96)
    expected = ModulatedNorm(1e-6)(tokens, shift, scale, lengths).to(dtype)
    for kind in (ModulatedNorm, InPlaceModulatedNorm):
        assert torch.equal(kind(1e-6)(tokens, shift, scale, lengths, dtype), expected)
