"""What a DiT takes besides latents and timesteps, and what a sampling run may keep between its steps."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_core.errors import RequestError

ContextStates = tuple[Tensor, ...]
"""Keys and values of one cross-attention: (k, v), with an image branch (k, v, k_img, v_img)."""


class ContextCache:
    """Keys and values of the conditions, per block. Empty at first; the first forward fills it, later ones reuse it.

    It holds one network's states of one set of conditions: a forward of another network, or with other tensors, fills
    it anew. It is for sampling: states that record gradients are not kept, and whoever changes weights takes a fresh
    one. It does not keep the network alive.
    """

    def __init__(self) -> None:
        self._states: list[ContextStates] = []
        self._source: tuple[object, ...] = ()
        self._model: weakref.ref[nn.Module] | None = None

    @property
    def is_filled(self) -> bool:
        return bool(self._states)

    def get(self, model: nn.Module, inputs: DiTInputs) -> list[ContextStates] | None:
        """The states that ``model`` stored for these very tensors, or None."""
        if self._model is None or self._model() is not model:
            return None
        source = _source(inputs)
        same = len(source) == len(self._source) and all(a is b for a, b in zip(source, self._source, strict=True))
        return self._states if same else None

    def store(self, model: nn.Module, inputs: DiTInputs, states: list[ContextStates]) -> None:
        """Keep the states of one forward in place of any earlier ones, unless they record gradients."""
        if any(tensor.requires_grad for pair in states for tensor in pair):
            return
        self._states, self._source, self._model = states, _source(inputs), weakref.ref(model)


def _source(inputs: DiTInputs) -> tuple[object, ...]:
    return tuple(getattr(inputs, name) for name in inputs.context_fields)


@dataclass(frozen=True, kw_only=True)
class DiTInputs:
    """The conditions of a forward. B batch, T latent frames, h x w token grid.

    ``context``: [B, L_text, text_dim] text states, at most text_len rows. ``image_context``: [B, 257*k, image_dim] CLIP
    states. ``extra_context``: [B, K, dim] tokens joined after the embedded text. ``channel_concat``: [B, C, T, H, W]
    joined to the latents on C. ``add_condition``: [B, T, h*w, dim] added after patch embedding. With a
    ``context_cache`` what follows from text and image is computed once for all forwards that share it.

    A subclass adds tensors with the batch on axis 0, names the axis of frames of those that have one in
    ``frame_axes`` and, in ``context_fields``, what its context is made of.
    """

    frame_axes: ClassVar[dict[str, int]] = {"channel_concat": 2, "add_condition": 1}
    context_fields: ClassVar[tuple[str, ...]] = ("context", "image_context", "extra_context")

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
        """The conditions of latent frames ``start`` to ``stop``: every per-frame tensor is sliced, the cache shared.

        Raises RequestError for frames that a tensor does not have.
        """
        cut: dict[str, Tensor] = {}
        for name, axis in self.frame_axes.items():
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if not 0 <= start < stop <= tensor.shape[axis]:
                raise RequestError(f"{name} has latent frames 0 to {tensor.shape[axis]}, asked for {start} to {stop}")
            cut[name] = tensor.narrow(axis, start, stop - start)
        return replace(self, **cut)  # type: ignore[arg-type]

    @classmethod
    def batch(cls, parts: Sequence[Self]) -> Self:
        """Several conditions joined on the batch axis; shorter contexts get zero rows, as the network gives them.

        Has a fresh cache if a part has one. A part without ``add_condition`` gets zeros, which add nothing. Raises
        RequestError when only some of the parts have another field, or differ in one that is no tensor.
        """
        joined: dict[str, Any] = {}
        for item in fields(cls):
            values = [getattr(part, item.name) for part in parts]
            given = [value for value in values if value is not None]
            if not given:
                continue
            if item.name == "context_cache":
                joined[item.name] = ContextCache()
            elif item.name == "add_condition":
                joined[item.name] = _join(item.name, [torch.zeros_like(given[0]) if v is None else v for v in values])
            elif len(given) < len(values):
                raise RequestError(f"{item.name} must be given for all parts of a batch or for none")
            elif isinstance(given[0], Tensor):
                joined[item.name] = _join(item.name, given)
            elif any(value != given[0] for value in given):
                raise RequestError(f"{item.name} must be the same for all parts of a batch, got {given}")
            else:
                joined[item.name] = given[0]
        return cls(**joined)


def _join(name: str, tensors: Sequence[Tensor]) -> Tensor:
    if name == "context":
        longest = max(tensor.shape[1] for tensor in tensors)
        tensors = [functional.pad(tensor, (0, 0, 0, longest - tensor.shape[1])) for tensor in tensors]
    shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
    if len(shapes) > 1:
        raise RequestError(f"{name} must have one shape in all parts of a batch, got {sorted(shapes)}")
    return torch.cat(list(tensors))
