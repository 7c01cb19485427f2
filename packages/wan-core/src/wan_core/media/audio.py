"""Sound: read a file as samples in [-1, 1], change its rate, cut it."""

import itertools
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wan_core.errors import MediaError, RequestError
from wan_core.files import existing_file, hash_file, plain_text, read_error

_MAX_RATE = 768_000
_SILENT = 1e-4  # -80 dB
_UNKNOWN_SIZE = 0x7FFF_0000  # what writes to a pipe puts a size of about this or more into its header
_MAX_FRAME = 4096  # samples in a frame of the usual codecs
_MAX_SHORTFALL = 0.2  # seconds: MP3 pads


@dataclass(frozen=True)
class AudioTrack:
    """Sound as ``samples`` [channels, N] float32 in [-1, 1], one or two channels, ``sample_rate`` per second.

    ``notes`` are sentences, to be put behind its name, on what had to be chosen; ``sha256`` is that of the file it was
    read from. Raises ``ValueError`` for another shape or rate.
    """

    samples: Tensor
    sample_rate: int
    notes: tuple[str, ...] = ()
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.samples.ndim != 2 or self.samples.shape[0] not in (1, 2):
            raise ValueError(f"samples must be [1 or 2, N], got {list(self.samples.shape)}")
        if not 0 < self.sample_rate <= _MAX_RATE:
            raise ValueError(f"sample_rate must be 1 to {_MAX_RATE}, got {self.sample_rate}")

    @property
    def seconds(self) -> float:
        return self.samples.shape[1] / self.sample_rate


def load_audio(
    path: str | os.PathLike[str], *, sample_rate: int | None = None, mono: bool = False, min_seconds: float = 0.0
) -> AudioTrack:
    """The sound of an audio or video file, as `mixed` and `resample` make it with ``mono`` and ``sample_rate``.

    WAV, FLAC, OGG and MP3 are read by libsndfile, everything else (AAC, the sound of an mp4) by FFmpeg; more than two
    channels are averaged to one. Several audio streams, silence and samples that are not numbers (silent, then) are
    noted. Raises ``RequestError`` when the file does not exist, ``MediaError`` when it has no sound, is damaged, cut
    off or shorter than ``min_seconds``.
    """
    file = existing_file(path, "audio")
    samples, rate, notes = _read(file)
    seconds = len(samples) / rate
    if len(samples) == 0:
        raise MediaError(f"audio {plain_text(file)} has no samples; record or download it again")
    if seconds < min_seconds:
        raise MediaError(
            f"audio {plain_text(file)} lasts {seconds:.3f} s, at least {min_seconds:g} s are needed; give a longer one"
        )
    wrong = int((~np.isfinite(samples)).any(axis=1).sum())
    if wrong:
        notes = (*notes, f"has {wrong} samples that are not numbers; they are taken as silence or full scale")
        samples = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
    if np.abs(samples).max() < _SILENT:
        notes = (*notes, "is silent")
    if samples.shape[1] > 2:
        samples = samples.mean(axis=1, keepdims=True)
    track = AudioTrack(torch.from_numpy(np.ascontiguousarray(samples.T)), rate, notes, hash_file(file))
    track = mixed(track) if mono else track
    return track if sample_rate is None else resample(track, sample_rate)


def mixed(track: AudioTrack) -> AudioTrack:
    """The track as one channel, the average of its two."""
    return replace(track, samples=track.samples.mean(dim=0, keepdim=True)) if len(track.samples) > 1 else track


