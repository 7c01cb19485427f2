"""A linear layer and the elementwise step after it in one pass, by oneDNN on the CPU.

The step is applied while a tile of the product is still in the cache: the hidden states of a feed-forward, four times
as wide as the tokens, are not read and written once more. Results agree to float32 rounding.
"""

import platform

import torch
from torch import Tensor, nn

from wan_core.models.dit.blocks import FeedForward
from wan_core.runtime.kernels.in_place import FoldedCrossAttention

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class FusedFeedForward(FeedForward):
    """The first linear layer and its GELU in one pass."""

    def forward(self, hidden: Tensor) -> Tensor:
        up, gelu, down = self
        # Not under autocast, and not where the network was cast to a dtype that this processor has no product for.
        is_fused = hidden.dtype == up.weight.dtype and hidden.dtype in _FUSED_DTYPES
        hidden = _fused(hidden, up.weight, up.bias, "gelu", [], "tanh") if is_fused else gelu(up(hidden))
        out: Tensor = down(hidden)
        return out


class FusedCrossAttention(FoldedCrossAttention):
    """The output layer and the residual sum in one pass, where both have one dtype."""

    def add_output(self, mixed: Tensor, residual: Tensor) -> Tensor:
        if not mixed.dtype == residual.dtype == self.o.weight.dtype or mixed.dtype not in _FUSED_DTYPES:
            return super().add_output(mixed, residual)
        return _fused(mixed, residual, self.o.weight, self.o.bias, "add")


def can_be_fused(linear: nn.Module) -> bool:
    """Whether this is a plain product on the CPU that oneDNN has: no wrapper and no hook that would be passed by."""
    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter
        and linear.weight.device.type == "cpu"
        and linear.weight.dtype in _FUSED_DTYPES
        and not any(getattr(linear, hooks) for hooks in _HOOKS)
    )


def _fused(*arguments: object) -> Tensor:
    """oneDNN's product with a step behind it: one kernel for a step of its own, one for a step with a second tensor."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(*arguments)
    return out


def _fused_dtypes() -> frozenset[torch.dtype]:
    """The dtypes of the fused products: none where oneDNN is not torch's library or the processor is not an x86."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return frozenset()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return frozenset({torch.float32})
    return frozenset({torch.float32, torch.bfloat16})


_FUSED_DTYPES = _fused_dtypes()
