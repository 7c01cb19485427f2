"""The transformer block, the image embedding and the output head."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_core.models.dit.attention import CrossAttention, SelfAttention
from wan_core.models.dit.config import WanDiTConfig
from wan_core.models.dit.inputs import ContextStates
from wan_core.models.dit.modulation import add_gated, modulated_norm

Context = tuple[Tensor, Tensor | None]
"""Embedded text tokens [B, L, C] and, with an image branch, image tokens [B, 257*k, C]."""


class FeedForward(nn.Sequential):
    """Linear, GELU (tanh), Linear."""

    def __init__(self, config: WanDiTConfig) -> None:
        super().__init__(
            nn.Linear(config.dim, config.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_dim, config.dim),
        )


class WanBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward; the residual stream is float32."""

    def __init__(self, config: WanDiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps) if config.cross_attn_norm else nn.Identity()
        self.cross_attn = CrossAttention(config)
        self.ffn = FeedForward(config)
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)

    def forward(
        self,
        tokens: Tensor,
        modulation: Tensor,
        rope: Tensor,
        context: Context | None,
        context_states: ContextStates | None = None,
        key_lengths: Tensor | None = None,
    ) -> tuple[Tensor, ContextStates]:
        """Tokens [B, L, C] float32 after the block, and the context's keys and values to hand in again.

        ``modulation``: [B, S, 6, C] float32. ``context`` may be None when ``context_states`` is given.
        """
        dtype = self.self_attn.q.weight.dtype
        rows = (self.modulation.float() + modulation).unbind(2)
        # 1. self-attention
        hidden = modulated_norm(tokens, rows[0], rows[1], self.eps).to(dtype)
        tokens = add_gated(tokens, self.self_attn(hidden, rope, key_lengths), rows[2])
        # 2. cross-attention
        if context_states is None:
            if context is None:
                raise ValueError("a block needs the context or its keys and values")
            context_states = self.cross_attn.context_states(*context)
        attended = self.cross_attn(self._affine_norm(tokens).to(dtype), context_states)
        tokens = tokens + attended if torch.is_grad_enabled() else tokens.add_(attended)
        # 3. feed-forward
        hidden = modulated_norm(tokens, rows[3], rows[4], self.eps).to(dtype)
        return add_gated(tokens, self.ffn(hidden), rows[5]), context_states

    def _affine_norm(self, tokens: Tensor) -> Tensor:
        norm = self.norm3
        if isinstance(norm, nn.Identity):
            return tokens
        return functional.layer_norm(tokens, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)


class ImageEmbedding(nn.Module):
    """CLIP states to context tokens (Wan2.1 image-to-video)."""

    def __init__(self, image_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(image_dim),
            nn.Linear(image_dim, image_dim),
            nn.GELU(),
            nn.Linear(image_dim, dim),
            nn.LayerNorm(dim),
        )

    def forward(self, states: Tensor) -> Tensor:
        """[B, L, image_dim] to [B, L, dim]."""
        out: Tensor = self.proj(states)
        return out


class Head(nn.Module):
    """Modulated norm and the projection to patches, in float32."""

    def __init__(self, config: WanDiTConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.eps = config.eps
        self.head = nn.Linear(config.dim, config.out_dim * patch[0] * patch[1] * patch[2])
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """[B, L, C] tokens and [B, S, C] time embedding to [B, L, patch * out_dim]."""
        shift, scale = (self.modulation.float() + embedding.unsqueeze(2)).unbind(2)
        hidden = modulated_norm(tokens, shift, scale, self.eps)
        return functional.linear(hidden, self.head.weight.float(), self.head.bias.float())
