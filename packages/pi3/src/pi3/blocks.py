"""The transformer block that encoder, decoder and heads share, and the cross-attention block of Pi3X.

After ViT (arXiv:2010.11929), layer scale (arXiv:2103.17239) and the Pi3 reference (arXiv:2507.13347); the code is our
own.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pi3.rope2d import RopeTable, rotate

LAYER_NORM_EPS = 1e-6
QK_NORM_EPS = 1e-5


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., C] in and out."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(tokens)))
        return out


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., C] in and out."""
        return tokens * self.gamma


class Pi3Attention(nn.Module):
    """Self-attention with fused projections; query and key norms and rotary positions are optional."""

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        head_dim = dim // num_heads
        self.q_norm = nn.LayerNorm(head_dim, eps=QK_NORM_EPS) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim, eps=QK_NORM_EPS) if qk_norm else nn.Identity()

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed queries, normed keys and values, [B, n, L, d] each and of one dtype."""
        query, key, value = torch.unflatten(self.qkv(tokens), -1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        # Norms run in float32 under autocast; attention wants one dtype.
        return self.q_norm(query).to(value.dtype), self.k_norm(key).to(value.dtype), value

    def forward(self, tokens: Tensor, rope: RopeTable | None = None) -> Tensor:
        """[B, L, C] in and out."""
        query, key, value = self.project(tokens)
        if rope is not None:
            table = rope.cast(value.dtype)
            query, key = rotate(query, table), rotate(key, table)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP with residuals; ``layer_scale`` is the initial factor, None for none."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        qk_norm: bool = False,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Pi3Attention(dim, num_heads, qk_norm=qk_norm)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, mlp_ratio)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(self, tokens: Tensor, rope: RopeTable | None = None) -> Tensor:
        """[B, L, C] in and out."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens), rope))
        out: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return out


class Pi3CrossAttention(nn.Module):
    """Attention from some tokens to others, with rotary positions on both sides."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, others: Tensor, rope: RopeTable, others_rope: RopeTable) -> Tensor:
        """[B, L, C] from [B, L, C] and [B, K, C]."""

        def heads(projected: Tensor) -> Tensor:
            return torch.unflatten(projected, -1, (self.num_heads, -1)).transpose(1, 2)

        value = heads(self.v_proj(others))
        query = rotate(heads(self.q_proj(tokens)), rope.cast(value.dtype))
        key = rotate(heads(self.k_proj(others)), others_rope.cast(value.dtype))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class CrossBlock(nn.Module):
    """Pre-norm cross-attention and MLP with residuals. The published names begin at ``norm2``."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.norm_y = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.cross_attn = Pi3CrossAttention(dim, num_heads)
        self.norm3 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, mlp_ratio)

    def forward(self, tokens: Tensor, others: Tensor, rope: RopeTable, others_rope: RopeTable) -> Tensor:
        """[B, L, C] from [B, L, C] and [B, K, C]."""
        tokens = tokens + self.cross_attn(self.norm2(tokens), self.norm_y(others), rope, others_rope)
        out: Tensor = tokens + self.mlp(self.norm3(tokens))
        return out
