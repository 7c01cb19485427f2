"""Attention kernels that are put into a model from outside; `attention_choice` says which of them can be used.

torch's own choice is the default on the CPU. cuDNN's kernel comes with torch; flash-attn 2 (Dao, arXiv 2307.08691), 3
(arXiv 2407.08608) and 4 are used when they are installed and the GPU is one they are made for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wan_core.errors import ConfigError
from wan_core.models import InnerAttention, KeyRanges
from wan_core.runtime.flex import FlexAttention

_HALF = (torch.float16, torch.bfloat16)
_SUM_OPTIONS = ("return_lse", "return_attn_probs")  # of version 4, of 2 and 3; builds of 3 without it always give sums
_CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@dataclass(frozen=True)
class GPUBackend:
    """A kernel for GPUs: the compute capabilities (major numbers) that it is made for.

    Where it is a package's, ``module`` holds its function, and ``remedy`` says how it comes to be there.
    """

    capabilities: tuple[int, ...]
    module: str = ""
    remedy: str = ""


GPU_BACKENDS: Mapping[str, GPUBackend] = {
    "cudnn": GPUBackend((8, 9, 10, 12)),
    "flash4": GPUBackend((9, 10), "flash_attn.cute", "install flash-attn-4, of wan-core[flash]"),
    "flash3": GPUBackend((9,), "flash_attn_interface", "build flash-attn-3 from its source"),
    "flash2": GPUBackend((8, 9, 10, 12), "flash_attn", "install flash-attn, of wan-core[flash]"),
}


class FlashAttention(FlexAttention):
    """A flash-attn kernel; what it cannot do (float32, key lengths, masks, the CPU) goes to torch's kernels."""

    def __init__(self, kernel: Callable[..., Any]) -> None:
        super().__init__()
        self._kernel = kernel
        self._with_sums = {name: True for name in _SUM_OPTIONS if name in signature(kernel).parameters}

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_lengths: Tensor | None = None,
        mask: Tensor | KeyRanges | None = None,
    ) -> Tensor:
        """[B, Lq, n, d] from [B, Lq, n, d] and [B, Lk, n, d]."""
        if key_lengths is not None or mask is not None or not _is_for_flash(query):
            return super().forward(query, key, value, key_lengths, mask)
        result = self._kernel(query, key, value)
        mixed: Tensor = result[0] if isinstance(result, tuple) else result  # some versions add the log-sum-exp
        return mixed

    def part(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
        """[B, Lq, n, d] of keys that are a part, and the log-sum-exp [B, Lq, n] of their scores.

        None for what the kernel cannot do, and from versions that do not give the sums.
        """
        if not _is_for_flash(query):
            return None
        result = self._kernel(query, key, value, **self._with_sums)
        if not isinstance(result, tuple) or result[1] is None:
            return None
        return result[0], result[1].transpose(1, 2)


def _is_for_flash(query: Tensor) -> bool:
    return query.dtype in _HALF and query.device.type == "cuda"


class CudnnAttention(FlexAttention):
    """torch's attention with cuDNN's kernel first; what that cannot do goes to torch's others."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_lengths: Tensor | None = None,
        mask: Tensor | KeyRanges | None = None,
    ) -> Tensor:
        """[B, Lq, n, d] from [B, Lq, n, d] and [B, Lk, n, d]."""
        with sdpa_kernel(_CUDNN_FIRST, set_priority=True):
            return super().forward(query, key, value, key_lengths, mask)

    def part(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
        """As of `FlashAttention`."""
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        given = torch.backends.cuda.SDPAParams(query, key, value, None, 0.0, False, False)
        if not torch.backends.cuda.can_use_cudnn_attention(given):
            return None
        mixed, sums = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, True)[:2]
        return mixed.transpose(1, 2), sums.reshape(query.shape[:3]).transpose(1, 2)  # some versions add a dim


def make_attention(name: str, device: torch.device) -> InnerAttention:
    """The inner attention ``name``: ``sdpa`` or one of `GPU_BACKENDS`.

    Raises ConfigError for another name, and what the import of a package raises.
    """
    if name == "sdpa":
        return FlexAttention() if device.type == "cuda" else InnerAttention()
    if name not in GPU_BACKENDS:
        raise ConfigError(f"attention {name} is no kernel: choose_attention_backend finds one")
    module = GPU_BACKENDS[name].module
    return FlashAttention(import_module(module).flash_attn_func) if module else CudnnAttention()


def apply_attention_backend(model: nn.Module, name: str, device: torch.device) -> None:
    """Give every attention of ``model`` the kernel that `choose_attention_backend` found."""
    for module in list(model.modules()):
        if isinstance(getattr(module, "inner_attention", None), InnerAttention):
            module.inner_attention = make_attention(name, device)
