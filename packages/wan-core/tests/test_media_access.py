"""Frames by number: decoded once where numbers rise, begun at key frames, and what packets alone say of a video."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_core.errors import MediaError, RequestError
from wan_core.media import VideoFrames, frame_times, read_video, to_uint8, video_reader, write_video
from wan_core.media.video_decoding import TimedFrame, packet_times
from wan_core.media.video_reader import chosen_frames

from .media_clips import levels_clip, levels_of
from .test_media_edits import clip as groups_of_eight
from .test_media_edits import trimmed
from .test_media_interlaced import fields_clip, interlaced_file

COUNT = 120
Decoded = list[float]


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 frames of a moving bar with frames out of order, a key frame every ten at most."""
    frames = torch.full((3, COUNT, 32, 160), -0.5)
    for index in range(COUNT):
        frames[:, index, :, index : index + 32] = 0.5
    path = tmp_path_factory.mktemp("videos") / "long.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"g": "10", "bf": "2", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 160, 32, "yuv420p"
        for pixels in to_uint8(frames).permute(1, 2, 3, 0).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """The times of all frames that are decoded."""
    times: Decoded = []
    decode = video_reader.decoded_frames

    def counted(*arguments: Any) -> Iterator[TimedFrame]:
        for frame in decode(*arguments):
            times.append(frame.time)
            yield frame

    monkeypatch.setattr(video_reader, "decoded_frames", counted)
    return times


@pytest.mark.parametrize("overlap", [1, 5])
def test_parts_that_follow_each_other_decode_each_frame_once(long_clip: Path, decoded: Decoded, overlap: int) -> None:
    whole = read_video(long_clip).frames
    decoded.clear()
    video = VideoFrames(long_clip, kept=overlap)
    for start in range(0, COUNT - overlap, 23):
        numbers = range(start, min(start + 23 + overlap, COUNT))
        assert torch.equal(torch.stack(list(video.frames(numbers))), whole[list(numbers)])
    assert len(decoded) == COUNT


def test_a_part_far_ahead_and_one_behind_are_begun_at_a_key_frame(long_clip: Path, decoded: Decoded) -> None:
    whole = read_video(long_clip).frames
    decoded.clear()
    video = VideoFrames(long_clip)
    for numbers in ([100, 101, 102], [60], [61, 99]):
        assert torch.equal(torch.stack(list(video.frames(numbers))), whole[numbers])
    assert len(decoded) < 100


@settings(max_examples=25, deadline=None)
@given(numbers=st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=8), kept=st.integers(1, 4))
def test_any_order_gives_the_frames_of_the_whole(long_clip: Path, numbers: list[int], kept: int) -> None:
    whole = whole_of(long_clip)
    assert torch.equal(torch.stack(list(VideoFrames(long_clip, kept=kept).frames(numbers))), whole[numbers])


WHOLE: dict[Path, torch.Tensor] = {}


def whole_of(path: Path) -> torch.Tensor:
    """The frames of a file, read once."""
    if path not in WHOLE:
        WHOLE[path] = read_video(path).frames
    return WHOLE[path]


@pytest.mark.parametrize("ending", ["mkv", "avi", "webm"])
def test_a_file_that_does_not_tell_its_times_is_read_from_its_begin(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    codec = "libvpx" if ending == "webm" else "libx264"
    frames = to_uint8(levels_clip(24)).permute(1, 2, 3, 0).contiguous().numpy()
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options={"g": "8"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    assert packet_times(path) is None
    assert len(frame_times(path)) == 24
    assert levels_of(torch.stack(list(VideoFrames(path).frames([20, 3, 4, 23])))) == [20, 3, 4, 23]


def test_frames_end_where_the_video_does(long_clip: Path, tmp_path: Path) -> None:
    video = VideoFrames(long_clip)
    assert len(list(video.frames([COUNT - 1, COUNT, 3]))) == 1
    assert len(list(video.frames([500]))) == 0
    assert torch.equal(next(video.frames([7])), whole_of(long_clip)[7])
    with pytest.raises(RequestError, match=r"none\.mp4"):
        next(VideoFrames(tmp_path / "none.mp4").frames([0]))


def decoded_times(path: Path) -> list[float]:
    return [frame.time for frame in chosen_frames(path, 0.0, None, None, None)]


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("options", [{}, {"bf": "2", "g": "12"}])
def test_packets_tell_the_times_that_decoding_gives(tmp_path: Path, codec: str, options: dict[str, str]) -> None:
    path = tmp_path / "a.mp4"
    steps = [0, 40, 80, 100, 120, 200, 240, 241, 300, 340]
    more = {"x265-params": "log-level=none:pools=none:frame-threads=1:bframes=0"} if codec == "libx265" else options
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=dict(more))
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, milliseconds in enumerate(steps):
            frame = av.VideoFrame(64, 64, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([20 * index + 20]) * plane.buffer_size)
            frame.pts, frame.time_base = milliseconds, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    said = packet_times(path)
    assert said is not None
    assert said.times == pytest.approx([each / 1000 for each in steps], abs=1e-3)
    assert frame_times(path) == decoded_times(path)


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("parts", [[(2.1, 3)], [(1.6, 8)], [(0.9, 11)], [(0.5, 2), (0.5, 15)]])
def test_what_an_edit_list_hides_is_counted_by_nobody(
    tmp_path: Path, parts: Sequence[tuple[float, float]], b_frames: int
) -> None:
    path = trimmed(groups_of_eight(tmp_path / "a.mp4", b_frames), parts, delay=2 if b_frames else 0)
    assert frame_times(path) == decoded_times(path)
    whole, video = levels_of(read_video(path).frames), VideoFrames(path)
    assert levels_of(torch.stack(list(video.frames([len(whole) - 1, 0, 5])))) == [whole[-1], whole[0], whole[5]]


def test_packets_of_interlaced_video_do_not_tell(tmp_path: Path) -> None:
    path = interlaced_file(tmp_path / "a.mp4", fields_clip(40), "tff", g="5")
    assert packet_times(path) is None
    assert torch.equal(next(VideoFrames(path).frames([12])), read_video(path).frames[12])


def test_a_file_that_is_cut_off_is_refused_though_its_index_is_whole(tmp_path: Path) -> None:
    path = write_video([levels_clip(24)], tmp_path / "a.mp4", fps=24)
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    data = (tmp_path / "b.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(data[: len(data) - 60])
    with pytest.raises(MediaError, match="cut off"):
        frame_times(tmp_path / "b.mp4")
