"""Sound: read a file as samples in [-1, 1], change its rate, cut it."""

import itertools
import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wan_core.errors import MediaError, RequestError
from wan_core.files import existing_file, plain_text, read_error

_MAX_RATE = 768_000


@dataclass(frozen=True)
class AudioTrack:
    """Sound as ``samples`` [channels, N] float32 in [-1, 1], one or two channels, ``sample_rate`` per second.

    Raises ``ValueError`` for another shape or rate.
    """

    samples: Tensor
    sample_rate: int

    def __post_init__(self) -> None:
        if self.samples.ndim != 2 or self.samples.shape[0] not in (1, 2):
            raise ValueError(f"samples must be [1 or 2, N], got {list(self.samples.shape)}")
        if not 0 < self.sample_rate <= _MAX_RATE:
            raise ValueError(f"sample_rate must be 1 to {_MAX_RATE}, got {self.sample_rate}")

    @property
    def seconds(self) -> float:
        return self.samples.shape[1] / self.sample_rate


def load_audio(path: str | os.PathLike[str], *, sample_rate: int | None = None, mono: bool = False) -> AudioTrack:
    """The sound of an audio or video file, resampled to ``sample_rate``, channels averaged with ``mono``.

    WAV, FLAC, OGG and MP3 are read by libsndfile, everything else (AAC, the sound of an mp4) by FFmpeg; more than two
    channels are averaged to one. Raises ``RequestError`` when the file does not exist, ``MediaError`` when it has no
    sound or is damaged.
    """
    import soundfile  # type: ignore[import-untyped]

    file = existing_file(path, "audio")
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        samples, rate = _decode(file)
    except (OSError, MemoryError) as error:
        raise read_error(file, "audio", error) from error
    if len(samples) == 0:
        raise MediaError(f"audio {plain_text(file)} has no samples; record or download it again")
    if mono or samples.shape[1] > 2:
        samples = samples.mean(axis=1, keepdims=True)
    samples = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
    track = AudioTrack(torch.from_numpy(np.ascontiguousarray(samples.T)), rate)
    return track if sample_rate is None else resample(track, sample_rate)


def resample(track: AudioTrack, sample_rate: int) -> AudioTrack:
    """The track at another rate, by soxr's high-quality filter. Raises ``RequestError`` for an impossible rate."""
    import soxr  # type: ignore[import-untyped]

    if not 0 < sample_rate <= _MAX_RATE:
        raise RequestError(f"audio sample rate must be 1 to {_MAX_RATE}, got {sample_rate}")
    if sample_rate == track.sample_rate:
        return track
    resampled = soxr.resample(track.samples.T.contiguous().numpy(), track.sample_rate, sample_rate)
    return AudioTrack(torch.from_numpy(np.ascontiguousarray(resampled.T, dtype=np.float32)), sample_rate)


def _decode(file: os.PathLike[str]) -> tuple[NDArray[np.float32], int]:
    """All samples [N, channels] of the first audio stream, through FFmpeg."""
    import av

    from wan_core.media.containers import ffmpeg_errors, open_container

    blocks: list[NDArray[np.float32]] = []
    with open_container(file, "audio") as container:
        if not container.streams.audio:
            raise MediaError(f"{plain_text(file)} has no sound; give an audio file or a video with sound")
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp")
        try:
            for frame in itertools.chain(container.decode(stream), [None]):
                blocks += [part.to_ndarray().astype(np.float32) for part in resampler.resample(frame)]
        except ffmpeg_errors() as error:
            raise read_error(file, "audio", error) from error
        rate = stream.rate
    if not blocks:
        raise MediaError(f"{plain_text(file)} has no sound that can be decoded; save it as WAV")
    return np.concatenate(blocks, axis=1).T, rate
