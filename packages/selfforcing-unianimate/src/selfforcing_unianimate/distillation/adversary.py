"""The critic of the GAN stage: a transformer over all frames that also says whether a video is real.

Self-Forcing's (arXiv 2506.08009): after some of its blocks a learned token attends to the video's tokens, and what the
tokens found is classified together. Losses by softplus (Goodfellow et al. 2014), or relativistic (arXiv 1807.00734),
with gradient penalties by finite differences (arXiv 2501.08316). State-dict names are the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from selfforcing_unianimate.causal_dit import CausalDiT, CausalInputs
from wan_core import ConfigError
from wan_core.models import InnerAttention

WATCHED_BLOCKS = (13, 21, 29)
"""Of the 30 blocks of Wan2.1 1.3B, those after which the reference looks."""
CLASSES = 4
FFN_DIM = 8192


def watched_blocks(num_layers: int) -> tuple[int, ...]:
    """The same places in a network of another depth; of three blocks or fewer all."""
    if num_layers <= len(WATCHED_BLOCKS):
        return tuple(range(num_layers))
    return tuple(-(-(block + 1) * num_layers // 30) - 1 for block in WATCHED_BLOCKS)


class Registers(nn.Module):
    """Learned tokens, one for each place that is looked at, under a root-mean-square norm."""

    def __init__(self, count: int, dim: int, eps: float) -> None:
        super().__init__()
        self.register_tokens = nn.Parameter(torch.randn(count, dim) * 0.02)
        self.rms_norm = nn.RMSNorm(dim, eps)

    def forward(self) -> Tensor:
        """[count, dim]."""
        tokens: Tensor = self.rms_norm(self.register_tokens)
        return tokens


class TokenAttention(nn.Module):
    """Attention of one token to those of a video."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(dim, eps), nn.RMSNorm(dim, eps)
        self.inner_attention = InnerAttention()

    def forward(self, token: Tensor, video: Tensor) -> Tensor:
        """[B, 1, C] of ``token`` [B, 1, C] and ``video`` [B, L, C]."""
        query, key, value = self.norm_q(self.q(token)), self.norm_k(self.k(video)), self.v(video)
        mixed = self.inner_attention(*(each.unflatten(-1, (self.num_heads, -1)) for each in (query, key, value)))
        out: Tensor = self.o(mixed.flatten(2))
        return out


class RegisterBlock(nn.Module):
    """One look at a video: attention, then a feed-forward, both added to the token."""

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.norm3 = nn.LayerNorm(dim, eps)
        self.norm2 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.cross_attn = TokenAttention(dim, num_heads, eps)

    def forward(self, token: Tensor, video: Tensor) -> Tensor:
        """[B, 1, C] of ``token`` [B, 1, C] and ``video`` [B, L, C]."""
        token = token + self.cross_attn(token, self.norm3(video))
        out: Tensor = token + self.ffn(self.norm2(token))
        return out


class GANCritic(nn.Module):
    """A transformer, ``model``, and a classifier of what its blocks ``watched`` hold.

    ``num_classes`` logits, which the losses take alike. Raises ConfigError for blocks that there are not.
    """

    def __init__(
        self, model: CausalDiT, *, watched: Sequence[int] = (), num_classes: int = CLASSES, ffn_dim: int = FFN_DIM
    ) -> None:
        super().__init__()
        config = model.config
        self.watched = tuple(watched) or watched_blocks(config.num_layers)
        if len(set(self.watched)) < len(self.watched) or not set(self.watched) <= set(range(config.num_layers)):
            raise ConfigError(f"the critic looks at blocks 0 to {config.num_layers - 1}, got {list(self.watched)}")
        dim, eps, count = config.dim, config.eps, len(self.watched)
        self.model = model
        self._cls_pred_branch = nn.Sequential(
            nn.LayerNorm(count * dim), nn.Linear(count * dim, dim), nn.SiLU(), nn.Linear(dim, num_classes)
        )
        self._register_tokens = Registers(count, dim, eps)
        self._gan_ca_blocks = nn.ModuleList(RegisterBlock(dim, ffn_dim, config.num_heads, eps) for _ in self.watched)

    def forward(self, latents: Tensor, timesteps: Tensor, inputs: CausalInputs) -> tuple[Tensor, Tensor]:
        """The velocity [B, C, T, h, w] and the logits [B, num_classes], float32, high for what is real."""
        registers, found = self._register_tokens(), list[Tensor]()

        def watch(index: int, tokens: Tensor) -> None:
            if index in self.watched:
                place = self.watched.index(index)
                token = registers[place].expand(tokens.shape[0], 1, -1)
                found.append(self._gan_ca_blocks[place](token, tokens.to(registers.dtype)))

        velocity = self.model(latents, timesteps, replace(inputs, watch=watch))
        return velocity, self._cls_pred_branch(torch.cat(found, dim=1).flatten(1)).float()


def generator_loss(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """How well the critic tells the student's videos, by ``fake`` logits [B, K]; with ``real`` ones, relative to them.

    A scalar above 0, small where the critic takes them for real.
    """
    return functional.softplus(-fake if real is None else real - fake).mean()


def discriminator_loss(real: Tensor, fake: Tensor, *, relativistic: bool = False) -> Tensor:
    """How badly the critic tells ``real`` from ``fake`` by their logits [B, K], a scalar above 0."""
    if relativistic:
        return functional.softplus(fake - real).mean()
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def roughness(logits: Tensor, moved: Tensor, sigma: float) -> Tensor:
    """The mean square slope of the logits, by those at inputs ``moved`` by noise of size ``sigma``: R1 on real videos,
    R2 on the student's."""
    return ((moved - logits) / sigma).square().mean()
