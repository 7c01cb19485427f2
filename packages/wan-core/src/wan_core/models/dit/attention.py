"""Self- and cross-attention of a Wan block. The kernel is a submodule, so that backends and parallelism replace it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_core.models.dit.config import WanDiTConfig
from wan_core.models.dit.epilogue import linear_add
from wan_core.models.dit.inputs import ContextStates
from wan_core.models.dit.layout import BlockShared, KeyValueMemory
from wan_core.models.dit.rope import rotate, turn_pairs


class InnerAttention(nn.Module):
    """Exact softmax attention by torch's own kernel."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_lengths: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """[B, Lq, n, d] from [B, Lq, n, d] and [B, Lk, n, d].

        Keys from ``key_lengths`` [B] (at least 1) on are not seen, nor those where the boolean ``mask``, broadcast to
        [B, n, Lq, Lk], is False.
        """
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

    def forward(self, hidden: Tensor, weight: Tensor | None = None) -> Tensor:
        """[..., C] in and out, in the input's dtype; ``weight`` [C] in place of the own one.

        Without gradients ``hidden`` is changed in place.
        """
        weight = self.weight if weight is None else weight
        if torch.is_grad_enabled():
            return functional.rms_norm(hidden, weight.shape, weight.to(hidden.dtype), self.eps)
        return hidden.mul_(self.inverse(hidden)).mul_(weight)

    def inverse(self, hidden: Tensor) -> Tensor:
        """One over the root mean square of [..., C]: [..., 1] float32."""
        norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32)
        return torch.rsqrt(norm.square() / hidden.shape[-1] + self.eps)


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
        return hidden.view(*hidden.shape[:-1], self.num_heads, -1)


class SelfAttention(Attention):
    """Attention among the latent tokens, with rotary positions."""

    def forward(self, hidden: Tensor, shared: BlockShared, memory: KeyValueMemory | None = None) -> Tensor:
        """[B, L, C] in and out. With a ``memory`` the queries also attend to what it remembers."""
        query = self._rotated(self.q(hidden), self.norm_q, shared.rope)
        key = self._rotated(self.k(hidden), self.norm_k, shared.rope)
        value = self.heads(self.v(hidden))
        if memory is not None:
            key, value = memory.extend(key, value)
        # The mask only when there is one: not every replacement of the kernel knows masks.
        options = {} if shared.mask is None else {"mask": shared.mask}
        mixed = self.inner_attention(query, key, value, shared.key_lengths, **options)
        out: Tensor = self.o(mixed.flatten(2))
        return out

    def _rotated(self, hidden: Tensor, norm: nn.Module, rope: Tensor) -> Tensor:
        """Norm and rotation of [B, L, C]: [B, L, n, d] in the same dtype.

        Without gradients in two passes over one float32 tensor: the weight, and the turn with the norm's factor in it.
        """
        if torch.is_grad_enabled():
            return rotate(self.heads(norm(hidden)), rope)
        factors = rope[:, None]
        if isinstance(norm, RMSNorm):
            factors = factors * norm.inverse(hidden).unsqueeze(-1)
            weight = norm.weight.float()
            weighted = hidden.mul_(weight) if hidden.dtype == torch.float32 else hidden * weight
        else:
            weighted = hidden.float()
        return turn_pairs(self.heads(weighted), factors, in_place=True).to(hidden.dtype)


class CrossAttention(Attention):
    """Attention from latent tokens to the context; with an image branch, to the leading image tokens apart.

    The query norm's weight is applied to the keys, which are fewer and are kept between steps: the product is the same.
    """

    def __init__(self, config: WanDiTConfig) -> None:
        super().__init__(config)
        self.has_image_branch = config.image_dim is not None
        if self.has_image_branch:
            self.k_img = nn.Linear(config.dim, config.dim)
            self.v_img = nn.Linear(config.dim, config.dim)
            self.norm_k_img = RMSNorm(config.dim, config.eps) if config.qk_norm else nn.Identity()

    def context_states(self, context: Tensor, image_tokens: Tensor | None = None) -> ContextStates:
        """Keys and values of text (and image) tokens: [B, L, n, d] each."""
        text = self._normed(self.k(context), self.norm_k), self.heads(self.v(context))
        if image_tokens is None:
            return text
        return *text, self._normed(self.k_img(image_tokens), self.norm_k_img), self.heads(self.v_img(image_tokens))

    def forward(self, hidden: Tensor, states: ContextStates) -> Tensor:
        """[B, L, C] in and out."""
        out: Tensor = self.o(self._mixed(hidden, states))
        return out

    def add_to(self, residual: Tensor, hidden: Tensor, states: ContextStates) -> Tensor:
        """``residual + forward(hidden, states)``; without gradients ``residual`` may be changed in place."""
        return linear_add(self.o, self._mixed(hidden, states), residual)

    def _mixed(self, hidden: Tensor, states: ContextStates) -> Tensor:
        query = self.q(hidden)
        if isinstance(self.norm_q, RMSNorm):
            factor = self.norm_q.inverse(query)
            query = (query * factor).to(query.dtype) if torch.is_grad_enabled() else query.mul_(factor)
        query = self.heads(query)
        mixed: Tensor = self.inner_attention(query, states[0], states[1])
        if len(states) > 2:
            image = self.inner_attention(query, states[2], states[3])
            mixed = mixed + image if torch.is_grad_enabled() else mixed.add_(image)
        return mixed.flatten(2)

    def _normed(self, keys: Tensor, norm: nn.Module) -> Tensor:
        if isinstance(norm, RMSNorm) and isinstance(self.norm_q, RMSNorm):
            keys = norm(keys, norm.weight * self.norm_q.weight)
        return self.heads(keys)
