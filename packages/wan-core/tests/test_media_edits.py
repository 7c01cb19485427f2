"""An mp4 that shows a part of what it holds, by its edit list: as phones trim, and as cutting without encoding does."""

import struct
from collections.abc import Sequence
from pathlib import Path

import av
import pytest

from wan_core.errors import RequestError
from wan_core.media import count_frames, probe_video, read_video, to_uint8

from .media_clips import encode_frames, levels_clip, levels_of

RATE = 10  # of encode_frames


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def place_of(data: bytes, *path: bytes) -> tuple[int, int]:
    """Begin and end of a box, found from the outermost on."""
    start, end = 0, len(data)
    for wanted in path:
        while data[start + 4 : start + 8] != wanted:
            start += int.from_bytes(data[start : start + 4], "big")
        end = start + int.from_bytes(data[start : start + 4], "big")
        start += 8
    return start - 8, end


def trimmed(path: Path, parts: Sequence[tuple[float, float]], delay: int) -> Path:
    """Give an mp4 an edit list of (seconds, first frame); ``delay`` is that of its B-frames, in frames."""
    data = path.read_bytes()
    moov, trak = place_of(data, b"moov")[0], place_of(data, b"moov", b"trak")[0]
    movie = int.from_bytes(data[place_of(data, b"moov", b"mvhd")[0] + 20 :][:4], "big")
    media = int.from_bytes(data[place_of(data, b"moov", b"trak", b"mdia", b"mdhd")[0] + 20 :][:4], "big")
    edits = [
        struct.pack(">iiI", round(seconds * movie), round((first + delay) / RATE * media), 1 << 16)
        for seconds, first in parts
    ]
    new = box(b"edts", box(b"elst", struct.pack(">II", 0, len(edits)) + b"".join(edits)))
    start, end = place_of(data, b"moov", b"trak", b"edts")
    data = data[:start] + new + data[end:]
    for outer in (moov, trak):  # the frames lie before, so that their places stay
        size = int.from_bytes(data[outer : outer + 4], "big") + len(new) - (end - start)
        data = data[:outer] + struct.pack(">I", size) + data[outer + 4 :]
    path.write_bytes(data)
    return path


def clip(path: Path, b_frames: int) -> Path:
    frames = to_uint8(levels_clip(24)).permute(1, 2, 3, 0).contiguous()
    pictures = [
        av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24").reformat(format="yuv420p") for frame in frames
    ]
    return encode_frames(path, pictures, "libx264", crf="5", g="8", bf=str(b_frames))


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        ([(2.4, 0)], range(24)),
        ([(2.1, 3)], range(3, 24)),  # within a group of pictures
        ([(1.6, 8)], range(8, 24)),  # from a key frame
        ([(0.9, 11)], range(11, 20)),  # both ends
        ([(0.5, 2), (0.5, 15)], [*range(2, 7), *range(15, 20)]),
    ],
)
def test_counts_and_seconds_are_those_of_what_is_shown(
    tmp_path: Path, parts: list[tuple[float, float]], shown: Sequence[int], b_frames: int
) -> None:
    path = trimmed(clip(tmp_path / "a.mp4", b_frames), parts, delay=2 if b_frames else 0)
    info = probe_video(path)
    assert levels_of(read_video(path).frames) == list(shown)
    assert (info.num_frames, count_frames(path), count_frames(path, fps=RATE)) == (len(shown),) * 3
    assert info.seconds == pytest.approx(len(shown) / RATE)
    assert info.fps == RATE
    assert levels_of(read_video(path, start=0.5, fps=RATE).frames) == list(shown)[5:]
    with pytest.raises(RequestError, match=f"it lasts {len(shown) / RATE:.2f} s"):
        count_frames(path, start=len(shown) / RATE + 0.1)
