"""What a DiT takes besides latents and timesteps, and what a sampling run may keep between its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from wan_core.errors import RequestError

ContextStates = tuple[Tensor, ...]
"""Keys and values of one cross-attention: (k, v), with an image branch (k, v, k_img, v_img)."""

_PER_FRAME = {"channel_concat": 2, "add_condition": 1}


class ContextCache:
    """Keys and values of the conditions, per block. Empty at first; the first forward fills it, later ones reuse it.

    Valid for one network and one set of conditions: a run makes its own.
    """

    def __init__(self) -> None:
        self.states: list[ContextStates] = []

    @property
    def is_filled(self) -> bool:
        return bool(self.states)


@dataclass(frozen=True, kw_only=True)
class DiTInputs:
    """The conditions of a forward. B batch, T latent frames, h x w token grid.

    ``context``: [B, L_text, text_dim] text states, at most text_len rows. ``image_context``: [B, 257*k, image_dim] CLIP
    states. ``extra_context``: [B, K, dim] tokens joined after the embedded text. ``channel_concat``: [B, C, T, H, W]
    joined to the latents on C. ``add_condition``: [B, T, h*w, dim] added after patch embedding. With a
    ``context_cache`` what follows from text and image is computed once for all forwards that share it.
    """

    context: Tensor
    image_context: Tensor | None = None
    extra_context: Tensor | None = None
    channel_concat: Tensor | None = None
    add_condition: Tensor | None = None
    context_cache: ContextCache | None = field(default=None, compare=False, repr=False)

    def with_cache(self) -> Self:
        """The same conditions with a fresh cache, for one run of one network."""
        return replace(self, context_cache=ContextCache())

    def frames(self, start: int, stop: int) -> Self:
        """The conditions of latent frames ``start`` to ``stop``: every per-frame tensor is sliced."""
        cut = {
            name: getattr(self, name).narrow(axis, start, stop - start)
            for name, axis in _PER_FRAME.items()
            if getattr(self, name) is not None
        }
        return replace(self, **cut)

    @classmethod
    def batch(cls, parts: Sequence[Self]) -> Self:
        """Several conditions joined on the batch axis; shorter contexts get zero rows, as the network gives them.

        Raises RequestError when only some of them have a field.
        """
        joined: dict[str, Tensor | ContextCache | None] = {}
        for item in fields(cls):
            values = [getattr(part, item.name) for part in parts]
            given = [value for value in values if value is not None]
            if not given:
                continue
            if item.name == "context_cache":
                joined[item.name] = ContextCache()
            elif len(given) < len(values):
                raise RequestError(f"{item.name} must be given for all parts of a batch or for none")
            else:
                joined[item.name] = _join(given, pad=item.name == "context")
        return cls(**joined)  # type: ignore[arg-type]


def _join(tensors: Sequence[Tensor], *, pad: bool) -> Tensor:
    if pad:
        longest = max(tensor.shape[1] for tensor in tensors)
        tensors = [functional.pad(tensor, (0, 0, 0, longest - tensor.shape[1])) for tensor in tensors]
    return torch.cat(list(tensors))
