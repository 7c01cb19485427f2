"""Attention to a part of the keys, and the parts put together: exact, by the log-sum-exp of the scores of each part.

Milakov and Gimelshein, "Online normalizer calculation for softmax" (arXiv 1805.02867).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_QUERIES_AT_ONCE = 1024

Part = tuple[Tensor, Tensor]
"""What queries find in some of the keys: [B, L, n, d], and the log-sum-exp of their scores, [B, L, n] float32."""


def attend_to_part(kernel: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor) -> Part:
    """What queries [B, Lq, n, d] find in keys [B, Lk, n, d], at least one of each.

    By ``kernel``, an inner attention, where it has a ``part`` of its own for such tensors, else by those of torch.
    """
    own = getattr(kernel, "part", None)
    found: Part | None = None if own is None else own(query, key, value)
    return _torch_part(query, key, value) if found is None else found


def _torch_part(query: Tensor, key: Tensor, value: Tensor) -> Part:
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    mixed, sums = _torch_kernel(query, key, value)
    # A kernel of blocks may give sums of queries that are none.
    return mixed.transpose(1, 2), sums[:, :, : query.shape[2]].transpose(1, 2).float()


def _torch_kernel(query: Tensor, key: Tensor, value: Tensor) -> Part:
    """[B, n, Lq, d] and [B, n, Lq], by the operators behind torch's attention, which itself does not show the sums."""
    if query.device.type == "cpu":
        on_cpu: Part = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
        return on_cpu
    if query.device.type == "cuda":
        given = torch.backends.cuda.SDPAParams(query, key, value, None, 0.0, False, False)
        if torch.backends.cuda.can_use_flash_attention(given):
            flash = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)
            return flash[0], flash[1]
        if torch.backends.cuda.can_use_efficient_attention(given):
            efficient = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)
            return efficient[0], efficient[1]
    return plain_part(query, key, value)


def plain_part(query: Tensor, key: Tensor, value: Tensor) -> Part:
    """The same by its formula, on any device: [B, n, Lq, d] in the dtype of the values, and [B, n, Lq] float32."""
    found, sums = [], []
    for some in torch.split(query.float(), _QUERIES_AT_ONCE, dim=2):
        scores = some @ key.float().mT * query.shape[-1] ** -0.5
        sums.append(scores.logsumexp(dim=-1))
        found.append((scores.softmax(dim=-1) @ value.float()).to(value.dtype))
    return torch.cat(found, dim=2), torch.cat(sums, dim=2)


class JoinedParts:
    """Parts of one attention, put together in float32 one after the other."""

    def __init__(self) -> None:
        self._mixed: Tensor | None = None
        self._sums: Tensor | None = None

    def add(self, part: Part) -> None:
        """Take what the same queries found in other keys."""
        mixed, sums = part[0].float(), part[1].unsqueeze(-1)
        if self._mixed is None or self._sums is None:
            self._mixed, self._sums = mixed, sums
            return
        # By how much the new keys weigh among all: the smaller of two numbers that sum to one keeps its digits.
        self._mixed = torch.lerp(self._mixed, mixed, torch.sigmoid(sums - self._sums))
        self._sums = torch.logaddexp(self._sums, sums)

    def whole(self, like: Tensor) -> Tensor:
        """[B, L, n, d] of all keys, in the dtype of ``like``; zeros of its shape where there were none."""
        return torch.zeros_like(like) if self._mixed is None else self._mixed.to(like.dtype)
