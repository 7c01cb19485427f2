"""One copy of a part's weights in host memory: filled while they are read, never written back from the device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from wan_core.checkpoints import assign_tensor, block_of
from wan_core.runtime.block_stream import BlockStream
from wan_core.runtime.devices import has_streams
from wan_core.runtime.lane import lane_of

_ALIGNMENT = 512
_FIRST_BLOCK = 64 * 2**20
_LARGEST_BLOCK = 2**30


class HostCopy:
    """The weights of one network, in page-locked memory where the device copies from it on its own.

    :meth:`place` fills it while the weights are read, and :meth:`bind` says whose they are. :meth:`leave` frees the
    device without copying, but for what was changed there; :meth:`enter` copies to the device again. ``copied_down``
    counts the bytes of changed weights. Of a network ``in_blocks`` no more than two blocks are on the device: see
    `BlockStream`; what a block has changed would be lost, so :meth:`leave` raises RuntimeError for it.
    """

    def __init__(self, device: torch.device, *, in_blocks: bool = False) -> None:
        self._device = device
        self._arena = _Arena(page_locked=has_streams(device))
        self._tensors: dict[str, Tensor] = {}
        self._layouts: dict[str, torch.memory_format] = {}
        self._in_blocks = in_blocks
        self._stream: BlockStream | None = None
        self.network: nn.Module | None = None
        self.lane = lane_of(device)
        self.copied_down = 0

    @property
    def allocated(self) -> int:
        """Bytes of host memory that it takes."""
        return self._arena.allocated

    def place(self, name: str, tensor: Tensor) -> Tensor:
        """Keep a weight as it is used; returns it on the device, where weights of passing blocks have no memory yet.

        For `wan_core.checkpoints.load_model`.
        """
        kept = self._arena.like(tensor).copy_(tensor)
        self._tensors[name] = kept
        if self._passes(name):
            return torch.empty((), dtype=kept.dtype, device=self._device).expand(kept.shape)
        return kept.to(self._device, non_blocking=True)

    def bind(self, network: nn.Module) -> None:
        """These are the weights of ``network``, which was read."""
        self.network = network
        self._open_stream()

    def leave(self, changed: Iterable[Tensor] = ()) -> None:
        """Let the network's weights be those in host memory; the values of ``changed`` ones come there first.

        What no file holds, computed buffers, stays where it is; it is small.
        """
        ids = {id(tensor) for tensor in changed}
        self.close()
        for name, tensor in self._owned():
            kept = self._tensors[name]
            if id(tensor) in ids:
                if self._passes(name):
                    raise RuntimeError(f"{name} was changed, and blocks that pass through the device are only read")
                kept.copy_(tensor.detach())
                self.copied_down += kept.nbytes
            self._layouts[name] = _layout(tensor)
            assign_tensor(self._network, name, kept)

    def enter(self) -> None:
        """Copy all weights to the device, and order them as they were there."""
        for name, kept in self._tensors.items():
            if not self._passes(name):
                there = kept.to(self._device, non_blocking=True)
                assign_tensor(self._network, name, there.contiguous(memory_format=self._layouts[name]))
        self._open_stream()

    def close(self) -> None:
        """Nothing is on its way to the device any more."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _passes(self, name: str) -> bool:
        return self._in_blocks and block_of(name) is not None

    def _open_stream(self) -> None:
        if not self._in_blocks:
            return
        kept: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in self._tensors.items():
            index = block_of(name)
            if index is not None:
                kept[index][name.split(".", 2)[2]] = tensor
        blocks = self._network.get_submodule("blocks")
        weights = [kept[index] for index in range(len(kept))]
        self._stream = BlockStream(list(blocks.children()), weights, self._device, self.lane)

    @property
    def _network(self) -> nn.Module:
        if self.network is None:
            raise ValueError("nobody said whose weights these are")
        return self.network

    def _owned(self) -> list[tuple[str, Tensor]]:
        named = [*self._network.named_parameters(), *self._network.named_buffers()]
        return [(name, tensor) for name, tensor in named if name in self._tensors]


class _Arena:
    """Room for tensors in blocks of powers of two, the sizes in which page-locked memory is handed out."""

    def __init__(self, *, page_locked: bool) -> None:
        self._page_locked = page_locked
        self._blocks: list[tuple[Tensor, int]] = []
        self.allocated = 0

    def like(self, tensor: Tensor) -> Tensor:
        """An uninitialised tensor of the shape and dtype of another one."""
        size = -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        for index, (block, used) in enumerate(self._blocks):
            if used + size <= block.numel():
                self._blocks[index] = block, used + size
                return _view(block, used, tensor)
        length = min(2 * self._blocks[-1][0].numel(), _LARGEST_BLOCK) if self._blocks else _FIRST_BLOCK
        length = max(length, 1 << (max(size, 1) - 1).bit_length())
        block = torch.empty(length, dtype=torch.uint8, pin_memory=self._page_locked)
        self.allocated += length
        self._blocks.append((block, size))
        return _view(block, 0, tensor)


def _layout(tensor: Tensor) -> torch.memory_format:
    """In which order the numbers of a weight lie."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if channels_last is None or tensor.is_contiguous() or not tensor.is_contiguous(memory_format=channels_last):
        return torch.contiguous_format
    return channels_last


def _view(block: Tensor, start: int, like: Tensor) -> Tensor:
    # With a count of writes of its own, which views share.
    return block[start : start + like.nbytes].view(like.dtype).view(like.shape).data
