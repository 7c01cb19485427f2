"""Prompts to text states, with a small cache so that several videos of one prompt encode it once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from wan_core.models import TextEncoder
    from wan_core.runtime import Placed


class PromptCache:
    """The text states of the last ``size`` prompts, kept in host memory."""

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._states: OrderedDict[str, Tensor] = OrderedDict()

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._states

    def reserve(self, count: int) -> None:
        """Room for the prompts of a run, if it is not there yet."""
        self._size = max(self._size, count)

    def put(self, prompt: str, states: Tensor) -> None:
        self._states[prompt] = states.to("cpu")
        self._states.move_to_end(prompt)
        while len(self._states) > self._size:
            self._states.popitem(last=False)

    def get(self, prompt: str) -> Tensor:
        return self._states[prompt]


def encode_prompts(
    encoder: Placed[TextEncoder], prompts: Sequence[str], cache: PromptCache, device: torch.device
) -> list[Tensor]:
    """The text states of each prompt, [1, L, dim] on ``device`` with L its own token count.

    The encoder is loaded only if a prompt is not in ``cache``.
    """
    unknown = list(dict.fromkeys(prompt for prompt in prompts if prompt not in cache))
    states = {prompt: cache.get(prompt) for prompt in prompts if prompt in cache}
    if unknown:
        with encoder.active() as encode:
            states.update(zip(unknown, encode(unknown), strict=True))
        for prompt in unknown:
            cache.put(prompt, states[prompt])
    return [states[prompt].to(device).unsqueeze(0) for prompt in prompts]
