"""The transformer block, the image embedding and the output head."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_core.models.dit.attention import CrossAttention, SelfAttention
from wan_core.models.dit.config import WanDiTConfig
from wan_core.models.dit.inputs import ContextStates
from wan_core.models.dit.layout import BlockShared, KeyValueMemory
from wan_core.models.dit.modulation import GatedSum, Lengths, ModulatedNorm

Context = tuple[Tensor, Tensor | None]
"""Embedded text tokens [B, L, C] and, with an image branch, the image tokens that it attends to."""


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
        self.norm1 = ModulatedNorm(config.eps)
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps) if config.cross_attn_norm else nn.Identity()
        self.cross_attn = CrossAttention(config)
        self.norm2 = ModulatedNorm(config.eps)
        self.ffn = FeedForward(config)
        self.add_gated = GatedSum()
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)

    def forward(
        self,
        tokens: Tensor,
        modulation: Tensor,
        shared: BlockShared,
        context: Context | None,
        states: ContextStates | None = None,
        memory: KeyValueMemory | None = None,
    ) -> tuple[Tensor, ContextStates]:
        """Tokens [B, L, C] float32 after the block, and the context's keys and values to hand in again.

        ``modulation``: [B, S, 6, C] float32, one row per segment. Without ``states``, the context's keys and values of
        an earlier call, ``context`` is needed. ``tokens`` may be changed in place.
        """
        rows = (self.modulation.float() + modulation).unbind(2)
        hidden = self.norm1(tokens, rows[0], rows[1], shared.lengths, shared.dtype)
        tokens = self.add_gated(tokens, self.self_attn(hidden, shared, memory), rows[2], shared.lengths)
        if states is None:
            if context is None:
                raise ValueError("a block needs the context or its keys and values")
            states = self.cross_attn.context_states(*context)
        tokens = self.cross_attn(float32_norm(self.norm3, tokens).to(shared.dtype), states, tokens)
        hidden = self.norm2(tokens, rows[3], rows[4], shared.lengths, shared.dtype)
        return self.add_gated(tokens, self.ffn(hidden), rows[5], shared.lengths), states


def float32_norm(norm: nn.Module, hidden: Tensor) -> Tensor:
    """The layer norm in float32, whatever the dtype of its weights; an identity stays one."""
    if not isinstance(norm, nn.LayerNorm):
        return hidden
    weight, bias = norm.weight.float(), norm.bias.float()
    return functional.layer_norm(hidden.float(), norm.normalized_shape, weight, bias, norm.eps)


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

    def forward(self, states: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, L, image_dim] to [B, L, dim] in ``dtype``; the norms in float32."""
        first, up, gelu, down, last = self.proj
        hidden = down(gelu(up(float32_norm(first, states).to(dtype))))
        return float32_norm(last, hidden).to(dtype)


class Head(nn.Module):
    """Modulated norm and the projection to patches, in float32."""

    def __init__(self, config: WanDiTConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.norm = ModulatedNorm(config.eps)
        self.head = nn.Linear(config.dim, config.out_dim * patch[0] * patch[1] * patch[2])
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, tokens: Tensor, embedding: Tensor, lengths: Lengths) -> Tensor:
        """[B, L, C] tokens and [B, S, C] time embedding to [B, L, patch * out_dim] float32."""
        shift, scale = (self.modulation.float() + embedding.unsqueeze(2)).unbind(2)
        hidden = self.norm(tokens, shift, scale, lengths, self.head.weight.dtype)
        out: Tensor = self.head(hidden).float()
        return out
