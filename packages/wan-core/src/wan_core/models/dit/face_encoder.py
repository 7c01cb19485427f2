"""From the motion of a face, frame by frame, to a few tokens of each latent frame, and what looks at them.

Source: the released Wan2.2-Animate-14B (``face_encoder``, ``face_adapter``); the code is our own.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from wan_core.models.dit.attention import InnerAttention, RMSNorm
from wan_core.models.dit.causal_conv1d import CausalConv1d, coarser
from wan_core.models.dit.config import AnimateDiTConfig

_EPS = 1e-6


class FaceTower(nn.Module):
    """Three causal convolutions that take four frames to one, and a learned token beside the ``num_heads`` made."""

    def __init__(self, config: AnimateDiTConfig) -> None:
        super().__init__()
        width, self.num_heads = config.face_encoder_hidden_dim, config.face_encoder_num_heads
        self.conv1_local = CausalConv1d(config.motion_encoder_dim, width * self.num_heads)
        self.conv2 = CausalConv1d(width, width, stride=2)
        self.conv3 = CausalConv1d(width, width, stride=2)
        self.out_proj = nn.Linear(width, config.dim)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, config.dim))

    def forward(self, motion: Tensor) -> Tensor:
        """[B, T, motion_encoder_dim] to [B, ceil(ceil(T / 2) / 2), num_heads + 1, dim]: token i sees up to frame 4i."""
        batch = motion.shape[0]
        parts = rearrange(self.conv1_local(motion.mT), "b (n c) t -> (b n) c t", n=self.num_heads)
        states = rearrange(coarser(parts, (self.conv2, self.conv3)), "(b n) c t -> b t n c", b=batch)
        tokens = self.out_proj(states)
        padding = self.padding_tokens.to(tokens).expand(batch, tokens.shape[1], -1, -1)
        return torch.cat([tokens, padding], dim=2)


class FaceBlock(nn.Module):
    """The tokens of each latent frame attend to those of the face in it."""

    def __init__(self, config: AnimateDiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads = config.num_heads
        self.linear1_kv = nn.Linear(dim, 2 * dim)
        self.linear1_q = nn.Linear(dim, dim)
        self.linear2 = nn.Linear(dim, dim)
        self.q_norm = RMSNorm(config.head_dim, _EPS)
        self.k_norm = RMSNorm(config.head_dim, _EPS)
        self.inner_attention = InnerAttention()

    def forward(self, tokens: Tensor, face: Tensor) -> Tensor:
        """What is to be added to tokens [N, L, C] float32 of N frames, with the face [N, K, C] of each."""
        dtype = self.linear1_q.weight.dtype
        query = self._heads(self.linear1_q(_normed(tokens).to(dtype)))
        key, value = (self._heads(part) for part in self.linear1_kv(_normed(face).to(dtype)).chunk(2, dim=-1))
        seen: Tensor = self.inner_attention(self.q_norm(query), self.k_norm(key), value)
        out: Tensor = self.linear2(seen.flatten(2))
        return out

    def _heads(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:-1], self.num_heads, -1)


class FaceAdapter(nn.Module):
    """After some blocks the tokens look at the face."""

    def __init__(self, config: AnimateDiTConfig) -> None:
        super().__init__()
        self.interval = config.inject_face_latents_blocks
        self.fuser_blocks = nn.ModuleList(FaceBlock(config) for _ in range(config.num_layers // self.interval))

    def follows(self, block: int) -> bool:
        """Whether the tokens look at the face after this block."""
        return block % self.interval == 0

    def forward(self, block: int, tokens: Tensor, face: Tensor) -> Tensor:
        """Tokens [N, L, C] float32 of N frames after ``block``, with the face [N, K, C] of each, and what they saw."""
        seen: Tensor = self.fuser_blocks[block // self.interval](tokens, face)
        return tokens + seen


def _normed(states: Tensor) -> Tensor:
    """Layer norm without weights, in float32."""
    return functional.layer_norm(states.float(), states.shape[-1:], eps=_EPS)
