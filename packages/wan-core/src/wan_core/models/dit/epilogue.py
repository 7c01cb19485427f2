"""A linear layer and the elementwise step after it, in one pass where a kernel for both exists.

On the CPU oneDNN applies the step while a tile of the product is still in the cache: the hidden states of a
feed-forward, four times as wide as the tokens, are not read and written once more. Results agree to float32 rounding.
"""

import platform
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def linear_gelu(linear: nn.Module, hidden: Tensor) -> Tensor:
    """``gelu(linear(hidden))`` in the tanh form."""
    if _has_fused_kernel(linear, hidden):
        return _fused(hidden, linear.weight, linear.bias, "gelu", [], "tanh")
    out: Tensor = linear(hidden)
    if torch.is_grad_enabled():
        return functional.gelu(out, approximate="tanh")
    torch.ops.aten.gelu_(out, approximate="tanh")
    return out


def linear_add(linear: nn.Module, hidden: Tensor, residual: Tensor) -> Tensor:
    """``residual + linear(hidden)`` in the residual's dtype. Without gradients ``residual`` may be changed in place."""
    if residual.dtype == hidden.dtype and _has_fused_kernel(linear, hidden):
        return _fused(hidden, residual, linear.weight, linear.bias, "add")
    out: Tensor = linear(hidden)
    return residual + out if torch.is_grad_enabled() else residual.add_(out)


def _fused(*arguments: object) -> Tensor:
    """oneDNN's product with a step behind it: one kernel for a step of its own, one for a step with a second tensor."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(*arguments)
    return out


def _has_fused_kernel(linear: nn.Module, hidden: Tensor) -> bool:
    """Whether this is a plain product on the CPU: no gradient, and no wrapper or hook that would be passed by."""
    return (
        not torch.compiler.is_compiling()
        and type(linear) is nn.Linear
        and not torch.is_grad_enabled()
        and type(linear.weight) is nn.Parameter
        and hidden.device.type == linear.weight.device.type == "cpu"
        and hidden.dtype == linear.weight.dtype
        and hidden.dtype in _fused_dtypes()
        and hidden.numel() > 0
        and not any(getattr(linear, hooks) for hooks in _HOOKS)
    )


@cache
def _fused_dtypes() -> frozenset[torch.dtype]:
    """The dtypes of the fused products: none where oneDNN is not torch's library or the processor is not an x86."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return frozenset()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return frozenset({torch.float32})
    return frozenset({torch.float32, torch.bfloat16})
