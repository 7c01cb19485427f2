"""Attention kernels chosen by name: what is there is used, what is not is named with its remedy."""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from wan_core.errors import BackendError, ConfigError
from wan_core.models import InnerAttention, KeyRanges
from wan_core.runtime import attention_backends as backends
from wan_core.runtime.attention_backends import apply_attention_backend, choose_attention_backend
from wan_core.runtime.flex import FlexAttention

from .dit_networks import conditions, latents, network, noise

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
    """A GPU of capability 9 and a flash-attn 3 that notes what it is called with."""
    called: list[tuple[Tensor, ...]] = []

    def flash_attn_func(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        called.append(tensors)
        return InnerAttention()(*tensors), torch.zeros(1)

    package = ModuleType("flash_attn_interface")
    package.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(backends, "is_installed", lambda name: name == "flash3")
    return called


def test_auto_without_a_gpu_is_the_kernel_of_torch() -> None:
    assert choose_attention_backend("auto", CPU) == "sdpa"
    model = network()
    assert apply_attention_backend(model, "auto", CPU) == "sdpa"
    assert all(type(block.self_attn.inner_attention) is InnerAttention for block in model.blocks)


def test_auto_takes_what_is_installed_and_fits_the_gpu(hopper: list[tuple[Tensor, ...]]) -> None:
    assert choose_attention_backend("auto", GPU) == "flash3"
    assert choose_attention_backend("auto", CPU) == "sdpa"


@pytest.mark.parametrize("name", ["flash2", "flash3", "flash4"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "is_installed", lambda name: False)
    with pytest.raises(BackendError, match=rf"{name} needs the package flash-attn.*--attention sdpa"):
        choose_attention_backend(name, GPU)


def test_a_device_without_the_kernel_is_named(hopper: list[tuple[Tensor, ...]]) -> None:
    with pytest.raises(BackendError, match="flash3 does not run on cpu; use --attention sdpa"):
        apply_attention_backend(network(), "flash3", CPU)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="auto, sdpa, flash4, flash3, flash2, got 'xformers'"):
        choose_attention_backend("xformers", CPU)


def test_a_package_that_does_not_load_is_reported(
    hopper: list[tuple[Tensor, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    del sys.modules["flash_attn_interface"].flash_attn_func
    with pytest.raises(BackendError, match="installed but cannot be used"):
        apply_attention_backend(network(), "flash3", GPU)


def test_an_applied_backend_computes_the_same_and_can_be_taken_back(hopper: list[tuple[Tensor, ...]]) -> None:
    model, inputs, timesteps = network(), conditions(), torch.tensor([7.0])
    with torch.no_grad():
        before = model(latents(), timesteps, inputs)
        apply_attention_backend(model, "flash3", GPU)
        assert all(type(b.cross_attn.inner_attention) is backends.FlashAttention for b in model.blocks)
        assert torch.equal(model(latents(), timesteps, inputs), before)  # float32 on the CPU: the kernel stays out
        assert hopper == []
        apply_attention_backend(model, "sdpa", CPU)
    assert all(type(b.cross_attn.inner_attention) is InnerAttention for b in model.blocks)


def test_lengths_and_masks_never_reach_a_kernel_without_them(hopper: list[tuple[Tensor, ...]]) -> None:
    attention = backends.FlashAttention(sys.modules["flash_attn_interface"].flash_attn_func)
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


def test_on_a_gpu_ranges_go_to_flex_attention(hopper: list[tuple[Tensor, ...]]) -> None:
    for name in ("sdpa", "flash3"):
        model = network()
        apply_attention_backend(model, name, GPU)
        assert all(isinstance(block.self_attn.inner_attention, FlexAttention) for block in model.blocks)
