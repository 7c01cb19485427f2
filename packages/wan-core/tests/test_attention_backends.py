"""Attention kernels put into a network: they compute the same, and what they cannot do goes to those of torch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from wan_core.errors import ConfigError
from wan_core.models import InnerAttention, KeyRanges
from wan_core.runtime import attention_backends as backends
from wan_core.runtime.attention_backends import apply_attention_backend
from wan_core.runtime.flex import FlexAttention

from .dit_networks import conditions, latents, network, noise
from .flash_packages import flash_package

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)

Calls = list[tuple[Tensor, ...]]


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A flash-attn 3 that notes what it is called with."""
    called: Calls = []

    def flash_attn_func(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        called.append(tensors)
        return InnerAttention()(*tensors), torch.zeros(1)

    flash_package(monkeypatch, "flash_attn_interface", flash_attn_func)
    return called


def test_a_name_that_is_no_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match="auto is no kernel"):
        apply_attention_backend(network(), "auto", CPU)


def test_an_applied_backend_computes_the_same_and_can_be_taken_back(hopper: Calls) -> None:
    model, inputs, timesteps = network(), conditions(), torch.tensor([7.0])
    with torch.no_grad():
        before = model(latents(), timesteps, inputs)
        apply_attention_backend(model, "flash3", GPU)
        assert all(type(b.cross_attn.inner_attention) is backends.FlashAttention for b in model.blocks)
        assert torch.equal(model(latents(), timesteps, inputs), before)  # float32 on the CPU: the kernel stays out
        assert hopper == []
        apply_attention_backend(model, "sdpa", CPU)
    assert all(type(b.cross_attn.inner_attention) is InnerAttention for b in model.blocks)


def test_lengths_and_masks_never_reach_a_kernel_without_them(hopper: Calls) -> None:
    attention = backends.make_attention("flash3", GPU)
    query, key, value = (noise(2, 5, 3, 4, seed=seed).bfloat16() for seed in range(3))
    lengths, mask = torch.tensor([5, 2]), torch.ones(5, 5, dtype=torch.bool).tril()
    exact = InnerAttention()
    assert torch.equal(attention(query, key, value, lengths), exact(query, key, value, lengths))
    assert torch.equal(attention(query, key, value, None, mask), exact(query, key, value, None, mask))
    assert hopper == []


RANGES = KeyRanges(((150, ((0, 150),)), (60, ((0, 20), (90, 210)))))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_sees_the_ranges_that_a_dense_mask_shows() -> None:
    query, key, value = torch.randn(3, 2, 210, 2, 16, generator=torch.Generator().manual_seed(0)).unbind()
    expected = InnerAttention()(query, key, value, mask=RANGES)
    torch.testing.assert_close(FlexAttention()(query, key, value, mask=RANGES), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(FlexAttention()(query, key, value), expected, atol=1e-2)
    some = FlexAttention()(query[:, 140:170], key, value, mask=RANGES.queries(140, 170))
    torch.testing.assert_close(some, expected[:, 140:170], rtol=1e-4, atol=1e-5)


def test_a_dense_mask_is_made_once() -> None:
    mask = RANGES.dense()
    assert mask is RANGES.dense(CPU)
    assert mask.sum().item() == 150 * 150 + 60 * 140
    assert not mask[:150, 150:].any()


@pytest.mark.parametrize(("start", "stop"), [(0, 210), (140, 170), (150, 151), (160, 210), (40, 40)])
def test_some_queries_see_what_they_saw_among_all(start: int, stop: int) -> None:
    some = RANGES.queries(start, stop)
    assert (some.num_queries, some.num_keys) == (stop - start, 210)
    assert torch.equal(some.dense(), RANGES.dense()[start:stop])
    assert some.queries(0, 0).queries(0, 0).num_keys == 210


def test_on_a_gpu_ranges_go_to_flex_attention(hopper: Calls) -> None:
    for name in ("sdpa", "cudnn", "flash3"):
        model = network()
        apply_attention_backend(model, name, GPU)
        assert all(isinstance(block.self_attn.inner_attention, FlexAttention) for block in model.blocks)


def test_cudnn_is_asked_first_and_for_masks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    plain: Callable[..., Any] = torch.nn.functional.scaled_dot_product_attention

    def noted(*tensors: Tensor, **options: Any) -> Tensor:
        asked.append(torch.backends.cuda.cudnn_sdp_enabled() and torch._C._get_sdp_priority_order()[0])
        mixed: Tensor = plain(*tensors, **options)
        return mixed

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    query, key, value = (noise(2, 5, 3, 4, seed=seed) for seed in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    before = torch._C._get_sdp_priority_order()
    for given in (None, mask):
        found = backends.CudnnAttention()(query, key, value, None, given)
        torch.testing.assert_close(found, InnerAttention()(query, key, value, None, given))
    cudnn = int(torch.nn.attention.SDPBackend.CUDNN_ATTENTION.value)
    assert asked[0] == asked[2] == cudnn
    assert torch._C._get_sdp_priority_order() == before
