"""Videos read: parts, frame rates, rotation, other containers, damaged and foreign files."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_core.errors import MediaError, RequestError
from wan_core.media import count_frames, probe_video, read_video, stream_video, to_uint8, write_video
from wan_core.media.audio import AudioTrack

from .media_clips import levels_clip, levels_of, smooth_clip


@pytest.fixture(scope="module")
def clip_24fps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 frames at 24 per second, each telling its index."""
    return write_video([levels_clip(24)], tmp_path_factory.mktemp("videos") / "clip.mp4", fps=24)


def encode(path: Path, times: Sequence[Fraction], codec: str = "libx264", **options: str) -> Path:
    """One frame of :func:`levels_clip` per time, in whatever container the ending says."""
    pixels = to_uint8(levels_clip(len(times))).permute(1, 2, 3, 0).contiguous().numpy()
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options={"crf": "5", **options})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 24_000)
        for frame, time in zip(pixels, times, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = int(time * 24_000), Fraction(1, 24_000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


# -- parts and rates


def test_all_frames_in_order(clip_24fps: Path) -> None:
    video = read_video(clip_24fps)
    assert video.frames.dtype == torch.uint8
    assert levels_of(video.frames) == list(range(24))


def test_floats_span_minus_one_to_one(tmp_path: Path) -> None:
    clip = torch.ones(3, 2, 16, 16)
    clip[:, 1] = -1
    frames = read_video(write_video([clip], tmp_path / "a.mp4", fps=8), as_float=True).frames
    assert frames[0].min() == 1
    assert frames[1].max() == -1


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 0.25, range(6)),
        (0.25, 0.5, range(6, 12)),
        (0.5, None, range(12, 24)),
        (0.51, 0.6, range(13, 15)),
        (23 / 24, 99, [23]),
    ],
)
def test_a_part_by_seconds_leaves_its_end_out(
    clip_24fps: Path, start: float, end: float | None, expected: Sequence[int]
) -> None:
    assert levels_of(read_video(clip_24fps, start=start, end=end).frames) == list(expected)


def test_max_frames_stops_early(clip_24fps: Path) -> None:
    assert levels_of(read_video(clip_24fps, max_frames=3).frames) == [0, 1, 2]
    assert levels_of(read_video(clip_24fps, start=0.5, fps=12, max_frames=2).frames) == [12, 14]


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (24, list(range(24))),
        (12, list(range(0, 24, 2))),
        (8, list(range(0, 24, 3))),
        (48, [index // 2 for index in range(48)]),
        (16, [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 21, 22]),
        (1, [0]),
    ],
)
def test_another_rate_takes_the_nearest_frames(clip_24fps: Path, fps: float, expected: list[int]) -> None:
    video = read_video(clip_24fps, fps=fps)
    assert video.fps == fps
    assert levels_of(video.frames) == expected


@settings(max_examples=25, deadline=None)
@given(
    fps=st.sampled_from([5, 10, 15, 16, 24, 25, 30, 60]),
    start=st.floats(0, 0.9),
    length=st.none() | st.floats(0.05, 1.0),
)
def test_resampling_gives_a_frame_per_target_time(
    clip_24fps: Path, fps: int, start: float, length: float | None
) -> None:
    end = None if length is None else start + length
    found = levels_of(read_video(clip_24fps, start=start, end=end, fps=fps).frames)
    until = 1.0 if end is None else min(end, 1.0)
    assert abs(len(found) - max(1, (until - start) * fps)) <= 1
    for index, level in enumerate(found):
        assert abs(level - min((start + index / fps) * 24, 23)) <= 0.5 + 0.03


def test_frames_can_be_picked_by_index(clip_24fps: Path) -> None:
    assert levels_of(torch.stack(list(islice(stream_video(clip_24fps), 4, 9)))) == [4, 5, 6, 7, 8]
    assert levels_of(torch.stack(list(stream_video(clip_24fps, skip=4, max_frames=5)))) == [4, 5, 6, 7, 8]


def test_uneven_frame_times_are_respected(tmp_path: Path) -> None:
    times = [Fraction(0), Fraction(1, 10), Fraction(1, 2), Fraction(9, 10), Fraction(1)]
    path = encode(tmp_path / "a.mkv", times)
    assert levels_of(read_video(path, fps=10).frames) == [0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4]
    assert levels_of(read_video(path, start=0.4, end=1.0).frames) == [2, 3]


