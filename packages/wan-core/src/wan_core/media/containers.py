"""Video and audio containers, opened for reading with nothing but local, ordinary demuxers."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from wan_core.errors import MediaError
from wan_core.files import DECODE_ERRORS, plain_text, read_error

if TYPE_CHECKING:
    from av.container import InputContainer

# No playlists: they make FFmpeg open other files, or addresses, that the user did not name.
_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "gif", "apng", "mpegts", "mpeg", "mpegvideo", "flv", "asf",
    "ogg", "wav", "flac", "mp3", "aac", "aiff", "h264", "hevc", "ivf", "mxf", "nut", "caf", "amr", "w64",
)  # fmt: skip


def ffmpeg_errors() -> tuple[type[BaseException], ...]:
    """What PyAV raises for files that nobody writes: several kinds of FFmpeg's errors are none of Python's."""
    from av import FFmpegError

    return *DECODE_ERRORS, FFmpegError


@contextlib.contextmanager
def open_container(path: str | os.PathLike[str], what: str) -> Iterator["InputContainer"]:
    """An existing file as a PyAV container; ``what`` names its role in messages.

    Raises ``MediaError`` when it is no audio or video file.
    """
    import av

    _check_whole(Path(path), what)
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(_DEMUXERS)}
    # Tags that are no UTF-8 are no error: PyAV 19 keeps them as they are, those before have to be told.
    lenient: Any = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
    try:
        container = av.open(os.path.abspath(path), "r", options=options, **lenient)
    except PermissionError as error:
        raise read_error(path, what, error) from error
    except ffmpeg_errors() as error:
        raise MediaError(
            f"{what} {plain_text(path)} is no video or sound that can be read here, or is cut off; save it as mp4"
        ) from error
    with container:
        yield container


def _check_whole(path: Path, what: str) -> None:
    """Refuse an mp4 whose boxes reach beyond the end of the file: FFmpeg would give fewer frames and no error."""
    try:
        with path.open("rb") as file:
            end = os.fstat(file.fileno()).st_size
            position = max((stop for _, stop in mp4_boxes(file)), default=0)
    except OSError as error:
        raise read_error(path, what, error) from error
    if position > end:
        raise MediaError(
            f"{what} {plain_text(path)} is cut off: {end} of at least {position} bytes are there; copy it again"
        )


def mp4_boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and end of each box of an mp4, of which the last may end behind the file; nothing for other files."""
    end, position = os.fstat(file.fileno()).st_size, 0
    while position < end:
        file.seek(position)
        header = file.read(16).ljust(16, b"\0")
        if position == 0 and header[4:8] != b"ftyp":
            return
        size = int.from_bytes(header[:4], "big")
        size = int.from_bytes(header[8:], "big") if size == 1 else size or end - position
        position += max(size, 8)
        yield header[4:8], position
