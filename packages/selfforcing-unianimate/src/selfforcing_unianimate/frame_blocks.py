"""A video made block by block: which latent frames belong together, and which earlier ones a block sees.

Layouts are those of Self-Forcing (Huang et al., arXiv 2506.08009); with a sink, earlier frames as in StreamingLLM.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wan_core import ConfigError, models

if TYPE_CHECKING:
    from wan_core.models import KeyRanges, WanDiTConfig

Span = tuple[int, int]
"""The first frame of a block and the one after its last."""


@dataclass(frozen=True, kw_only=True)
class FrameBlocks:
    """How a causal network takes a video apart; all numbers are latent frames.

    ``size`` frames are denoised together; ``first_alone`` makes the first frame a block of its own. With a ``window``
    a block sees that many frames up to its own end, itself included, and of those before still the first ``sink``;
    None: everything before it. Raises ConfigError for a window without room for a block.
    """

    size: int = 3
    first_alone: bool = False
    window: int | None = None
    sink: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"a block has at least 1 latent frame, got {self.size}")
        if self.sink < 0 or (self.window is None and self.sink):
            raise ConfigError(f"a sink of {self.sink} frames needs a window that has room for them; give one")
        if self.window is not None and self.window - self.sink < self.size:
            raise ConfigError(
                f"a window of {self.window} latent frames has no room for {self.sink} of the sink and a block of "
                f"{self.size}; it needs at least {self.sink + self.size}"
            )

    def span_at(self, start: int) -> Span:
        """The whole block that begins at frame ``start``."""
        return start, start + (1 if self.first_alone and start == 0 else self.size)

    def count(self, num_frames: int) -> int:
        """How many blocks a video of ``num_frames`` (at least 1) has."""
        alone = int(self.first_alone)
        return alone + -(-(num_frames - alone) // self.size)

    def span(self, index: int, num_frames: int) -> Span:
        """Block ``index`` of a video of ``num_frames``; the last one may be shorter than the others."""
        start, stop = self.span_at(max(0, index * self.size - self.first_alone * (self.size - 1)))
        return start, min(stop, num_frames)

    def spans(self, num_frames: int) -> list[Span]:
        """All blocks of a video of ``num_frames``."""
        return [self.span(index, num_frames) for index in range(self.count(num_frames))]

    def seen_before(self, start: int) -> list[Span]:
        """The frames before the block at ``start`` that it sees; a shorter last block counts as a whole one."""
        if self.window is None:
            return [(0, start)] if start else []
        first = self.span_at(start)[1] - (self.window - self.sink)
        if first <= self.sink:
            return [(0, start)] if start else []
        return [span for span in ((0, self.sink), (first, start)) if span[0] < span[1]]

    def causal_mask(self, num_frames: int, tokens: int) -> KeyRanges:
        """What the tokens see in one forward of all blocks, ``tokens`` of them to a frame."""
        return models.KeyRanges(
            tuple(
                ((stop - start) * tokens, _in_tokens([*self.seen_before(start), (start, stop)], tokens))
                for start, stop in self.spans(num_frames)
            )
        )

    def teacher_forcing_mask(self, num_frames: int, tokens: int) -> KeyRanges:
        """The same for clean frames with the noisy ones behind them: noisy blocks see the clean ones before them."""
        noisy = tuple(
            (
                (stop - start) * tokens,
                _in_tokens([*self.seen_before(start), (num_frames + start, num_frames + stop)], tokens),
            )
            for start, stop in self.spans(num_frames)
        )
        return models.KeyRanges(self.causal_mask(num_frames, tokens).runs + noisy)

    def memory_frames(self, num_frames: int) -> int:
        """The frames that are kept while ``num_frames`` are made."""
        return num_frames if self.window is None else min(self.window, num_frames)

    def memory_bytes(self, config: WanDiTConfig, num_frames: int, tokens: int, itemsize: int) -> int:
        """What the keys and values of these frames take, for one sample and ``itemsize`` bytes a number."""
        return 2 * config.num_layers * self.memory_frames(num_frames) * tokens * config.dim * itemsize


def _in_tokens(spans: Iterable[Span], tokens: int) -> tuple[Span, ...]:
    """Ranges of tokens; neighbouring spans are one."""
    joined: list[Span] = []
    for start, stop in spans:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return tuple((start * tokens, stop * tokens) for start, stop in joined)
