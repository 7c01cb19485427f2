"""What a causal network has seen while it is trained on its own results: constants that nothing is written over.

The memory of sampling keeps one buffer and writes into it. Here every forward makes new tensors, so that a backward
pass, also one that computes a block anew, finds what the forward saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.memory import LayerStates
from wan_core import RequestError


@dataclass(frozen=True)
class Seen:
    """Keys and values [B, frames * tokens, n, d] of the ``frames`` from ``start`` on, in one layer; no gradients."""

    start: int
    frames: int
    key: Tensor
    value: Tensor


@dataclass
class LayerPast:
    """What one self-attention has seen, by the first frame of each forward."""

    kept: dict[int, Seen] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """One layer as one forward finds it: the ``past`` stays as it is, whatever later forwards add."""

    layer: LayerPast
    start: int
    frames: int
    past: Sequence[tuple[Tensor, Tensor]]

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All that the queries attend to; without gradients the new keys and values are remembered, too."""
        if not torch.is_grad_enabled():
            self.layer.kept[self.start] = Seen(self.start, self.frames, key, value)
        if not self.past:
            return key, value
        keys, values = zip(*self.past, (key, value), strict=True)
        return torch.cat(keys, dim=1), torch.cat(values, dim=1)


class Past:
    """The memory of a network in training, for one video made in ``blocks``; a `FrameMemory`.

    A forward without gradients is remembered in place of an earlier one of the same frames, one with gradients is not.
    What no later block sees is let go.
    """

    def __init__(self, blocks: FrameBlocks) -> None:
        self.blocks = blocks
        self._layers: list[LayerPast] = []

    def place(self, start: int, frames: int, tokens: int, num_layers: int) -> Sequence[LayerStates]:
        """The layers as the block at ``start`` finds them. Raises RequestError for a block that leaves a gap."""
        self._layers = self._layers or [LayerPast() for _ in range(num_layers)]
        spans = self.blocks.seen_before(start)
        return [View(layer, start, frames, self._past(layer, spans, tokens, start)) for layer in self._layers]

    def _past(
        self, layer: LayerPast, spans: Sequence[tuple[int, int]], tokens: int, start: int
    ) -> list[tuple[Tensor, Tensor]]:
        found, count, parts = dict[int, Seen](), 0, list[tuple[Tensor, Tensor]]()
        for seen in sorted(layer.kept.values(), key=lambda each: each.start):
            if seen.start >= start:
                continue
            cuts = [(max(first, seen.start), min(last, seen.start + seen.frames)) for first, last in spans]
            cuts = [(first - seen.start, last - seen.start) for first, last in cuts if first < last]
            for first, last in cuts:
                tokens_of = slice(first * tokens, last * tokens)
                parts.append((seen.key[:, tokens_of], seen.value[:, tokens_of]))
            count += sum(last - first for first, last in cuts)
            if cuts:
                found[seen.start] = seen
        if count != sum(last - first for first, last in spans):
            raise RequestError(f"the block at latent frame {start} leaves a gap: not all frames before it were seen")
        layer.kept = found
        return parts
