"""Where the tokens of a forward come from and lie: their positions, and which of them this process holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_core.models.dit.rope import Grid


class KeyValueMemory(Protocol):
    """What one self-attention remembers of earlier forwards (causal generation)."""

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take the rotated keys and the values [B, L, n, d] of new tokens; returns all that the queries attend to."""


@dataclass(frozen=True)
class KeyRanges:
    """Which keys the queries see, as data: a kernel makes of it what it needs, and equal values are one mask.

    ``runs``: in the order of the queries, how many of them see the same keys, and the ranges (start, stop) of those.
    ``total_keys``: of how many keys; None for as many as there are queries.
    """

    runs: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
    total_keys: int | None = None

    @property
    def num_queries(self) -> int:
        return sum(count for count, _ in self.runs)

    @property
    def num_keys(self) -> int:
        return self.num_queries if self.total_keys is None else self.total_keys

    def queries(self, start: int, stop: int) -> KeyRanges:
        """What queries ``start`` to ``stop`` see, of the same keys."""
        runs, first = [], 0
        for count, seen in self.runs:
            kept = min(first + count, stop) - max(first, start)
            if kept > 0:
                runs.append((kept, seen))
            first += count
        return KeyRanges(tuple(runs), self.num_keys)

    def dense(self, device: torch.device | str = "cpu") -> Tensor:
        """The mask [queries, keys] bool, True where a query attends. It is shared."""
        return _dense(self, torch.device(device))


@lru_cache(maxsize=4)
def _dense(ranges: KeyRanges, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        mask = torch.zeros(ranges.num_queries, ranges.num_keys, dtype=torch.bool, device=device)
        first = 0
        for count, seen in ranges.runs:
            for start, stop in seen:
                mask[first : first + count, start:stop] = True
            first += count
    return mask


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """What ``embed_latents`` makes: the tokens of a forward and what belongs to them.

    ``tokens``: [B, L, C], owned by the forward, which may change them in place; their dtype is the one in which the
    linear layers run. ``rope``: [L, d / 2, 2], cosines and sines. ``grid``: frames, rows and columns of the tokens
    that the velocity is read from; they begin at token ``start``. A variant may put other tokens in front and behind.
    ``key_lengths``: [B], keys from there on are not attended to. ``mask``: boolean, broadcast to [B, n, L, keys], True
    where a query attends, or what it is made of. ``memories``: one per block. A variant's subclass also carries what
    its ``after_block`` needs.
    """

    tokens: Tensor
    rope: Tensor
    grid: Grid
    start: int = 0
    key_lengths: Tensor | None = None
    mask: Tensor | KeyRanges | None = None
    memories: Sequence[KeyValueMemory] | None = None

    @property
    def length(self) -> int:
        """Tokens of one sample, extra ones included."""
        return self.tokens.shape[1]

    @property
    def stop(self) -> int:
        """The token after the last one that the velocity is read from."""
        frames, rows, columns = self.grid
        return self.start + frames * rows * columns


@dataclass(frozen=True, kw_only=True)
class BlockShared:
    """What all blocks of a forward see alike, cut to the tokens of this process.

    ``lengths``: tokens per segment, one modulation row each. ``dtype``: of the linear layers. ``length``: tokens of the
    full sequence, which ``key_lengths`` and ``mask`` are about. ``layout``: how it is divided.
    """

    rope: Tensor
    lengths: tuple[int, ...]
    dtype: torch.dtype
    length: int
    layout: TokenLayout
    key_lengths: Tensor | None = None
    mask: Tensor | KeyRanges | None = None


class TokenLayout(nn.Module):
    """All tokens in one place: the identity. Sequence parallelism replaces this module."""

    def shard(self, tokens: Tensor, axis: int = 1) -> Tensor:
        """The part of a full-sequence tensor that this process works on."""
        return tokens

    def gather(self, tokens: Tensor, length: int, axis: int = 1) -> Tensor:
        """The full sequence of ``length`` tokens from every process's part."""
        return tokens

    def segments(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        """How many of this process's tokens fall into each segment of the full sequence; 0 for segments elsewhere."""
        return lengths

    def key_lengths(self, lengths: Tensor | None, tokens: Tensor) -> Tensor | None:
        """Key lengths [B] for the inner attention, of full sequences; an uneven ``shard`` adds its padding here."""
        return lengths

    def attend(
        self,
        kernel: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        shared: BlockShared,
        memory: KeyValueMemory | None = None,
    ) -> Tensor:
        """Attention of this process's tokens [B, L, n, d] to those of all, by ``kernel``, an inner attention.

        With a ``memory`` the queries also attend to what it remembers.
        """
        if memory is not None:
            key, value = memory.extend(key, value)
        # The mask only when there is one: not every replacement of the kernel knows masks.
        options = {} if shared.mask is None else {"mask": shared.mask}
        return kernel(query, key, value, shared.key_lengths, **options)


def change_by_frame(
    layout: TokenLayout, sequence: TokenSequence, tokens: Tensor, change: Callable[[Tensor, slice], Tensor]
) -> Tensor:
    """What ``change`` makes of this process's tokens [B, L, C], frame by frame; tokens of no frame stay.

    It gets the tokens [B * f, rows * columns, C] of ``f`` latent frames, and which those are as a slice, and returns
    as many. A token may see what belongs to its own frame, and none of the others: every process does it for the tokens
    that it has, and a frame that is divided among processes is filled up with zeros.
    """
    frames, rows, columns = sequence.grid
    whole = rows * columns
    ahead, *counts, _ = layout.segments((sequence.start, *(whole,) * frames, sequence.length - sequence.stop))
    held = [frame for frame, count in enumerate(counts) if count]
    if not held:
        return tokens
    first, last = held[0], held[-1] + 1
    video = tokens[:, ahead : ahead + sum(counts)]
    before, after = whole - counts[first], (whole - counts[last - 1] if last - first > 1 else 0)
    filled = functional.pad(video, (0, 0, before, after)) if before or after else video
    changed = change(filled.reshape(-1, whole, filled.shape[2]), slice(first, last)).view_as(filled)
    changed = changed[:, before : before + video.shape[1]]
    if video.shape[1] == tokens.shape[1]:
        return changed
    return torch.cat([tokens[:, :ahead], changed, tokens[:, ahead + video.shape[1] :]], dim=1)