def test_times_count_from_the_first_frame_not_from_the_containers_zero(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.ts", [Fraction(index, 24) for index in range(24)])
    with av.open(str(path)) as container:
        assert (container.streams.video[0].start_time or 0) > 0
    assert levels_of(read_video(path, start=0.5, end=0.75).frames) == list(range(12, 18))


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_the_length_does_not_count_a_late_start(tmp_path: Path, name: str) -> None:
    path = encode(tmp_path / name, [Fraction(1234, 1000) + Fraction(index, 10) for index in range(20)], bf="0")
    assert probe_video(path).seconds == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("name", ["a.mkv", "a.mov", "a.avi", "a.mp4"])
def test_other_containers_are_read(tmp_path: Path, name: str) -> None:
    path = encode(tmp_path / name, [Fraction(index, 24) for index in range(8)], bf="0")
    assert levels_of(read_video(path).frames) == list(range(8))
    assert name == "a.avi" or probe_video(path).fps == pytest.approx(24, rel=0.01)


def test_seeking_lands_right_with_distant_key_frames(tmp_path: Path) -> None:
    path = write_video([smooth_clip(200, 16, 16)], tmp_path / "a.mp4", fps=24)
    whole = read_video(path).frames
    assert torch.equal(read_video(path, start=150 / 24, max_frames=5).frames, whole[150:155])


def test_gif_is_read(tmp_path: Path) -> None:
    path = write_video([levels_clip(10)], tmp_path / "a.gif", fps=10)
    assert levels_of(read_video(path).frames) == list(range(10))


# -- rotation

MATRICES = {
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
}


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_rotated_recordings_come_upright(tmp_path: Path, clockwise: int) -> None:
    path = write_video([smooth_clip(2, 32, 48)], tmp_path / "a.mp4", fps=8)
    plain = read_video(path).frames
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 0x10000 for value in MATRICES[clockwise])
    struct.pack_into(">9i", content, matrix, a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(bytes(content))
    assert torch.equal(read_video(path).frames, torch.rot90(plain, -clockwise // 90, dims=(2, 3)))
    info = probe_video(path)
    assert (info.width, info.height) == ((48, 32) if clockwise == 180 else (32, 48))


# -- refusals


@pytest.mark.parametrize("read", [read_video, probe_video, lambda path: next(stream_video(path))])
def test_a_missing_video_is_a_request_error(tmp_path: Path, read) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        read(tmp_path / "none.mp4")


@pytest.mark.parametrize(
    "content",
    [
        b"no video at all",
        bytes(2000),
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile other.mp4\n",
    ],
)
def test_no_video_is_a_media_error_and_playlists_are_not_followed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    for read in (read_video, probe_video):
        with pytest.raises(MediaError, match="no video or sound"):
            read(tmp_path / "a.mp4")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_cut_off_mp4_is_refused_not_shortened(tmp_path: Path, share: float) -> None:
    path = write_video([smooth_clip(24)], tmp_path / "a.mp4", fps=8)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(MediaError, match="cut off"):
        read_video(path)


def test_damaged_frames_are_a_media_error_of_one_line(tmp_path: Path) -> None:
    path = write_video([smooth_clip(24)], tmp_path / "a.mp4", fps=8)
    content = bytearray(path.read_bytes())
    content[content.index(b"mdat") + 4 :] = bytes(len(content) - content.index(b"mdat") - 4)
    path.write_bytes(bytes(content))
    with pytest.raises(MediaError) as caught:
        read_video(path)
    assert "\n" not in str(caught.value)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "a.wav", torch.zeros(800).numpy(), 8000)
    with pytest.raises(MediaError, match="has no video"):
        read_video(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": -1}, "0 <= start"),
        ({"start": 0.5, "end": 0.5}, "0 <= start < end"),
        ({"fps": 0}, "fps"),
        ({"max_frames": 0}, "max_frames"),
        ({"start": 2.0}, r"it lasts 1\.00 s"),
        ({"start": 2.0, "fps": 8}, r"no frame from 2 s to its end"),
    ],
)
def test_impossible_parts_are_request_errors(clip_24fps: Path, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_video(clip_24fps, **arguments)


def test_streaming_can_stop_anywhere(clip_24fps: Path) -> None:
    frames = stream_video(clip_24fps)
    next(frames)
    frames.close()
    assert levels_of(read_video(clip_24fps, max_frames=1).frames) == [0]


def test_probing_sees_sound(tmp_path: Path) -> None:
    track = AudioTrack(torch.zeros(2, 8000), 16_000)
    assert probe_video(write_video([smooth_clip(4)], tmp_path / "a.mp4", fps=8, audio=track)).has_audio


def test_an_unknown_codec_is_a_media_error(tmp_path: Path) -> None:
    path = write_video([smooth_clip(4)], tmp_path / "a.mp4", fps=8)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    for read in (read_video, probe_video, count_frames):
        with pytest.raises(MediaError, match="no decoder here"):
            read(path)


@pytest.mark.parametrize("kind", [av.error.ExternalError, av.error.PatchWelcomeError, av.error.UnknownError])
def test_errors_of_ffmpeg_that_are_none_of_pythons_are_media_errors(
    clip_24fps: Path, monkeypatch: pytest.MonkeyPatch, kind: type[av.FFmpegError]
) -> None:
    def fail(*_: object) -> None:
        raise kind(1, "an external library failed")

    with monkeypatch.context() as patched:
        patched.setattr("wan_core.media.video_reader.pixels", fail)
        with pytest.raises(MediaError, match="external library"):
            read_video(clip_24fps)
    monkeypatch.setattr("wan_core.media.video_decoding._decoded", fail)
    for read in (read_video, probe_video):
        with pytest.raises(MediaError, match="external library"):
            read(clip_24fps)
