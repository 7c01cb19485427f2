"""Which attention kernel can be used on a device: decided by a small attention, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from wan_core.errors import BackendError, ConfigError
from wan_core.models import InnerAttention
from wan_core.runtime.attention_backends import GPU_BACKENDS, CudnnAttention, FlashAttention, make_attention
from wan_core.runtime.attention_parts import plain_part

ATTENTION_BACKENDS = ("auto", "sdpa", *GPU_BACKENDS)

AUTO_ORDER: Mapping[int, tuple[str, ...]] = {
    8: ("flash2",),
    9: ("flash3", "cudnn", "flash2"),
    10: ("cudnn", "flash2"),
    12: ("flash2",),
}
"""By compute capability (major number) what ``auto`` tries, the fastest first; after them torch's own choice.

As published, not measured by us: on Hopper, heads of 128, version 3 is 1.5 to 2 times as fast as 2 and no slower than
cuDNN on long sequences (arXiv 2407.08608), cuDNN up to 1.75 times as fast as 2 (release notes of torch 2.5). Version 2
has no kernels of its own for Blackwell. ``tools/gpu_check.py`` measures a GPU and says its order. flash4 compiles
itself per shape and is left to who asks for it.
"""

_TOLERANCE = 0.05
# What packages raise that were built for another torch, another GPU, or not at all.
_FAILURES = (ImportError, AttributeError, OSError, RuntimeError, TypeError, ValueError, AssertionError)


@dataclass(frozen=True)
class AttentionChoice:
    """The backend ``name`` to use, and a ``note`` for people: what it is and why not another; empty on the CPU."""

    name: str
    note: str = ""


def choose_attention_backend(name: str, device: torch.device) -> AttentionChoice:
    """The backend called ``name``, or for ``auto`` the first for the GPU that computes what it should.

    Raises ConfigError for an unknown name, BackendError when the named one cannot be used on ``device``.
    """
    if name not in ATTENTION_BACKENDS:
        raise ConfigError(f"attention must be one of {', '.join(ATTENTION_BACKENDS)}, got {name!r}")
    if name == "auto":
        return _first_usable(device)
    if name != "sdpa":
        problem = backend_problem(name, device)
        if problem is not None:
            raise BackendError(f"attention {name} {problem}; use --attention sdpa")
    return AttentionChoice(name, "" if device.type == "cpu" else f"note: attention by {name}, as asked for")


def _first_usable(device: torch.device) -> AttentionChoice:
    if device.type != "cuda":
        return AttentionChoice("sdpa")
    broken: list[str] = []
    for name in AUTO_ORDER.get(torch.cuda.get_device_capability(device)[0], ()):
        problem = backend_problem(name, device)
        if problem is None:
            return AttentionChoice(name, _note(name, broken))
        if not isinstance(problem, _Absence):
            broken.append(f"{name} {problem}")
    return AttentionChoice("sdpa", _note("sdpa", broken))


def _note(name: str, broken: list[str]) -> str:
    return "; ".join([f"note: attention by {name}", *broken])


class _Absence(str):
    """That a package is not there, which is no fault that a user should hear of."""


@cache
def backend_problem(name: str, device: torch.device) -> str | None:
    """Why a kernel of `GPU_BACKENDS` cannot be used on ``device``, to follow its name in a sentence; None if it can.

    Its package is imported and a small attention is computed by it, and compared with the formula.
    """
    backend = GPU_BACKENDS[name]
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] not in backend.capabilities:
        made_for = " and ".join(map(str, backend.capabilities))
        return f"does not run on {device}, it is for GPUs of compute capability {made_for}"
    try:
        difference = _difference(make_attention(name, device), device)
    except _FAILURES as error:
        if _is_absent(backend.module):
            return _Absence(f"is not installed: {backend.remedy}")
        text = str(error).strip().split("\n")[0] or type(error).__name__
        return f"is there but cannot be used: {text}"
    if difference > _TOLERANCE:
        return f"is there but computes something else, by {difference:.2g}"
    return None


def _is_absent(module: str) -> bool:
    """Whether a package is not there, or as an empty name alone, which another one left above its own modules."""
    try:
        if find_spec(module.partition(".")[0]) is None:
            return True
        spec = find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return False
    return spec is None or spec.origin is None


def _difference(attention: InnerAttention, device: torch.device) -> float:
    """The largest difference of ``attention``, whole and as a part, to the formula; heads of 128 in bfloat16."""
    query, key, value = _drawn(device)
    mixed, sums = (each.transpose(1, 2) for each in plain_part(*(each.transpose(1, 2) for each in (query, key, value))))
    # By itself cuDNN's goes on to another kernel where it fails.
    alone = sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if isinstance(attention, CudnnAttention) else nullcontext()
    with torch.no_grad(), alone:
        whole = attention if isinstance(attention, FlashAttention) else InnerAttention()
        found = [(whole(query, key, value), mixed)]
        part = getattr(attention, "part", lambda *_: None)(query, key, value)
        found += [] if part is None else [(part[0], mixed), (part[1], sums)]
    return max(_largest(ours.float() - theirs.float()) for ours, theirs in found)


def _drawn(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, length, 2, 128, generator=generator) for length in (128, 192, 192))
    return query.to(device, torch.bfloat16), key.to(device, torch.bfloat16), value.to(device, torch.bfloat16)


def _largest(difference: Tensor) -> float:
    return difference.abs().nan_to_num(nan=torch.inf).max().item()
