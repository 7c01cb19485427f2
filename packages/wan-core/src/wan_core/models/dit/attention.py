"""Self- and cross-attention of a Wan block. The kernel is a submodule, so that backends and parallelism replace it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_core.models.dit.config import WanDiTConfig
from wan_core.models.dit.inputs import ContextStates
from wan_core.models.dit.rope import rotate


class InnerAttention(nn.Module):
    """Exact softmax attention by torch's own kernel."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None = None) -> Tensor:
        """[B, Lq, n, d] from [B, Lq, n, d] and [B, Lk, n, d]; keys from ``key_lengths`` [B] on are not seen."""
        mask = None
        if key_lengths is not None:
            positions = torch.arange(key.shape[1], device=key.device)
            mask = (positions < key_lengths[:, None])[:, None, None]
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width: in float32, rounded to the input's dtype, then weighted."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, hidden: Tensor) -> Tensor:
        shape = (hidden.shape[-1],)
        if hidden.dtype == torch.float32:
            return functional.rms_norm(hidden, shape, self.weight, self.eps)
        return functional.rms_norm(hidden.float(), shape, None, self.eps).to(hidden.dtype) * self.weight


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

    def forward(self, hidden: Tensor, rope: Tensor, key_lengths: Tensor | None = None) -> Tensor:
        """[B, L, C] in and out; ``rope`` [L, d / 2] complex angles of the tokens."""
        query = rotate(self.heads(self.norm_q(self.q(hidden))), rope)
        key = rotate(self.heads(self.norm_k(self.k(hidden))), rope)
        mixed = self.inner_attention(query, key, self.heads(self.v(hidden)), key_lengths)
        out: Tensor = self.o(mixed.flatten(2))
        return out


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
        if not self.has_image_branch or image_tokens is None:
            return text
        key, value = self.norm_k_img(self.k_img(image_tokens)), self.v_img(image_tokens)
        return (*text, self.heads(key), self.heads(value))

    def forward(self, hidden: Tensor, states: ContextStates) -> Tensor:
        """[B, L, C] in and out."""
        query = self.heads(self.norm_q(self.q(hidden)))
        mixed = self.inner_attention(query, states[0], states[1])
        if len(states) > 2:
            mixed = mixed + self.inner_attention(query, states[2], states[3])
        out: Tensor = self.o(mixed.flatten(2))
        return out
