"""UMT5: the text encoder of Wan 2.1 and 2.2, encoder half only.

Paper: Chung et al., "UniMax: Fairer and more Effective Language Sampling for Large-Scale Multilingual Pretraining"
(2023), on the T5 of Raffel et al. (2020). State-dict names follow the Wan release; the code is our own.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from wan_core.models.text.config import UMT5Config

# Headroom kept below the largest float16, so that a clamped residual can still be added to.
_FLOAT16_BOUND = torch.finfo(torch.float16).max - 1000


def relative_position_bucket(relative: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of each position difference (key index minus query index), both directions.

    Integers of any shape to integers in [0, num_buckets): half of the buckets for keys after the query; in each half
    the first half is exact and the rest logarithmic up to ``max_distance`` (T5, Raffel et al., section 2.1).
    """
    half = num_buckets // 2
    exact = half // 2
    distance = relative.abs()
    steps = torch.log(distance.clamp(min=1).double() / exact) / math.log(max_distance / exact) * (half - exact)
    logarithmic = (exact + steps.long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, logarithmic) + half * (relative > 0)


class RelativePositionBias(nn.Module):
    """A learned bias per head and bucket, added to the attention logits."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.max_distance = config.max_distance
        self.embedding = _embedding(config.num_buckets, config.num_heads)

    def forward(self, length: int) -> Tensor:
        """[1, heads, length, length] with queries before keys."""
        table = self.embedding.weight
        # On the CPU, so that a device's logarithm cannot move a bucket's edge.
        relative = torch.arange(1 - length, length, device="cpu")
        buckets = relative_position_bucket(relative, table.shape[0], self.max_distance).to(table.device)
        per_distance = functional.embedding(buckets, table).T  # [heads, 2 * length - 1]
        # Window w starts at difference w - (length - 1): it is the row of query length - 1 - w.
        return per_distance.unfold(1, length, 1).flip(1).unsqueeze(0)


class UMT5Norm(nn.Module):
    """Root-mean-square norm: statistics in float32, the weight applied in its own dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(self.weight.dtype) * self.weight


class UMT5Attention(nn.Module):
    """Self-attention without logit scaling; the scale is in the trained weights."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim_attn, bias=False)
        self.k = nn.Linear(config.dim, config.dim_attn, bias=False)
        self.v = nn.Linear(config.dim, config.dim_attn, bias=False)
        self.o = nn.Linear(config.dim_attn, config.dim, bias=False)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """[B, L, dim] with the bias [1 or B, heads, L, L] of logits; torch's kernel keeps the softmax in float32."""
        query, key, value = (
            rearrange(project(hidden), "b l (n d) -> b n l d", n=self.num_heads) for project in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype), scale=1.0)
        joined: Tensor = self.o(rearrange(mixed, "b n l d -> b l (n d)"))
        return joined


class UMT5FeedForward(nn.Module):
    """GELU-gated feed-forward."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(config.dim, config.dim_ffn, bias=False), nn.GELU(approximate="tanh"))
        self.fc1 = nn.Linear(config.dim, config.dim_ffn, bias=False)
        self.fc2 = nn.Linear(config.dim_ffn, config.dim, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        wide = _bounded(self.fc1(hidden) * self.gate(hidden))
        narrow: Tensor = self.fc2(wide)
        return narrow


class UMT5Block(nn.Module):
    """Pre-norm attention and feed-forward, with the layer's own position bias where the model does not share one."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.norm1 = UMT5Norm(config.dim, config.eps)
        self.attn = UMT5Attention(config)
        self.norm2 = UMT5Norm(config.dim, config.eps)
        self.ffn = UMT5FeedForward(config)
        self.pos_embedding = None if config.shared_position_bias else RelativePositionBias(config)

    def forward(self, hidden: Tensor, key_mask: Tensor | None, shared_bias: Tensor | None = None) -> Tensor:
        """[B, L, dim] with a boolean key mask [B, L], or with the masked bias that all layers share."""
        bias = shared_bias if self.pos_embedding is None else _masked(self.pos_embedding(hidden.shape[1]), key_mask)
        hidden = _bounded(hidden + self.attn(self.norm1(hidden), bias))
        return _bounded(hidden + self.ffn(self.norm2(hidden)))


class UMT5Encoder(nn.Module):
    """Token ids to hidden states. Runs in the dtype of its parameters; float16 residuals are clamped to stay finite."""

    float32_modules: tuple[str, ...] = ()
    block_class = UMT5Block

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = _embedding(config.vocab_size, config.dim)
        self.pos_embedding = RelativePositionBias(config) if config.shared_position_bias else None
        self.blocks = nn.ModuleList(UMT5Block(config) for _ in range(config.num_layers))
        self.norm = UMT5Norm(config.dim, config.eps)
        self._reset_parameters()

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states [B, L, dim] of token ids [B, L].

        ``mask`` [B, L] is true (or 1) where a token is real; other tokens are never attended to, and their own rows
        are to be dropped. Without it every token is real.
        """
        key_mask = None if mask is None else mask.bool()
        shared_bias = None
        if self.pos_embedding is not None:
            shared_bias = _masked(self.pos_embedding(ids.shape[1]), key_mask)
        hidden: Tensor = self.token_embedding(ids)
        for block in self.blocks:
            hidden = block(hidden, key_mask, shared_bias)
        normed: Tensor = self.norm(hidden)
        return normed

    def _reset_parameters(self) -> None:
        """T5's starting scales: with unscaled logits torch's defaults would saturate the softmax."""
        config = self.config
        scales = {
            "q": (config.dim * config.dim_attn / config.num_heads) ** -0.5,
            "k": config.dim**-0.5,
            "v": config.dim**-0.5,
            "o": config.dim_attn**-0.5,
            "0": config.dim**-0.5,
            "fc1": config.dim**-0.5,
            "fc2": config.dim_ffn**-0.5,
            "embedding": config.dim**-0.5,
            "token_embedding": 1.0,
        }
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)) and not module.weight.is_meta:
                nn.init.normal_(module.weight, std=scales[name.rpartition(".")[2]])


def _embedding(count: int, dim: int) -> nn.Embedding:
    """An embedding without torch's own random start: on the meta device that one costs seconds of imports."""
    return nn.Embedding(count, dim, _weight=torch.empty(count, dim))


def _masked(bias: Tensor, key_mask: Tensor | None) -> Tensor:
    """The bias with hidden keys at the lowest finite value, so that a row without any real key stays finite."""
    if key_mask is None:
        return bias
    return torch.where(key_mask[:, None, None, :], bias, torch.finfo(bias.dtype).min)


def _bounded(hidden: Tensor) -> Tensor:
    """float16 activations clamped to finite values; other dtypes as they are."""
    if hidden.dtype != torch.float16:
        return hidden
    return hidden.clamp(-_FLOAT16_BOUND, _FLOAT16_BOUND)
