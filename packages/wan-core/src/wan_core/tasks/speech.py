"""The sound of a video with speech: what the model hears, and what the file is to sound like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wan_core import media
from wan_core.files import plain_text

if TYPE_CHECKING:
    from torch import Tensor

    from wan_core.media import AudioTrack

SPEECH_RATE = 16_000
"""Samples per second of what wav2vec2 hears."""

_MIN_SECONDS = 0.1  # wav2vec2 needs 400 samples for one state, and two states to say what is between them


@dataclass(frozen=True, kw_only=True)
class Speech:
    """``waveform`` [N] float32 at `SPEECH_RATE`, one channel; ``sound`` is the file's own, which is written with a
    video; ``notes`` are sentences for the user."""

    waveform: Tensor
    sound: AudioTrack
    notes: tuple[str, ...] = ()


def load_speech(path: Path, *, align: float = 0.0) -> Speech:
    """The speech in an audio or video file. The written sound begins ``align`` seconds later, or earlier if negative;
    what the model hears does not move. Raises ``RequestError`` and ``MediaError``.
    """
    track = media.load_audio(path, min_seconds=_MIN_SECONDS)
    heard = media.resample(media.mixed(track), SPEECH_RATE)
    notes = tuple(f"audio {plain_text(path)} {note}" for note in track.notes)
    return Speech(waveform=heard.samples[0], sound=media.shifted(track, align), notes=notes)
