"""A network whose blocks are on the device only while they run: each is copied there while the one before computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wan_core.checkpoints import assign_tensor
from wan_core.runtime.lane import Lane

_ALIGNMENT = 512
PLACES = 2


@dataclass
class _Place:
    """Room for a block on the device: which one is in it, or on its way, and the mark behind its copy."""

    room: Tensor
    block: int | None = None
    there: Any = None


class BlockStream:
    """Two places on the device through which the blocks of a network pass, in their order and around.

    Block k is always in place k mod 2. When it has run, block k + 2 is copied over it, while block k + 1 computes. The
    host waits for nothing: the copy waits for the block before it in that place, and a block for its own copy.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], kept: Sequence[Mapping[str, Tensor]], device: torch.device, lane: Lane
    ) -> None:
        """``kept`` has the weights of each block in host memory, by their names within it."""
        self._lane = lane
        size = max(map(held_bytes, kept))
        rooms = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(min(PLACES, len(blocks)))]
        self._places = [_Place(room) for room in rooms]
        self._copies = []
        self._hooks = []
        for index, (block, weights) in enumerate(zip(blocks, kept, strict=True)):
            self._copies.append(_put(block, weights, self._place(index).room))
            before: Callable[..., None] = partial(self._before, index)
            after: Callable[..., None] = partial(self._after, index)
            self._hooks += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
        self._lane.copies_wait(self._lane.work_mark())  # these places may be memory that work before still uses
        for index in range(len(self._places)):
            self._fetch(index)

    def close(self) -> None:
        """Nothing is on its way any more, and the memory may be used for something else."""
        for hook in self._hooks:
            hook.remove()
        self._lane.work_waits(self._lane.copy_mark())
        self._lane.copies_wait(self._lane.work_mark())
        self._places.clear()

    def _place(self, index: int) -> _Place:
        return self._places[index % len(self._places)]

    def _fetch(self, index: int) -> None:
        place = self._place(index)
        self._lane.copy(self._copies[index])
        place.block, place.there = index, self._lane.copy_mark()

    def _before(self, index: int, *_: Any) -> None:
        place = self._place(index)
        if place.block != index:  # blocks were left out, or run in another order
            self._lane.copies_wait(self._lane.work_mark())
            self._fetch(index)
        self._lane.work_waits(place.there)

    def _after(self, index: int, *_: Any) -> None:
        following = index + len(self._places)
        if following >= len(self._copies):
            following = index % len(self._places)
        if following != index:
            self._lane.copies_wait(self._lane.work_mark())
            self._fetch(following)


def held_bytes(weights: Mapping[str, Tensor]) -> int:
    """The bytes of a place that holds these weights."""
    return sum(_aligned(each.nbytes) for each in weights.values())


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _put(block: nn.Module, weights: Mapping[str, Tensor], room: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Let the block's weights be views of a place; what is to be copied there."""
    start, copies = 0, []
    for name, kept in weights.items():
        view = room[start : start + kept.nbytes].view(kept.dtype).view(kept.shape)
        assign_tensor(block, name, view.data)
        copies.append((view.data, kept))  # whose count of writes is not that of the weight
        start += _aligned(kept.nbytes)
    return copies
