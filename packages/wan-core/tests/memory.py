"""How much memory this process has used."""

import contextlib
import resource
import sys
from pathlib import Path


def peak_memory() -> int:
    """Bytes of the largest resident set since :func:`reset_peak`, or since the start."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> int:
    """Forget the peak where the system can (Linux), so that the next one is seen; the peak now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()
