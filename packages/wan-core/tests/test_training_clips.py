"""How long a clip is, which clips a video gives, and images as clips of one frame."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from wan_core.errors import MediaError, RequestError
from wan_core.media import count_frames, read_video
from wan_core.training import Cache, ClipRule, parse_clips, write_cache
from wan_core.training.data import ClipSettings, Example, check_example, load_clip
from wan_core.training.examples import Sampler, describe_cache

WAN = ClipSettings(num_frames=81, fps=16, area=32 * 32)


def encode(path: Path, times: list[Fraction], last: Fraction | None = None, codec: str = "libx264") -> Path:
    """A frame per time in seconds; 16 blocks of frame i are the bits of i. ``last`` is how long the last is shown."""
    scale = 90_000
    ends = [*times[1:], times[-1] + (last or times[-1] - times[-2])]
    durations = [round((end - time) * scale) for time, end in zip(times, ends, strict=True)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options={"crf": "1", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, scale)
        packets: list[av.Packet] = []
        for index, time in enumerate(times):
            bits = np.array([255 * (index >> bit & 1) for bit in range(16)], np.uint8).reshape(2, 8, 1)
            pixels = bits.repeat(16, 0).repeat(4, 1).repeat(3, 2)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(time * scale), Fraction(1, scale)
            packets += stream.encode(frame)
        for packet, duration in zip([*packets, *stream.encode(None)], durations, strict=True):
            packet.duration = duration  # without B-frames packets come in the order of frames
            container.mux(packet)
    return path


def steady(path: Path, rate: Fraction | int, count: int) -> Path:
    return encode(path, [Fraction(index) / rate for index in range(count)])


def indices_of(clip: Tensor) -> list[int]:
    """The index of the frame of `encode` that each frame of a clip [3, F, H, W] shows."""
    bits = (clip[0, :, 8::16, 2::4] > 0).flatten(1).long()
    return (bits * 2 ** torch.arange(16)).sum(1).tolist()


def assert_nearest(found: list[int], times: list[Fraction], fps: int) -> None:
    """Independent of the reader: frame k is the nearest to k / fps, but for the milliseconds of a container."""
    for k, index in enumerate(found):
        distances = [abs(time - Fraction(k, fps)) for time in times]
        assert distances[index] <= min(distances) + Fraction(2, 1000), (k, index)


def outcome(example: Example, settings: ClipSettings) -> tuple[list[int] | None, list[int] | None]:
    """The frames that a check promises to be readable, and those that loading gives; None where it refuses."""
    try:
        promised = [load_clip(each, settings) for each in check_example(example, settings)]
    except MediaError:
        promised = []
    try:
        loaded = indices_of(load_clip(example, settings))
    except MediaError:
        loaded = None
    return (indices_of(promised[0]) if promised else None), loaded


# -- the one rule of length


@pytest.mark.parametrize("rate", [24, 25, 30, 16, 60, Fraction(30000, 1001), Fraction(24000, 1001)])
@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_five_seconds_are_81_frames_at_16_fps(tmp_path: Path, rate: Fraction, container: str) -> None:
    count = int(-(-5 * rate // 1))
    path = steady(tmp_path / f"a.{container}", rate, count)
    checked, loaded = outcome(Example(file=path, caption="x"), WAN)
    assert checked == loaded
    assert loaded is not None
    assert len(loaded) == 81
    times = [Fraction(index) / rate for index in range(count)]
    assert_nearest(loaded[:80], times, 16)
    assert loaded[80] == count - 1  # the nearest to 5 s, though a video of 5.000 s has ended then


@pytest.mark.parametrize(
    ("count", "is_long_enough"), [(12, False), (14, False), (15, False), (16, True), (17, True), (18, True), (40, True)]
)
def test_a_clip_short_by_less_than_a_frame_holds_its_last(tmp_path: Path, count: int, is_long_enough: bool) -> None:
    path = steady(tmp_path / "a.mp4", 8, count)
    checked, loaded = outcome(Example(file=path, caption="x"), ClipSettings(num_frames=17, fps=8, area=1024))
    assert checked == loaded
    assert loaded == ([*range(min(17, count)), *([15] if count == 16 else [])] if is_long_enough else None)


@pytest.mark.parametrize("start", [0.0, 0.3, 1.0, 1.9, 2.0, 2.05, 2.11, 2.2, 3.0])
@pytest.mark.parametrize("end", [None, 4.0, 4.125, 4.2])
def test_checking_and_loading_agree_on_every_part(tmp_path: Path, start: float, end: float | None) -> None:
    path = steady(tmp_path / "a.mp4", 30, 127)
    example = Example(file=path, caption="x", start=start, end=end)
    checked, loaded = outcome(example, ClipSettings(num_frames=17, fps=8, area=1024))
    assert checked == loaded
    length = min(Fraction(127, 30), Fraction(str(end)) if end else Fraction(99)) - Fraction(str(start))
    assert (loaded is not None) == (length > Fraction(15, 8))  # 16 frames, the 17th is held


def test_a_variable_rate_is_read_by_its_times(tmp_path: Path) -> None:
    gaps = [Fraction(1, 30), Fraction(1, 10), Fraction(1, 60), Fraction(1, 24), Fraction(1, 5)] * 8
    times = [sum(gaps[:index], Fraction(0)) for index in range(len(gaps))]
    path = encode(tmp_path / "a.mp4", times, last=Fraction(1, 30))
    checked, loaded = outcome(Example(file=path, caption="x"), ClipSettings(num_frames=25, fps=10, area=1024))
    assert checked == loaded
    assert loaded is not None
    assert len(loaded) == 25
    assert_nearest(loaded, times, 10)


@pytest.mark.parametrize("container", ["mp4", "mkv", "mov"])
def test_the_last_frame_counts_as_long_as_it_is_shown(tmp_path: Path, container: str) -> None:
    times = [Fraction(index, 8) for index in range(5)]
    path = encode(tmp_path / f"a.{container}", times, last=Fraction(3, 2))
    assert count_frames(path, fps=8) == 16  # 0.5 s and then 1.5 s: 2 s at 8 fps
    assert len(read_video(path, fps=8).frames) == 16
    checked, loaded = outcome(Example(file=path, caption="x"), ClipSettings(num_frames=17, fps=8, area=1024))
    assert checked == loaded == [0, 1, 2, 3, *[4] * 13]


# -- several clips of a video


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("head", [0]),
        ("chunk", [0, 5, 10, 15]),
        ("slide:3", [0, 3, 6, 9, 12, 15, 18]),
        ("uniform:1", [0]),
        ("uniform:4", [int(x) for x in np.linspace(0, 18, 4)]),
        ("uniform:5", [int(x) for x in np.linspace(0, 18, 5)]),
        ("full", [0]),
    ],
)
def test_clips_of_a_video_of_23_frames(tmp_path: Path, text: str, expected: list[int]) -> None:
    example = Example(file=steady(tmp_path / "a.mp4", 8, 23), caption="x", clips=parse_clips(text))
    settings = ClipSettings(num_frames=5, fps=8, area=1024)
    clips = [indices_of(load_clip(each, settings)) for each in check_example(example, settings)]
    assert clips == [list(range(start, start + 5)) for start in expected]


def test_random_clips_are_drawn_by_the_seed_without_doubles(tmp_path: Path) -> None:
    example = Example(file=steady(tmp_path / "a.mp4", 8, 23), caption="x", clips=parse_clips("random:6"))
    settings = ClipSettings(num_frames=5, fps=8, area=1024)
    drawn = [[round(each.start * 8) for each in check_example(example, settings, seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for starts in drawn:
        assert starts == sorted(set(starts))
        assert len(starts) == 6
        assert 0 <= starts[0] <= starts[-1] <= 18
    many = Example(file=example.file, caption="x", clips=ClipRule("random", 100))
    assert [round(each.start * 8) for each in check_example(many, settings)] == list(range(19))


@pytest.mark.parametrize(("count", "frames"), [(1, 1), (3, 1), (4, 5), (5, 5), (7, 5), (12, 13), (16, 17), (40, 17)])
def test_a_full_clip_has_as_many_frames_as_fit(tmp_path: Path, count: int, frames: int) -> None:
    example = Example(file=steady(tmp_path / "a.mp4", 8, max(2, count)), caption="x", clips=ClipRule("full"))
    example = Example(file=example.file, caption="x", clips=ClipRule("full"), end=count / 8)
    settings = ClipSettings(num_frames=17, fps=8, area=1024)
    (checked,) = check_example(example, settings)
    clip = load_clip(checked, settings)
    assert clip.shape[1] == frames == (checked.shape or ())[0]
    assert indices_of(clip) == [*range(min(count, frames)), *([count - 1] if frames > count else [])]


@pytest.mark.parametrize("text", ["", "tail", "slide", "slide:0", "uniform:-1", "uniform:x", "head:2", "random:99999"])
def test_other_ways_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="clips must be one of head, chunk, full, slide:N, uniform:N, random:N"):
        parse_clips(text)


# -- images


def test_an_image_is_a_clip_of_one_frame_at_its_bucket(tmp_path: Path) -> None:
    Image.new("RGB", (300, 100), (200, 60, 40)).save(tmp_path / "a.png")
    (example,) = check_example(Example(file=tmp_path / "a.png", caption="x"), WAN)
    clip = load_clip(example, WAN)
    assert example.shape == (1, 16, 48)
    assert clip.shape == (3, 1, 16, 48)
    torch.testing.assert_close(clip[:, 0, 8, 24], torch.tensor([200, 60, 40]) / 127.5 - 1)


def test_parts_and_animations_are_of_videos(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in (0, 200)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.png")
    frames[0].save(tmp_path / "c.jpg", format="MPO", save_all=True, append_images=frames[1:])
    with pytest.raises(RequestError, match=r"a\.webp has several frames"):
        check_example(Example(file=tmp_path / "a.webp", caption="x"), WAN)
    with pytest.raises(RequestError, match=r"b\.png is an image; start and end are for videos"):
        check_example(Example(file=tmp_path / "b.png", caption="x", end=1.0), WAN)
    assert check_example(Example(file=tmp_path / "c.jpg", caption="x"), WAN)[0].shape == (1, 32, 32)


# -- the order of data


def cache_of(folder: Path, frames: list[int], **settings: object) -> Cache:
    def encode_example(number: int) -> dict[str, Tensor]:
        return {"latents": torch.zeros(4, frames[number], 4, 4)}

    write_cache(folder, len(frames), encode_example, {"examples": "x", **settings})
    return Cache(folder)


def test_a_batch_has_one_number_of_frames(tmp_path: Path) -> None:
    frames = [1, 5, 1, 5, 1, 1, 5]
    sampler = Sampler(cache_of(tmp_path / "c", frames), batch=2, seed=0, held_out=0)
    for position in range(3 * sampler.steps_per_epoch):
        assert len({frames[number] for number in sampler.numbers(position)}) == 1


def test_an_epoch_shows_an_example_as_often_as_it_repeats(tmp_path: Path) -> None:
    sampler = Sampler(cache_of(tmp_path / "c", [1] * 4, repeats=[1, 3, 2, 1]), batch=1, seed=0, held_out=0)
    shown = [number for position in range(sampler.steps_per_epoch) for number in sampler.numbers(position)]
    assert sorted(shown) == [0, 1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("sources", "count", "held"), [([0, 0, 0, 3, 3, 3], 2, 3), ([0, 0, 2, 3, 4], 1, 1), ([0, 0, 0], 1, 0)]
)
def test_clips_of_one_video_are_held_out_together(tmp_path: Path, sources: list[int], count: int, held: int) -> None:
    sampler = Sampler(cache_of(tmp_path / "c", [1] * len(sources), sources=sources), batch=1, seed=0, held_out=count)
    trained = {sources[n] for p in range(sampler.steps_per_epoch) for n in sampler.numbers(p)}
    assert len(sampler.held_out) == held
    assert not trained & {sources[number] for number in sampler.held_out}


def test_a_cache_says_what_repeats_and_what_comes_from_one_video(tmp_path: Path) -> None:
    import wan_core.loading

    file = steady(tmp_path / "a.mp4", 8, 10)
    example = Example(file=file, caption="x", clips=ClipRule("chunk"), repeats=2)
    settings = ClipSettings(num_frames=5, fps=8, area=1024)
    pipeline = wan_core.loading.load_pipeline("tiny-t2v")
    made_with = describe_cache(pipeline, settings, check_example(example, settings), each_image=False)
    assert (made_with["sources"], made_with["repeats"]) == ([0, 0], [2, 2])
    plain = describe_cache(pipeline, settings, [Example(file=file, caption="x")], each_image=False)
    assert not {"sources", "repeats"} & set(plain)
