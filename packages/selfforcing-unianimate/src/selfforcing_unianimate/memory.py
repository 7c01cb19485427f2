"""What a causal network remembers of the frames that it has seen: rotated keys and values, in buffers of fixed size.

Where a frame lies follows from its number alone: the sink in front, the others in a ring behind it. So a block that is
run again writes over itself, and nothing is ever moved. All bookkeeping is in Python integers; no device is waited for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from selfforcing_unianimate.frame_blocks import FrameBlocks, Span
from wan_core import RequestError


class LayerStates(Protocol):
    """What one self-attention remembers."""

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take the new keys and values [B, L, n, d]; returns all that the queries attend to."""


class FrameMemory(Protocol):
    """What a causal network remembers of a video."""

    def place(self, start: int, frames: int, tokens: int, num_layers: int) -> Sequence[LayerStates]:
        """The layers, ready for a forward of ``frames`` from frame ``start`` on, ``tokens`` to each."""


@dataclass(frozen=True)
class Placing:
    """Where the frames of one forward go, and what it sees: ranges of tokens in the buffers.

    ``own`` in the order of the frames; ``seen`` with them, ``past`` without.
    """

    own: tuple[Span, ...]
    seen: tuple[Span, ...]
    past: tuple[Span, ...]
    capacity: int


class LayerMemory:
    """Keys and values of one self-attention, [B, frames * tokens, n, d] each; allocated when first written."""

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None
        self.placing: Placing | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take the new keys and values [B, L, n, d]; returns all that the queries attend to.

        With gradients nothing is written: what is remembered stays constant, and a forward without them writes later.
        """
        if self.placing is None:
            raise ValueError("the memory has no place for these tokens; the network asks for it first")
        if self.key is None or self.value is None:
            shape = key.shape[0], self.placing.capacity, *key.shape[2:]
            self.key, self.value = key.new_zeros(shape), value.new_zeros(shape)
        if self.key.shape[0] != key.shape[0] or self.key.dtype != key.dtype:
            raise RequestError(
                f"this memory is of a batch of {self.key.shape[0]} in {self.key.dtype}, got {key.shape[0]} in "
                f"{key.dtype}; begin the video with a fresh one"
            )
        return self._join(self.key, key), self._join(self.value, value)

    def _join(self, buffer: Tensor, new: Tensor) -> Tensor:
        placing, position = self.placing, 0
        assert placing is not None
        if torch.is_grad_enabled() and new.requires_grad:
            return torch.cat([*(buffer[:, start:stop] for start, stop in placing.past), new], dim=1)
        for start, stop in placing.own:
            buffer[:, start:stop] = new[:, position : position + stop - start]
            position += stop - start
        parts = [buffer[:, start:stop] for start, stop in placing.seen]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class CausalMemory:
    """The memory of one network under one set of conditions, for one video.

    ``num_frames`` are the latent frames that will be made, which need room where ``blocks`` has no window.
    """

    def __init__(self, blocks: FrameBlocks, num_frames: int) -> None:
        self.blocks = blocks
        self.num_frames = blocks.memory_frames(num_frames)
        self._ring = (blocks.window or num_frames) - blocks.sink
        self.layers: list[LayerMemory] = []
        self.end = 0
        self._last: Span = (0, 0)
        self._tokens = 0

    @property
    def kept_frames(self) -> list[int]:
        """The number of the frame in each place of the buffers, as far as they are filled."""
        sink, end = self.blocks.sink, self.end
        kept = (*range(min(sink, end)), *range(max(sink, end - self._ring), end))
        frames = {self._slot(frame): frame for frame in kept}
        return [frames[slot] for slot in sorted(frames)]

    @property
    def nbytes(self) -> int:
        """Bytes held at present."""
        tensors = (tensor for layer in self.layers for tensor in (layer.key, layer.value))
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def place(self, start: int, frames: int, tokens: int, num_layers: int) -> Sequence[LayerMemory]:
        """The layers, ready for a forward of ``frames`` from frame ``start`` on, ``tokens`` to each.

        Frames that were seen may be run again: without a window all, else those of the last forward. Raises
        RequestError for frames that leave a gap, that are gone or that have no room, and for another size.
        """
        stop = start + frames
        self._check(start, stop, tokens)
        self.layers = self.layers or [LayerMemory() for _ in range(num_layers)]
        self.end, self._last, self._tokens = stop, (start, stop), tokens
        own = [self._slot(frame) for frame in range(start, stop)]
        # A last block that is cut short sees no further back than a whole one.
        whole = stop if self.blocks.window is None else self.blocks.span_at(start)[1]
        hidden = {self._slot(frame) for frame in range(stop, whole)}
        filled = [slot for slot in range(min(stop, self.num_frames)) if slot not in hidden or slot in own]
        past = [slot for slot in filled if slot not in own]
        placing = Placing(self._ranges(own), self._ranges(filled), self._ranges(past), self.num_frames * tokens)
        for layer in self.layers:
            layer.placing = placing
        return self.layers

    def _check(self, start: int, stop: int, tokens: int) -> None:
        if self._tokens not in (0, tokens):
            raise RequestError(f"this memory is of frames of {self._tokens} tokens, got {tokens}; begin a fresh one")
        if start > self.end:
            raise RequestError(f"the block at latent frame {start} leaves a gap: the memory ends at {self.end}")
        if self.num_frames != self.blocks.window and stop > self.num_frames:
            raise RequestError(
                f"latent frames {start} to {stop} do not fit into a memory of {self.num_frames}; make room for all "
                "frames or give a window"
            )
        if stop - start > self._ring:
            raise RequestError(f"{stop - start} latent frames at once do not fit into a window of {self.num_frames}")
        if start < self.end > self.num_frames and (start, stop) != self._last:
            raise RequestError(f"latent frames before {self._last[0]} are partly forgotten; go on from {self.end}")

    def _slot(self, frame: int) -> int:
        sink = self.blocks.sink
        return frame if frame < sink else sink + (frame - sink) % self._ring

    def _ranges(self, slots: Sequence[int]) -> tuple[Span, ...]:
        """Runs of neighbouring places as ranges of tokens."""
        runs: list[Span] = []
        for slot in slots:
            if runs and runs[-1][1] == slot:
                runs[-1] = (runs[-1][0], slot + 1)
            else:
                runs.append((slot, slot + 1))
        return tuple((start * self._tokens, stop * self._tokens) for start, stop in runs)
