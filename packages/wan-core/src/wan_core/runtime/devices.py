"""What the machine has: compute device, number format, and where noise is drawn."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch

from wan_core.errors import BackendError, RequestError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DTYPE_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def resolve_device(name: str | None = None) -> torch.device:
    """The device called ``name`` (``cpu``, ``cuda``, ``cuda:1``, ``mps``), or the best one there is.

    Raises ``RequestError`` for a name that is none, ``BackendError`` for a device that this machine lacks.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RequestError(f"device must be cpu, cuda, cuda:INDEX or mps, got {name!r}") from error
    if device.type == "cuda":
        _require_cuda(device)
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise BackendError("device mps is not available here; use --device cpu")
    elif device.type != "cpu":
        raise RequestError(f"device must be cpu, cuda, cuda:INDEX or mps, got {name!r}")
    return device


def _require_cuda(device: torch.device) -> None:
    if not torch.cuda.is_available():
        raise BackendError(f"device {device} is not available: no CUDA GPU or a CPU-only torch; use --device cpu")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise BackendError(
            f"device {device} does not exist: this machine has {count} GPU(s), cuda:0 to cuda:{count - 1}"
        )


def resolve_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The computing dtype: ``name``, or float32 on the CPU and bfloat16 (float16 on older GPUs) elsewhere.

    Raises ``RequestError`` for an unknown name.
    """
    if name is not None:
        dtype = DTYPES.get(_DTYPE_ALIASES.get(name, name))
        if dtype is None:
            raise RequestError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
        return dtype
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float16
    return torch.bfloat16


def has_streams(device: torch.device) -> bool:
    """Whether copies to a device run beside its work, from page-locked memory; on a simulated GPU they do not."""
    return device.type == "cuda" and torch.cuda.is_available()


def free_memory(device: torch.device) -> int | None:
    """The bytes that a new tensor could have: on a GPU the driver's and what the allocator holds unused, else those of
    the host; None where the system does not tell."""
    if device.type != "cuda":
        return host_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def host_memory() -> int | None:
    """The bytes of host memory that are free or can be freed, of the limit of a container what is left of it."""
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not on Linux
        return None
    with contextlib.suppress(OSError, ValueError):  # no limit, or none that can be read
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return max(free, 0)


def device_facts(device: torch.device) -> dict[str, Any]:
    """For people: the ``device``'s name, its ``memory`` in bytes (None: that of the machine), and ``bfloat16``."""
    if device.type != "cuda":
        return {"device": device.type, "memory": None, "bfloat16": True}
    properties = torch.cuda.get_device_properties(device)
    return {"device": properties.name, "memory": properties.total_memory, "bfloat16": torch.cuda.is_bf16_supported()}


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use so far: on the device, or on the CPU by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
