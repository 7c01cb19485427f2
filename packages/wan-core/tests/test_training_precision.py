"""Training in bfloat16: the network computes as in inference, and no second copy of its weights is kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from wan_core import BackendError, ConfigError
from wan_core.checkpoints import stays_float32
from wan_core.models import DiTInputs, WanDiT, WanDiTConfig
from wan_core.runtime import prepare_model, shard_model, whole_tensor
from wan_core.training import LoRASettings, attach_lora

from .memory import LiveBytes

CONFIG = WanDiTConfig(
    in_dim=4, out_dim=4, dim=32, ffn_dim=64, num_heads=2, num_layers=3, text_dim=8, text_len=6, freq_dim=16,
    image_dim=12, image_tokens=3,
)  # fmt: skip
NARROW = torch.bfloat16


def network() -> WanDiT:
    torch.manual_seed(0)
    model = WanDiT(CONFIG)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def as_read(model: WanDiT) -> WanDiT:
    """The network as `load_model` gives it for inference in bfloat16."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data if stays_float32(model, name) else parameter.data.to(NARROW)
    return model


def run(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents, context, image = (
        torch.randn(shape, generator=generator) for shape in ((2, 4, 2, 4, 4), (2, 3, 8), (2, 3, 12))
    )
    out: Tensor = model(latents, torch.tensor([[0.0, 700.0]] * 2), DiTInputs(context=context, image_context=image))
    return out


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)])  # its import takes long
def test_a_forward_in_training_is_that_of_inference(recompute: bool) -> None:
    model = network()
    prepare_model(model, inference=False, dtype=NARROW, recompute=recompute)
    out = run(model)
    assert torch.equal(out, run(as_read(network())))
    assert not torch.equal(out, run(network()))
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())
    assert model.dtype is torch.float32, "the weights are back"


def gradients(model: nn.Module) -> dict[str, Tensor]:
    run(model).square().mean().backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_gradients_are_those_of_a_narrow_network_and_recompute_changes_nothing(lora: bool) -> None:
    found = []
    for prepare in ({"dtype": NARROW}, {"dtype": NARROW, "recompute": True}, {}):
        model = network() if prepare and not lora else as_read(network())
        if lora:
            torch.manual_seed(2)
            attach_lora(model, LoRASettings(rank=2))
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(parameter, std=0.2)
        prepare_model(model, inference=False, **prepare)  # type: ignore[arg-type]
        found.append(gradients(model))
    trained, again, narrow = found
    assert all(each.dtype is torch.float32 for each in trained.values())
    assert trained.keys() == again.keys() == narrow.keys()
    for name, each in trained.items():
        assert torch.equal(each, again[name]), name
        torch.testing.assert_close(each, narrow[name].float(), rtol=2e-2, atol=1e-2 * float(each.abs().max()), msg=name)


def between_passes(model: nn.Module) -> int:
    """Bytes that a forward leaves for its backward pass."""
    with LiveBytes() as live:
        out = run(model)
    assert out.requires_grad
    return live.now


def test_a_forward_leaves_no_second_copy_of_the_weights() -> None:
    trained, narrow = network(), as_read(network())
    prepare_model(trained, inference=False, dtype=NARROW)
    wide = sum(each.nbytes for each in narrow.parameters() if each.dtype is NARROW)
    left, without_copies = between_passes(trained), between_passes(narrow)
    assert wide > 50_000
    assert abs(left - without_copies) < 0.02 * wide


def test_a_backward_pass_holds_the_narrow_copies_of_one_block_at_most() -> None:
    trained, narrow = network(), as_read(network())
    prepare_model(trained, inference=False, dtype=NARROW)
    peaks = []
    for model in (trained, narrow):
        out = run(model).mean()
        with LiveBytes() as live:
            torch.autograd.grad(out, [model.time_embedding[0].weight])
        peaks.append(live.peak)
    block = sum(each.nbytes for each in narrow.blocks[0].parameters())
    assert peaks[0] < peaks[1] + block


