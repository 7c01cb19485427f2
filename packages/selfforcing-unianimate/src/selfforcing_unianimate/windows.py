"""Long videos as overlapping windows, each of a length that the teacher was trained for.

UniAnimate-DiT's scheme: every window but the first has a beginning of its own, which no other one sees and which is not
kept, so that it starts as a video does. Here those latents are further frames before the video's: the one sampler
steps them with all others, and decoding leaves them out.
"""

from dataclasses import dataclass

from wan_core import ConfigError

SIZE = 21
OVERLAP = 4
BEGINNING = 2
"""Latent frames of a window, those that neighbours share, and those that each window begins with on its own."""


def window_spans(latent_frames: int, size: int = SIZE, overlap: int = OVERLAP) -> tuple[range, ...]:
    """The latent frames of each window of a video: ``size`` at a time, the last ones at its end.

    Raises ConfigError unless 0 <= ``overlap`` < ``size``.
    """
    if not 0 <= overlap < size:
        raise ConfigError(f"windows of {size} latent frames overlap by 0 to {size - 1}, got {overlap}")
    if latent_frames <= size:
        return (range(latent_frames),)
    starts = [*range(0, latent_frames - overlap, size - overlap)]
    starts[-1] = latent_frames - size
    return tuple(range(start, start + size) for start in starts)


@dataclass(frozen=True)
class WindowPlan:
    """The windows of a video of ``latent_frames``, and where their frames stand among those that are sampled."""

    latent_frames: int

    @property
    def spans(self) -> tuple[range, ...]:
        """The video's latent frames that each window shows."""
        return window_spans(self.latent_frames)

    @property
    def extra_frames(self) -> int:
        """How many frames stand before the video's: the beginnings of all windows but the first."""
        return BEGINNING * (len(self.spans) - 1)

    @property
    def frames(self) -> tuple[tuple[int, ...], ...]:
        """The sampled frames of each window: its own beginning, then the video's."""
        return tuple(
            (
                *(range(BEGINNING * (index - 1), BEGINNING * index) if index else ()),
                *(self.extra_frames + frame for frame in span[BEGINNING if index else 0 :]),
            )
            for index, span in enumerate(self.spans)
        )
