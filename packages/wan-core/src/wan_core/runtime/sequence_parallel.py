"""The tokens of a forward divided among processes; put into a network from outside, by its ``layout``.

Every process holds a run of neighbouring tokens, of all processes the same number or one more; there is no padding, so
nothing has to be masked. What looks at one token at a time goes on as it is, as do cross-attentions. For self-attention
processes exchange heads for tokens (Jacobs et al., "DeepSpeed Ulysses", arXiv 2309.14509): one all-to-all of queries,
keys and values together before the kernel and one of its result behind it. Where there are more processes than
divide the heads, groups of them pass keys and values on in a ring (Liu et al., "Ring Attention", arXiv 2310.01889),
while the kernel is at work on those that are there. On the CPU, where nothing goes on meanwhile, and for masks and
memories, a group gathers them all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from wan_core.errors import ConfigError
from wan_core.models import KeyRanges, WanDiT
from wan_core.models.dit.layout import BlockShared, KeyValueMemory, TokenLayout
from wan_core.runtime.attention_parts import JoinedParts, attend_to_part

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


def apply_sequence_parallel(model: nn.Module, mesh: DeviceMesh) -> None:
    """Divide the tokens of every transformer in ``model`` among the ring and ulysses processes of ``mesh``, in place.

    All of them must call the network alike, and each gets the whole result. For inference. Raises ConfigError for heads
    that the ulysses processes do not divide.
    """
    layout = SequenceLayout(
        everyone=Line.of(mesh["ring", "ulysses"]._flatten("sequence")),
        ring=Line.of(mesh["ring"]),
        ulysses=Line.of(mesh["ulysses"]),
        passes_on=mesh.device_type != "cpu",
    )
    for network in list(model.modules()):
        if not isinstance(network, WanDiT):
            continue
        heads, ulysses = network.config.num_heads, layout.ulysses.count
        if heads % ulysses:
            raise ConfigError(f"{ulysses} processes cannot divide {heads} heads; take a divisor of {heads}")
        network.layout = layout


def cut_points(length: int, parts: int) -> list[int]:
    """Where ``length`` tokens are cut into runs, 0 and ``length`` included; their lengths differ by one at most."""
    return [index * length // parts for index in range(parts + 1)]


@dataclass(frozen=True)
class Line:
    """Processes in one dimension: their group, how many they are, and which of them this one is."""

    group: ProcessGroup
    count: int
    index: int

    @classmethod
    def of(cls, mesh: DeviceMesh) -> Line:
        """Those of a mesh of one dimension."""
        return cls(mesh.get_group(), mesh.size(), mesh.get_local_rank())


class SequenceLayout(TokenLayout):
    """Each of ``everyone`` has one run of the tokens; ``ulysses`` groups are neighbours, ``ring`` goes through them.

    ``passes_on``: keys go around the ring while the kernel works, in place of being gathered before.
    """

    def __init__(self, *, everyone: Line, ring: Line, ulysses: Line, passes_on: bool) -> None:
        super().__init__()
        self.everyone, self.ring, self.ulysses = everyone, ring, ulysses
        self.passes_on = passes_on

    def shard(self, tokens: Tensor, axis: int = 1) -> Tensor:
        start, stop = self._span(tokens.shape[axis])
        return tokens.narrow(axis, start, stop - start).contiguous()

    def gather(self, tokens: Tensor, length: int, axis: int = 1) -> Tensor:
        whole = _gather(tokens.movedim(axis, 0), _runs(cut_points(length, self.everyone.count)), self.everyone.group)
        return whole.movedim(0, axis)

    def segments(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        start, stop = self._span(sum(lengths))
        held, first = [], 0
        for length in lengths:
            held.append(max(0, min(first + length, stop) - max(first, start)))
            first += length
        return tuple(held)

    def attend(
        self,
        kernel: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        shared: BlockShared,
        memory: KeyValueMemory | None = None,
    ) -> Tensor:
        cuts = cut_points(shared.length, self.everyone.count)
        runs = [cuts[start : start + self.ulysses.count + 1] for start in self._ring_starts()]
        own = _runs(runs[self.ring.index])
        heads = query.shape[2]
        query, key, value = self._to_heads((query, key, value), own)
        spans = [(run[0], run[-1]) for run in runs]
        shared = replace(shared, mask=self._own_heads(shared.mask, heads))
        if self.ring.count == 1:
            mixed = super().attend(kernel, query, key, value, shared, memory)
        elif self.passes_on and memory is None and shared.mask is None and shared.key_lengths is None:
            mixed = self._around_ring(kernel, query, key, value, spans)
        else:
            mixed = self._gathered(kernel, query, key, value, shared, memory, spans)
        return self._to_tokens(mixed, own)

    def _span(self, length: int) -> tuple[int, int]:
        cuts = cut_points(length, self.everyone.count)
        return cuts[self.everyone.index], cuts[self.everyone.index + 1]

    def _ring_starts(self) -> range:
        return range(0, self.everyone.count, self.ulysses.count)

    def _own_heads(self, mask: Tensor | KeyRanges | None, heads: int) -> Tensor | KeyRanges | None:
        """The mask of the heads that this process has between the exchanges."""
        if not isinstance(mask, Tensor) or mask.ndim < 3 or mask.shape[-3] == 1:
            return mask
        share = heads // self.ulysses.count
        return mask.narrow(-3, self.ulysses.index * share, share)

    def _to_heads(self, tensors: Sequence[Tensor], runs: Sequence[int]) -> tuple[Tensor, ...]:
        """Own tokens of all heads [B, l, n, d] to all tokens of the group of own heads [B, L, n / u, d]."""
        count = self.ulysses.count
        if count == 1:
            return tuple(tensors)
        batch, length, heads, width = tensors[0].shape
        share = heads // count
        # Tokens first: then runs of any lengths lie one behind the other.
        sent = tensors[0].new_empty(count, length, len(tensors), batch, share, width)
        for index, tensor in enumerate(tensors):
            sent[:, :, index] = tensor.view(batch, length, count, share, width).permute(2, 1, 0, 3, 4)
        received = sent.new_empty(sum(runs), *sent.shape[2:])
        distributed.all_to_all_single(received, sent.flatten(0, 1), list(runs), [length] * count, self.ulysses.group)
        return tuple(each.transpose(0, 1) for each in received.unbind(1))

    def _to_tokens(self, mixed: Tensor, runs: Sequence[int]) -> Tensor:
        """The way back: [B, L, n / u, d] to [B, l, n, d]."""
        count = self.ulysses.count
        if count == 1:
            return mixed
        length = runs[self.ulysses.index]
        sent = mixed.transpose(0, 1).contiguous()
        received = sent.new_empty(count * length, *sent.shape[1:])
        distributed.all_to_all_single(received, sent, [length] * count, list(runs), self.ulysses.group)
        return received.view(count, length, *sent.shape[1:]).permute(2, 1, 0, 3, 4).flatten(2, 3)

    def _around_ring(
        self, kernel: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, spans: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Attention of own queries to the keys of all groups, each of which is here once."""
        here = torch.stack([key.transpose(0, 1), value.transpose(0, 1)], dim=1)  # [L, 2, B, n, d]
        found = JoinedParts()
        for step in range(self.ring.count):
            coming = here
            moves: list[Any] = []
            if step + 1 < self.ring.count:
                start, stop = spans[(self.ring.index - step - 1) % self.ring.count]
                coming, moves = self._pass_on(here, stop - start)
            if here.shape[0] and query.shape[1]:
                keys, values = (each.transpose(0, 1) for each in here.unbind(1))
                found.add(attend_to_part(kernel, query, keys, values))
            for move in moves:
                move.wait()
            here = coming
        return found.whole(query)

    def _pass_on(self, here: Tensor, length: int) -> tuple[Tensor, list[Any]]:
        """Send ``here`` [L, ...] to the next of the ring; what comes from the one before, and what to wait for."""
        coming = here.new_empty(length, *here.shape[1:])
        after, before = ((self.ring.index + way) % self.ring.count for way in (1, -1))
        moves = [
            distributed.P2POp(distributed.isend, here, group=self.ring.group, group_peer=after),
            distributed.P2POp(distributed.irecv, coming, group=self.ring.group, group_peer=before),
        ]
        return coming, distributed.batch_isend_irecv(moves)

    def _gathered(
        self,
        kernel: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        shared: BlockShared,
        memory: KeyValueMemory | None,
        spans: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Attention of own queries to the keys of all groups at once; a ring has no masks and no memory."""
        pair = torch.stack([key.transpose(0, 1), value.transpose(0, 1)], dim=1)
        keys, values = _gather(pair, [stop - start for start, stop in spans], self.ring.group).unbind(1)
        start, stop = spans[self.ring.index]
        mask = shared.mask
        if isinstance(mask, KeyRanges):
            mask = mask.queries(start, stop)
        elif mask is not None and mask.shape[-2] > 1:
            mask = mask.narrow(-2, start, stop - start)
        own = replace(shared, mask=mask)
        return super().attend(kernel, query, keys.transpose(0, 1), values.transpose(0, 1), own, memory)


def _runs(cuts: Sequence[int]) -> list[int]:
    return [after - before for before, after in pairwise(cuts)]


def _gather(own: Tensor, lengths: Sequence[int], group: ProcessGroup) -> Tensor:
    """The runs [l, ...] of all processes of a group, ``lengths`` of them, one behind the other."""
    longest = max(lengths)
    sent = own.contiguous()
    if own.shape[0] < longest:
        sent = torch.cat([own, own.new_zeros(longest - own.shape[0], *own.shape[1:])])
    received = sent.new_empty(longest * len(lengths), *sent.shape[1:])
    distributed.all_gather_into_tensor(received, sent, group=group)
    if min(lengths) == longest:
        return received
    runs = received.view(len(lengths), longest, *sent.shape[1:]).unbind()
    return torch.cat([run[:length] for run, length in zip(runs, lengths, strict=True)])
