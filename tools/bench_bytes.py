"""Count the bytes that a call moves through memory outside of its matrix products: deterministic, no clock.

It is what a better order of elementwise steps, fused ones and float32 islands change, on any device.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from wan_core.runtime import OperationCounter


def moved_bytes(call: Callable[[], Any]) -> Counter[str]:
    """Bytes moved per operation by one call without gradients; ``.total()`` is their sum."""
    with torch.no_grad(), OperationCounter() as counter:
        call()
    return counter.counts.per_operation
