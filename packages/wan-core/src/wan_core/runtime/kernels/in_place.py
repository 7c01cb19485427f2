"""Layers that write their results over what nobody reads any more: less memory and fewer passes over it, any device.

Each takes the place of the plain layer that it is a subclass of, and computes the same within rounding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_core.models.dit.attention import CrossAttention, RMSNorm, SelfAttention
from wan_core.models.dit.blocks import FeedForward
from wan_core.models.dit.inputs import ContextStates
from wan_core.models.dit.modulation import GatedSum, Lengths, ModulatedNorm, by_segment
from wan_core.models.vae.layers import ChannelNorm, Sum


class InPlaceModulatedNorm(ModulatedNorm):
    """Scale and shift over the norm's own result, or rounded as they are written where another dtype is wanted."""

    def modulate(self, normed: Tensor, shift: Tensor, gain: Tensor, lengths: Lengths, dtype: torch.dtype) -> Tensor:
        out = normed if dtype == normed.dtype else torch.empty_like(normed, dtype=dtype)
        for target, part, bias, factor in by_segment(lengths, [out, normed], [shift, gain]):
            torch.addcmul(bias, part, factor, out=target)
        return out


class InPlaceGatedSum(GatedSum):
    """The sum over the residual stream."""

    def forward(self, tokens: Tensor, update: Tensor, gate: Tensor, lengths: Lengths) -> Tensor:
        for part, change, row in by_segment(lengths, [tokens, update], [gate]):
            part.addcmul_(change, row)
        return tokens


class InPlaceFeedForward(FeedForward):
    """The GELU over the first layer's result."""

    def forward(self, hidden: Tensor) -> Tensor:
        up, _, down = self
        hidden = up(hidden)
        torch.ops.aten.gelu_(hidden, approximate="tanh")
        out: Tensor = down(hidden)
        return out


class TwoPassSelfAttention(SelfAttention):
    """Norm and rotation in two passes over one float32 tensor: the weight, and the turn with the norm's factor in it.

    Pairs turn as complex numbers, which is one multiplication in torch; it needs no compiler.
    """

    def rotated(self, hidden: Tensor, norm: nn.Module, rope: Tensor) -> Tensor:
        factors = torch.view_as_complex(rope)[:, None]
        if isinstance(norm, RMSNorm):
            factors = factors * inverse_length(hidden, norm.eps).unsqueeze(-1)
            weight = norm.weight.float()
            weighted = hidden.mul_(weight) if hidden.dtype == torch.float32 else hidden * weight
        else:
            weighted = hidden.float()
        width = weighted.shape[2] // (2 * self.num_heads)
        pairs = torch.view_as_complex(weighted.view(*weighted.shape[:2], self.num_heads, width, 2))
        return torch.view_as_real(pairs.mul_(factors)).flatten(-2).to(hidden.dtype)


class FoldedCrossAttention(CrossAttention):
    """The query norm's weight is applied to the keys, which are fewer and are kept between steps."""

    def context_states(self, context: Tensor, image_tokens: Tensor | None = None) -> ContextStates:
        text = self._folded(self.k(context), self.norm_k), self.heads(self.v(context))
        if image_tokens is None:
            return text
        return *text, self._folded(self.k_img(image_tokens), self.norm_k_img), self.heads(self.v_img(image_tokens))

    def _folded(self, keys: Tensor, norm: nn.Module) -> Tensor:
        if isinstance(norm, RMSNorm) and isinstance(self.norm_q, RMSNorm):
            keys = keys.mul_(inverse_length(keys, norm.eps)).mul_(norm.weight * self.norm_q.weight)
        return self.heads(keys)

    def forward(self, hidden: Tensor, states: ContextStates, residual: Tensor) -> Tensor:
        query = self.q(hidden)
        if isinstance(self.norm_q, RMSNorm):
            query = query.mul_(inverse_length(query, self.norm_q.eps))
        query = self.heads(query)
        mixed: Tensor = self.inner_attention(query, states[0], states[1])
        if len(states) > 2:
            mixed = mixed.add_(self.inner_attention(query, states[2], states[3]))
        return self.add_output(mixed.flatten(2), residual)

    def add_output(self, mixed: Tensor, residual: Tensor) -> Tensor:
        """``residual + o(mixed)``, over the residual."""
        return residual.add_(self.o(mixed))


class InPlaceChannelNorm(ChannelNorm):
    """The weight over the scaled result."""

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * self.factor(x)
        return scaled.mul_(self.gamma.to(scaled.dtype)).to(x.dtype)


class InPlaceSiLU(nn.SiLU):
    """The activation over its input, in the autoencoder always a norm's own result."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(x, inplace=True)


class InPlaceSum(Sum):
    """The sum over the branch."""

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return branch.add_(shortcut)


def inverse_length(hidden: Tensor, eps: float) -> Tensor:
    """One over the root mean square of [..., C]: [..., 1] float32."""
    norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32)
    return torch.rsqrt(norm.square() / hidden.shape[-1] + eps)
