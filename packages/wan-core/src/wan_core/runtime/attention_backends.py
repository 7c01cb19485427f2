"""Attention kernels, found at run time and put into a model from outside.

torch's own kernel is the default everywhere. flash-attn 2 (Dao, arXiv 2307.08691), 3 (arXiv 2407.08608) and 4 are used
when they are installed and the GPU is one they are made for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from wan_core.errors import BackendError, ConfigError
from wan_core.models import InnerAttention, KeyRanges
from wan_core.runtime.flex import FlexAttention

_HALF = (torch.float16, torch.bfloat16)
_SUM_OPTIONS = ("return_lse", "return_attn_probs")  # of version 4, of 2 and 3; builds of 3 without it always give sums


@dataclass(frozen=True)
class FlashBackend:
    """A flash-attn version: its module, and the compute capabilities of GPUs (major numbers) it is made for."""

    module: str
    package: str
    capabilities: tuple[int, ...]


FLASH_BACKENDS: Mapping[str, FlashBackend] = {
    "flash4": FlashBackend("flash_attn.cute", "flash-attn-4", (9, 10)),
    "flash3": FlashBackend("flash_attn_interface", "flash-attn-3, built from source,", (9,)),
    "flash2": FlashBackend("flash_attn", "flash-attn", (8, 9, 10, 12)),
}
AUTO_ORDER = ("flash3", "flash2")
"""What ``auto`` takes first. flash4 compiles itself per shape and is left to who asks for it."""

ATTENTION_BACKENDS = ("auto", "sdpa", *FLASH_BACKENDS)


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


def is_installed(name: str) -> bool:
    """Whether the package of a flash backend can be imported."""
    try:
        return find_spec(FLASH_BACKENDS[name].module) is not None
    except ModuleNotFoundError:
        return False


def choose_attention_backend(name: str, device: torch.device) -> str:
    """The backend to use: ``name`` itself, or for ``auto`` the best one for ``device``.

    Raises ConfigError for an unknown name, BackendError when the named one is not installed or not for this device.
    """
    if name not in ATTENTION_BACKENDS:
        raise ConfigError(f"attention must be one of {', '.join(ATTENTION_BACKENDS)}, got {name!r}")
    if name == "auto":
        fitting = (flash for flash in AUTO_ORDER if _fits(flash, device) and is_installed(flash))
        return next(fitting, "sdpa")
    if name == "sdpa":
        return name
    if not is_installed(name):
        raise BackendError(
            f"attention {name} needs the package {FLASH_BACKENDS[name].package} (wan-core[flash]); use --attention sdpa"
        )
    if not _fits(name, device):
        raise BackendError(f"attention {name} does not run on {device}; use --attention sdpa")
    return name


def _fits(name: str, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device)[0] in FLASH_BACKENDS[name].capabilities


def apply_attention_backend(model: nn.Module, name: str, device: torch.device) -> str:
    """Give every attention of ``model`` the kernel ``name``; returns the backend in use.

    Raises what :func:`choose_attention_backend` raises, and BackendError when the package cannot be imported.
    """
    chosen = choose_attention_backend(name, device)
    kernel = None if chosen == "sdpa" else _kernel(chosen)
    plain = FlexAttention if device.type == "cuda" else InnerAttention
    for module in list(model.modules()):
        if isinstance(getattr(module, "inner_attention", None), InnerAttention):
            module.inner_attention = plain() if kernel is None else FlashAttention(kernel)
    return chosen


def _kernel(name: str) -> Callable[..., Any]:
    try:
        kernel: Callable[..., Any] = import_module(FLASH_BACKENDS[name].module).flash_attn_func
    except (ImportError, AttributeError, OSError) as error:
        raise BackendError(
            f"attention {name} is installed but cannot be used: {error}; use --attention sdpa"
        ) from error
    return kernel