def test_a_second_call_changes_nothing() -> None:
    model = network()
    for _ in range(2):
        prepare_model(model, inference=False, dtype=NARROW)
    assert torch.equal(run(model), run(as_read(network())))


def test_an_error_in_a_forward_leaves_the_weights() -> None:
    model = network()
    prepare_model(model, inference=False, dtype=NARROW)
    names = [name for name, _ in model.named_parameters()]
    model.blocks[1].ffn[2].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(isinstance(each, nn.Parameter) and each.dtype is torch.float32 for each in model.parameters())


def test_a_weight_that_changes_before_its_backward_pass_is_noticed() -> None:
    model = network()
    prepare_model(model, inference=False, dtype=NARROW)
    loss = run(model).mean()
    with torch.no_grad():
        model.blocks[0].ffn[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="between a forward and its backward"):
        loss.backward()


def test_a_dtype_is_for_training() -> None:
    with pytest.raises(ConfigError, match="for inference"):
        prepare_model(network(), inference=True, dtype=NARROW)


def test_what_a_network_within_another_keeps_in_float32_stays_so() -> None:
    both = nn.ModuleDict({"model": network(), "other": nn.Linear(2, 2)})
    exact = {name for name, _ in both.named_parameters() if stays_float32(both, name)}
    assert {"model.head.head.weight", "model.blocks.2.modulation", "model.img_emb.proj.4.bias"} <= exact
    assert not exact & {"other.weight", "model.blocks.0.ffn.0.weight", "model.img_emb.proj.1.weight"}


@pytest.mark.slow  # the imports of sharding
@pytest.mark.parametrize(
    ("version", "model", "dtype", "words"),
    [
        ("2.7.1", as_read(network()), None, "torch 2.7.1 divides weights of one dtype.*install torch 2.8"),
        ("2.14.0", network(), NARROW, "torch 2.14.0 gathers weights in one dtype.*install torch 2.15"),
    ],
)
def test_a_torch_that_cannot_tell_weights_apart_divides_none(
    version: str, model: WanDiT, dtype: torch.dtype | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OldPolicy:
        def __init__(self, *, param_dtype: Any = None, reduce_dtype: Any = None, cast_forward_inputs: bool) -> None:
            pass

    monkeypatch.setattr("torch.distributed.fsdp.MixedPrecisionPolicy", OldPolicy)
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(BackendError, match=words):
        shard_model(model, None, dtype=dtype)  # type: ignore[arg-type]  # refused before it is used


@pytest.fixture
def alone() -> Iterator[DeviceMesh]:
    """A mesh of this process."""
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow  # the imports of sharding
def test_divided_weights_are_gathered_narrow_and_compute_the_same(alone: DeviceMesh) -> None:
    model, whole, seen = network(), network(), dict[str, torch.dtype]()
    prepare_model(model, inference=False, shard=partial(shard_model, mesh=alone), dtype=NARROW)
    prepare_model(whole, inference=False, dtype=NARROW)

    def look(block: nn.Module, *_: object) -> None:
        seen.update({name: each.dtype for name, each in block.named_parameters()})

    model.blocks[0].register_forward_hook(look)  # before FSDP lets the weights go
    model.blocks[0]._forward_hooks.move_to_end(next(reversed(model.blocks[0]._forward_hooks)), last=False)
    found, expected = gradients(model), gradients(whole)
    assert seen["ffn.0.weight"] is seen["self_attn.norm_q.weight"] is NARROW
    assert seen["modulation"] is seen["norm3.weight"] is torch.float32
    assert torch.equal(run(model), run(as_read(network())))
    assert found.keys() == expected.keys()
    for name, each in found.items():
        scale = 1e-2 * float(expected[name].abs().max())  # sums of bfloat16 in another order
        torch.testing.assert_close(whole_tensor(each), expected[name], rtol=1e-2, atol=scale, msg=name)
    assert all(each.dtype is torch.float32 for each in model.parameters())
