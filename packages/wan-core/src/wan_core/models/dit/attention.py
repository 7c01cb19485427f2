"""Self- and cross-attention of a Wan block. The kernel is a submodule, so that backends replace it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_core.models.dit.config import WanDiTConfig
from wan_core.models.dit.inputs import ContextStates
from wan_core.models.dit.layout import BlockShared, KeyRanges, KeyValueMemory
from wan_core.models.dit.rope import rotate


class InnerAttention(nn.Module):
    """Exact softmax attention by torch's own kernel."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_lengths: Tensor | None = None,
        mask: Tensor | KeyRanges | None = None,
    ) -> Tensor:
        """[B, Lq, n, d] from [B, Lq, n, d] and [B, Lk, n, d].

        Keys from ``key_lengths`` [B] (at least 1) on are not seen, nor those where the boolean ``mask``, broadcast to
        [B, n, Lq, Lk], is False.
        """
        if isinstance(mask, KeyRanges):
            mask = mask.dense(query.device)
        if key_lengths is not None:
            positions = torch.arange(key.shape[1], device=key.device)
            visible = (positions < key_lengths[:, None])[:, None, None]
            mask = visible if mask is None else mask & visible
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width, statistics in float32 (Zhang and Sennrich, arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., C] in and out, in the input's dtype."""
        return functional.rms_norm(hidden, self.weight.shape, self.weight.to(hidden.dtype), self.eps)


class Attention(nn.Module):
    """The four projections and the query and key norms that both kinds share."""

    def __init__(self, config: WanDiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads = config.num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, config.eps) if config.qk_norm else nn.Identity()
        self.norm_k = RMSNorm(dim, config.eps) if config.qk_norm else nn.Identity()
        self.inner_attention = InnerAttention()

    def heads(self, hidden: Tensor) -> Tensor:
        """[B, L, C] as [B, L, n, d]."""
        return hidden.view(*hidden.shape[:-1], self.num_heads, hidden.shape[-1] // self.num_heads)


class SelfAttention(Attention):
    """Attention among the latent tokens, with rotary positions."""

    def forward(self, hidden: Tensor, shared: BlockShared, memory: KeyValueMemory | None = None) -> Tensor:
        """[B, L, C] in and out. With a ``memory`` the queries also attend to what it remembers."""
        query = self.rotated(self.q(hidden), self.norm_q, shared.rope)
        key = self.rotated(self.k(hidden), self.norm_k, shared.rope)
        value = self.heads(self.v(hidden))
        mixed = shared.layout.attend(self.inner_attention, query, key, value, shared, memory)
        out: Tensor = self.o(mixed.flatten(2))
        return out

    def rotated(self, hidden: Tensor, norm: nn.Module, rope: Tensor) -> Tensor:
        """Norm and rotation of [B, L, C]: [B, L, n, d] in the same dtype."""
        return rotate(self.heads(norm(hidden)), rope)


class CrossAttention(Attention):
    """Attention from latent tokens to the context; with an image branch, to the leading image tokens apart."""

    def __init__(self, config: WanDiTConfig) -> None:
        super().__init__(config)
        self.has_image_branch = config.image_dim is not None
        if self.has_image_branch:
            self.k_img = nn.Linear(config.dim, config.dim)
            self.v_img = nn.Linear(config.dim, config.dim)
            self.norm_k_img = RMSNorm(config.dim, config.eps) if config.qk_norm else nn.Identity()

    def context_states(self, context: Tensor, image_tokens: Tensor | None = None) -> ContextStates:
        """Keys and values of text (and image) tokens: [B, L, n, d] each."""
        text = self.heads(self.norm_k(self.k(context))), self.heads(self.v(context))
        if image_tokens is None:
            return text
        return *text, self.heads(self.norm_k_img(self.k_img(image_tokens))), self.heads(self.v_img(image_tokens))

    def forward(self, hidden: Tensor, states: ContextStates, residual: Tensor) -> Tensor:
        """``residual`` plus the attention of ``hidden``, both [B, L, C], in the residual's dtype."""
        query = self.heads(self.norm_q(self.q(hidden)))
        mixed: Tensor = self.inner_attention(query, states[0], states[1])
        if len(states) > 2:
            mixed = mixed + self.inner_attention(query, states[2], states[3])
        out: Tensor = residual + self.o(mixed.flatten(2))
        return out