def resample(track: AudioTrack, sample_rate: int) -> AudioTrack:
    """The track at another rate, by soxr's high-quality filter, rounded up to a whole number of samples.

    That is what librosa does since 0.10; before it used a filter of resampy, from which this differs by about 1e-3.
    Raises ``RequestError`` for an impossible rate.
    """
    import soxr  # type: ignore[import-untyped]

    if not 0 < sample_rate <= _MAX_RATE:
        raise RequestError(f"audio sample rate must be 1 to {_MAX_RATE}, got {sample_rate}")
    if sample_rate == track.sample_rate:
        return track
    made = soxr.resample(track.samples.T.contiguous().numpy(), track.sample_rate, sample_rate)
    resampled = torch.from_numpy(np.ascontiguousarray(made.T, dtype=np.float32))
    count = -(-track.samples.shape[1] * sample_rate // track.sample_rate)
    return replace(track, samples=_fitted(resampled, count), sample_rate=sample_rate)


def shifted(track: AudioTrack, seconds: float) -> AudioTrack:
    """The track that begins ``seconds`` later, after silence, or for a negative number without its beginning.

    Raises ``RequestError`` when nothing of it is left.
    """
    count = round(seconds * track.sample_rate)
    if -count >= track.samples.shape[1]:
        raise RequestError(f"a sound of {track.seconds:.3f} s cannot begin {-seconds:g} s earlier: nothing is left")
    if count <= 0:
        return replace(track, samples=track.samples[:, -count:])
    return replace(track, samples=torch.nn.functional.pad(track.samples, (count, 0)))


def lengthened(track: AudioTrack, seconds: float) -> AudioTrack:
    """The track, followed by silence where it is shorter than ``seconds``."""
    count = math.ceil(seconds * track.sample_rate)
    return replace(track, samples=_fitted(track.samples, max(count, track.samples.shape[1])))


def _fitted(samples: Tensor, count: int) -> Tensor:
    """Samples [channels, N] cut or followed by zeros to ``count``."""
    return torch.nn.functional.pad(samples, (0, count - samples.shape[1]))


def _read(file: Path) -> tuple[NDArray[np.float32], int, tuple[str, ...]]:
    """All samples [N, channels], their rate, and notes."""
    import soundfile  # type: ignore[import-untyped]

    _check_whole(file)
    try:
        with soundfile.SoundFile(file) as opened:
            told, rate = opened.frames, opened.samplerate
            samples = opened.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return _decode(file)
    except (OSError, MemoryError) as error:
        raise read_error(file, "audio", error) from error
    if told - len(samples) > _MAX_SHORTFALL * rate:
        raise MediaError(
            f"audio {plain_text(file)} is cut off: {len(samples)} of {told} samples are there; copy it again"
        )
    return samples, rate, ()


def _check_whole(file: Path) -> None:
    """Refuse a WAV or AIFF that ends before its header says: libsndfile would give fewer samples and no error."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            kind, length = struct.unpack("4s4s", opened.read(8).ljust(8, b"\0"))
    except OSError as error:
        raise read_error(file, "audio", error) from error
    if kind not in (b"RIFF", b"FORM"):
        return
    told = int.from_bytes(length, "little" if kind == b"RIFF" else "big") + 8
    if size < told < _UNKNOWN_SIZE:
        raise MediaError(f"audio {plain_text(file)} is cut off: {size} of {told} bytes are there; copy it again")


def _decode(file: os.PathLike[str]) -> tuple[NDArray[np.float32], int, tuple[str, ...]]:
    """All samples [N, channels] of the first audio stream, through FFmpeg."""
    import av

    from wan_core.media.containers import ffmpeg_errors, open_container

    with open_container(file, "audio") as container:
        streams = container.streams.audio
        if not streams:
            raise MediaError(f"{plain_text(file)} has no sound; give an audio file or a video with sound")
        if getattr(streams[0], "codec_context", None) is None:
            raise MediaError(f"audio {plain_text(file)} is of a kind that FFmpeg does not know; save it as WAV")
        rate = streams[0].rate
        resampler = av.AudioResampler(format="fltp", layout=streams[0].layout, rate=rate)

        def blocks() -> Iterator[NDArray[np.float32]]:
            for frame in itertools.chain(container.decode(streams[0]), [None]):
                yield from (part.to_ndarray().astype(np.float32) for part in resampler.resample(frame))

        try:
            decoded = list(blocks())
        except ffmpeg_errors() as error:
            raise read_error(file, "audio", error) from error
        notes = (f"has {len(streams)} sounds; the first one is taken",) if len(streams) > 1 else ()
        told = round(float((streams[0].duration or 0) * (streams[0].time_base or 0)) * rate)
    if not decoded:
        raise MediaError(f"{plain_text(file)} has no sound that can be decoded; save it as WAV")
    samples = np.concatenate(decoded, axis=1).T
    # A codec works in whole frames: what fills the last one is no sound.
    return samples[:told] if 0 < len(samples) - told < _MAX_FRAME and told else samples, rate, notes
