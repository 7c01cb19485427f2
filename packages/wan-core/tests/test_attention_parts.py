"""Attention to parts of the keys: put together it is attention to all of them, whichever kernel found the parts."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from wan_core.models import InnerAttention
from wan_core.runtime import attention_backends as backends
from wan_core.runtime.attention_parts import JoinedParts, attend_to_part, plain_part

from .dit_networks import noise

Kernel = Callable[..., Any]


def drawn(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (noise(2, length, 3, 8, seed=length).to(dtype) for length in (5, 11, 11))
    return query * scale, key * scale, value


def joined(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, cuts: tuple[int, ...] = (0, 1, 4, 11)) -> Tensor:
    parts = JoinedParts()
    for start, stop in itertools.pairwise(cuts):
        parts.add(attend_to_part(kernel, query, key[:, start:stop], value[:, start:stop]))
    return parts.whole(query)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_parts_together_are_the_whole(scale: float) -> None:
    expected = InnerAttention()(*drawn(scale))
    for cuts in ((0, 11), (0, 1, 4, 11), (0, 10, 11)):
        torch.testing.assert_close(joined(InnerAttention(), *drawn(scale), cuts=cuts), expected, rtol=0, atol=2e-6)


def test_parts_of_16_bits_are_put_together_in_float32() -> None:
    expected = InnerAttention()(*drawn())
    found = joined(InnerAttention(), *drawn(dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=2e-2)


def test_the_formula_is_what_the_kernel_of_torch_finds() -> None:
    query, key, value = drawn()
    mixed, sums = attend_to_part(InnerAttention(), query, key, value)
    by_formula = plain_part(*(each.transpose(1, 2) for each in (query, key, value)))
    torch.testing.assert_close(mixed.transpose(1, 2), by_formula[0], rtol=0, atol=2e-6)
    torch.testing.assert_close(sums.transpose(1, 2), by_formula[1], rtol=0, atol=2e-6)


def test_no_part_is_zeros() -> None:
    query = drawn()[0]
    assert torch.equal(JoinedParts().whole(query), torch.zeros_like(query))


def with_option(query: Tensor, key: Tensor, value: Tensor, causal: bool = False, return_lse: bool = False) -> Any:
    """As flash-attn 4."""
    mixed, sums = plain_part(*(each.transpose(1, 2) for each in (query, key, value)))
    return mixed.transpose(1, 2), sums if return_lse else None


def with_probabilities(query: Tensor, key: Tensor, value: Tensor, return_attn_probs: bool = False) -> Any:
    """As flash-attn 2, which adds what it dropped."""
    mixed, sums = with_option(query, key, value, return_lse=True)
    return (mixed, sums, None) if return_attn_probs else mixed


def always(query: Tensor, key: Tensor, value: Tensor) -> Any:
    """As an early flash-attn 3."""
    return with_option(query, key, value, return_lse=True)


def never(query: Tensor, key: Tensor, value: Tensor) -> Any:
    return with_option(query, key, value)[0]


@pytest.mark.parametrize("kernel", [with_option, with_probabilities, always, never])
def test_versions_of_flash_attention_give_parts(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(*tensors: Tensor, **options: bool) -> Any:
        asked.append(options)
        return kernel(*tensors, **options)

    monkeypatch.setattr(backends, "_is_for_flash", lambda query: True)
    attention = backends.FlashAttention(kernel)
    attention._kernel = counted
    torch.testing.assert_close(joined(attention, *drawn()), InnerAttention()(*drawn()), rtol=0, atol=2e-6)
    assert len(asked) == 3
    assert torch.equal(attention(*drawn()), never(*drawn())), "without parts nothing changes"


def test_what_a_flash_kernel_cannot_do_torch_does() -> None:
    def refuse(query: Tensor, key: Tensor, value: Tensor) -> Any:
        raise AssertionError("float32 on the CPU is not for this kernel")

    torch.testing.assert_close(
        joined(backends.FlashAttention(refuse), *drawn()), InnerAttention()(*drawn()), rtol=0, atol=2e-6
    )
