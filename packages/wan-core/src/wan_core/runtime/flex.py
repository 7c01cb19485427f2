"""Masks that are ranges of keys on a GPU: flex attention, which leaves out what nobody sees and holds no [L, L] mask.

Dong et al., "Flex Attention" (arXiv 2412.05496), torch's own implementation; it compiles itself at its first use.
"""

from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from wan_core.models import InnerAttention, KeyRanges


class FlexAttention(InnerAttention):
    """torch's kernel, and flex attention for masks that are `KeyRanges`."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_lengths: Tensor | None = None,
        mask: Tensor | KeyRanges | None = None,
    ) -> Tensor:
        """[B, Lq, n, d] from [B, Lq, n, d] and [B, Lk, n, d]."""
        if not isinstance(mask, KeyRanges) or key_lengths is not None:
            return super().forward(query, key, value, key_lengths, mask)
        return ranged_attention(query, key, value, mask, compiled=query.device.type == "cuda")


def ranged_attention(query: Tensor, key: Tensor, value: Tensor, ranges: KeyRanges, *, compiled: bool) -> Tensor:
    """Attention of [B, L, n, d] within ``ranges``; not ``compiled`` it holds all scores, and is for checks."""
    heads = (tensor.transpose(1, 2) for tensor in (query, key, value))
    mixed: Tensor = _kernel(compiled)(*heads, block_mask=_block_mask(ranges, query.device, compiled))
    return mixed.transpose(1, 2)


@cache
def _kernel(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Any = flex_attention
    return torch.compile(kernel, dynamic=False) if compiled else kernel


@lru_cache(maxsize=8)
def _block_mask(ranges: KeyRanges, device: torch.device, compiled: bool) -> Any:
    """Which blocks of queries and keys meet, kept for every layer and step."""
    from torch.nn.attention.flex_attention import create_block_mask

    bounds = _bounds(ranges).to(device)

    def is_seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = key < 0
        for index in range(bounds.shape[1]):
            seen = seen | ((key >= bounds[query, index, 0]) & (key < bounds[query, index, 1]))
        return seen

    make = torch.compile(create_block_mask) if compiled else create_block_mask  # it too would hold [L, L]
    return make(is_seen, None, None, ranges.num_queries, ranges.num_keys, device=str(device))


def _bounds(ranges: KeyRanges) -> Tensor:
    """First and last key and one of every range that a query sees: [L, ranges, 2], empty ones where it has fewer."""
    most = max(len(seen) for _, seen in ranges.runs)
    rows = torch.tensor([[*seen, *[(0, 0)] * (most - len(seen))] for _, seen in ranges.runs])
    return rows.repeat_interleave(torch.tensor([count for count, _ in ranges.runs]), dim=0)
