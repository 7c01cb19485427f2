"""Videos out while they are made, to whoever reads along: an mp4 in fragments, or raw frames on standard output."""

import contextlib
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from wan_core.errors import MediaError, RequestError
from wan_core.files import plain_text, write_error
from wan_core.media.containers import mp4_boxes
from wan_core.media.encoders import DEFAULT_CRF, Frame, MediaEncoder, Mp4Encoder
from wan_core.media.provenance import Provenance
from wan_core.media.video import exact_rate, frames_of

STANDARD_OUTPUT = "-"


def check_stream(target: str) -> str:
    """A place to stream to: ``-``, a pipe, or the name of an ``.mp4``; returned as it is. Raises ``RequestError``."""
    if target == STANDARD_OUTPUT or is_pipe(target) or Path(f"{target}_").suffix.lower() == ".mp4_":  # no folder
        return target
    raise RequestError(f"a stream goes to a name ending in .mp4, to a pipe, or to -, got {plain_text(target)!r}")


def is_pipe(target: str) -> bool:
    """Whether there is a named pipe of this name."""
    with contextlib.suppress(OSError, ValueError):
        return stat.S_ISFIFO(os.stat(target).st_mode)
    return False


def write_stream(
    frames: Iterable[Tensor], target: str, *, fps: float, provenance: Provenance | None = None, crf: int = DEFAULT_CRF
) -> Path:
    """Write chunks of frames [3, t, H, W] in [-1, 1] as they come; each can be read at once. Returns the target.

    ``-`` is standard output, which gets raw RGB, 3 bytes a pixel, row by row; an ``.mp4`` or a pipe gets H.264 in
    fragments, each when the frame after it has come. What was written stays when something stops it. Raises
    ``RequestError`` as `check_stream`, ``MediaError`` when nobody reads any more or it cannot be written; lets errors
    of ``frames`` through.
    """
    check_stream(target)
    comment = None if provenance is None else provenance.to_json()
    encoder: MediaEncoder | None = None
    with contextlib.ExitStack() as on_failure:
        for frame in frames_of(frames):
            with _errors(target):
                if encoder is None:
                    encoder = _encoder(target, frame, fps, comment, crf)
                    on_failure.callback(encoder.abort)
                encoder.add(frame)
        if encoder is None:
            raise MediaError(f"no frames came for {plain_text(target)}")
        with _errors(target):
            encoder.close()
        on_failure.pop_all()
    return Path(target)


def _encoder(target: str, frame: Frame, fps: float, comment: str | None, crf: int) -> MediaEncoder:
    if target == STANDARD_OUTPUT:
        return _RawFrames()
    size = frame.shape[1], frame.shape[0]
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    return _FragmentedMp4(Path(target), size, exact_rate(fps), comment=comment, crf=crf, audio=None)


class _FragmentedMp4(Mp4Encoder):
    """An mp4 whose frames can be read as they are written, without going back: a pipe will do."""

    container_options: ClassVar[Mapping[str, str]] = {
        "movflags": "+frag_every_frame+empty_moov+default_base_moof",
        "flush_packets": "1",
    }
    codec_options: ClassVar[Mapping[str, str]] = {"tune": "zerolatency"}

    def abort(self) -> None:
        """Let go of the file; of a full disk's, which ends amid a fragment, the whole ones stay."""
        super().abort()
        with contextlib.suppress(OSError):
            if self._path.is_file():
                _cut_to_fragments(self._path)

    def _verify(self) -> None:
        """What went through a pipe cannot be read again."""


def _cut_to_fragments(path: Path) -> None:
    """Take away the end of an mp4 that is no whole fragment: a reader would take the file for a failed copy."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        whole = [end for kind, end in mp4_boxes(file) if kind != b"moof" and end <= size]  # its frame lies behind it
        file.truncate(max(whole, default=0))


class _RawFrames:
    """RGB bytes on standard output."""

    def add(self, frame: Frame) -> None:
        sys.stdout.buffer.write(frame.tobytes())
        sys.stdout.buffer.flush()

    def close(self) -> None:
        sys.stdout.buffer.flush()

    def abort(self) -> None:
        """There is nothing to let go of."""


@contextlib.contextmanager
def _errors(target: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise MediaError(f"nobody reads the stream {plain_text(target)} any more") from error
    except OSError as error:
        raise write_error(f"the stream {target}", error) from error
