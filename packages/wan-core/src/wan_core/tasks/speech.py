"""The sound of a video with speech: what the model hears, and what the file is to sound like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wan_core import media, models
from wan_core.files import plain_text
from wan_core.media import LatentSpec, VideoGeometry, padded_size_within
from wan_core.tasks.base import Components

if TYPE_CHECKING:
    from PIL import Image
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

    def num_clips(self, clip_frames: int, fps: float) -> int:
        """How many clips of ``clip_frames`` video frames it fills."""
        moments = models.WAV2VEC2_LARGE_XLSR_53.num_moments(len(self.waveform))
        return models.num_audio_clips(models.num_interpolated(moments), clip_frames, fps)


def load_speech(path: Path, *, align: float = 0.0) -> Speech:
    """The speech in an audio or video file. The written sound begins ``align`` seconds later, or earlier if negative;
    what the model hears does not move. Raises ``RequestError`` and ``MediaError``.
    """
    track = media.load_audio(path, min_seconds=_MIN_SECONDS)
    heard = media.resample(media.mixed(track), SPEECH_RATE)
    notes = tuple(f"audio {plain_text(path)} {note}" for note in track.notes)
    return Speech(waveform=heard.samples[0], sound=media.shifted(track, align), notes=notes)


def speech_states(speech: Speech, components: Components, *, clip_frames: int, fps: float) -> Tensor:
    """What the network hears, by video frames of whole clips: [1, states, dim, frames], zeros behind the sound.

    The part ``audio_encoder`` hears all of it at once.
    """
    with components.part("audio_encoder").active() as encoder:
        states = models.interpolate_states(encoder(speech.waveform[None].to(components.device))[0])
    rows = models.frame_rows(states.shape[1], clip_frames, fps)
    return models.states_at(states, rows).permute(1, 2, 0)[None]


def geometry_of_speaker(
    image: Image.Image, area: int, latent_spec: LatentSpec, num_frames: int, multiple: int = 64
) -> VideoGeometry:
    """The geometry of a video of who is in the image, of at most ``area`` pixels. Raises ``RequestError``."""
    size = padded_size_within(image.width, image.height, area, multiple)
    return VideoGeometry.for_video(latent_spec, num_frames=num_frames, height=size.height, width=size.width)
