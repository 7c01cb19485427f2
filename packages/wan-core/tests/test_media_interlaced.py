"""Interlaced frames: each becomes a whole one, at its time, in its colours."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wan_core.media import count_frames, read_video, stream_video
from wan_core.media.video_decoding import TimedFrame, deinterlaced
from wan_core.media.video_frames import look_of, pixels

from .media_clips import PATCH, centre, clip_frames, encode_frames, flat_frame, rgb_frame, smooth_clip

CODES = np.array(PATCH) / 255


def fields_clip(num_fields: int = 12) -> NDArray[np.uint8]:
    """A pattern that moves from field to field, [fields, H, W, 3]."""
    y, x = np.mgrid[:64, :96]
    waves = [127 + 100 * np.sin((x + y / 2 + 5 * field) / 9) for field in range(num_fields)]
    return np.stack([np.repeat(wave[..., None], 3, axis=2) for wave in waves]).round().astype(np.uint8)


def interlaced_file(path: Path, fields: NDArray[np.uint8], order: str, codec: str = "libx264", **options: str) -> Path:
    """Two fields to a frame; ``order``: tff shows the upper lines first, bff the lower ones."""
    first = 0 if order == "tff" else 1
    graph = av.filter.Graph()
    source = graph.add_buffer(width=96, height=64, format="yuv420p", time_base=Fraction(1, 10))
    graph.link_nodes(source, graph.add("setfield", order), graph.add("buffersink")).configure()
    frames = []
    for earlier, later in zip(fields[::2], fields[1::2], strict=True):
        woven = earlier.copy()
        woven[1 - first :: 2] = later[1 - first :: 2]
        graph.vpush(rgb_frame(woven))
        frames.append(graph.vpull())
    options |= {"crf": "1", "bf": "0"} if codec == "libx264" else {"q": "1"}
    return encode_frames(path, frames, codec, tags={"colorspace": 1}, flags="+ildct+ilme", **options)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
@pytest.mark.parametrize("order", ["tff", "bff"])
def test_interlaced_frames_show_their_first_field_whole(tmp_path: Path, order: str, codec: str) -> None:
    fields = fields_clip()
    path = interlaced_file(tmp_path / "a.mkv", fields, order, codec)
    with av.open(str(path)) as container:
        assert all(frame.interlaced_frame for frame in container.decode(video=0))
    video = read_video(path)
    assert len(video.frames) == count_frames(path) == 6
    for index, frame in enumerate(video.frames):
        shown = frame.permute(1, 2, 0).numpy().astype(float)
        right, late = (np.abs(shown - fields[2 * index + offset])[4:-4].mean() for offset in (0, 1))
        assert right < 5 < 15 < late


def test_interlaced_frames_keep_their_times(tmp_path: Path) -> None:
    path = interlaced_file(tmp_path / "a.mkv", fields_clip(40), "tff", g="5")
    whole = read_video(path).frames
    assert len(whole) == 20
    assert torch.equal(read_video(path, start=0.5, end=1.0).frames, whole[5:10])
    assert torch.equal(read_video(path, fps=5).frames, whole[::2])
    assert count_frames(path, start=0.25, fps=20) == len(read_video(path, start=0.25, fps=20).frames)
    assert torch.equal(next(stream_video(path)), whole[0])
    assert len(read_video(path, start=1.9).frames) == 1


@pytest.mark.parametrize(
    ("pixel_format", "full"),
    [("yuv420p", True), ("yuv422p10le", False), ("nv12", True), ("uyvy422", False), ("bgr24", True)],
)
def test_interlaced_frames_keep_their_colours(tmp_path: Path, pixel_format: str, full: bool) -> None:
    graph = av.filter.Graph()
    source = graph.add_buffer(width=64, height=64, format=pixel_format, time_base=Fraction(1, 10))
    graph.link_nodes(source, graph.add("setfield", "tff"), graph.add("buffersink")).configure()
    frames = []
    for _ in range(3):
        frame = flat_frame(CODES, pixel_format, full=full)
        frame.colorspace, frame.color_range = 1, 2 if full else 1
        graph.vpush(frame)
        frames.append(graph.vpull())
    look = look_of(frames[0])
    done = list(deinterlaced(iter([TimedFrame(index, 1.0, frame, look) for index, frame in enumerate(frames)])))
    assert len(done) == 3
    assert not done[0].frame.interlaced_frame
    for each in done:
        assert centre(pixels(each.frame, each.look)[None]) == pytest.approx(PATCH, abs=2)


def test_progressive_frames_pass_untouched_beside_interlaced_ones(tmp_path: Path) -> None:
    path = interlaced_file(tmp_path / "a.mkv", fields_clip(), "tff")
    with av.open(str(path)) as container:
        combed = list(container.decode(video=0))
    whole = clip_frames(smooth_clip(6, 64, 96))
    mixed = [*whole[:2], *combed[:2], *whole[2:4], *combed[2:]]
    timed = [TimedFrame(index / 10, 0.1, frame, look_of(frame)) for index, frame in enumerate(mixed)]
    done = list(deinterlaced(iter(timed)))
    assert [each.time for each in done] == [each.time for each in timed]
    for index in (0, 1, 4, 5):
        assert np.array_equal(done[index].frame.to_ndarray(), mixed[index].to_ndarray())
    for index in (2, 3, 6, 7, 8, 9):
        assert not np.array_equal(done[index].frame.to_ndarray(), mixed[index].to_ndarray())


def test_frames_may_change_their_size_while_interlaced(tmp_path: Path) -> None:
    path = interlaced_file(tmp_path / "a.mkv", fields_clip(), "tff")
    with av.open(str(path)) as container:
        combed = list(container.decode(video=0))
    small = [frame.reformat(width=48, height=32) for frame in combed]
    timed = [TimedFrame(index, 1.0, frame, look_of(frame)) for index, frame in enumerate([*combed, *small, *combed])]
    done = list(deinterlaced(iter(timed)))
    assert [each.frame.width for each in done] == [96] * 6 + [48] * 6 + [96] * 6
    assert [each.time for each in done] == list(range(18))
