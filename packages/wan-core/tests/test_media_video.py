"""Videos written and read back: frames, rate, colours, sizes, and what stays after a failure."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wan_core.errors import MediaError, RequestError
from wan_core.media import (
    Provenance,
    check_output,
    image_to_tensor,
    load_image,
    probe_video,
    read_video,
    tensor_to_image,
    write_image,
    write_video,
)
from wan_core.media.audio import AudioTrack, load_audio

from .media_clips import files_below, levels_clip, levels_of, psnr, smooth_clip

KINDS = ["a.mp4", "a.gif", "a.webp", "frames/%03d.png"]


# -- round trips


def test_mp4_keeps_frames_rate_and_picture(tmp_path: Path) -> None:
    clip = smooth_clip(24, 96, 128)
    path = write_video(iter(clip.split(5, dim=1)), tmp_path / "a.mp4", fps=24)
    info = probe_video(path)
    assert (info.width, info.height, info.fps, info.num_frames, info.has_audio) == (128, 96, 24.0, 24, False)
    assert info.seconds == pytest.approx(1.0)
    video = read_video(path, as_float=True)
    assert video.frames.shape == (24, 3, 96, 128)
    assert video.fps == 24
    assert psnr(video.frames.transpose(0, 1), clip) > 42


@pytest.mark.parametrize(
    "colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 30, 90)]
)
def test_mp4_colours_come_back(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    frame = image_to_tensor(Image.new("RGB", (32, 32), colour)).unsqueeze(1)
    path = write_video([frame.repeat(1, 3, 1, 1)], tmp_path / "a.mp4", fps=8)
    found = read_video(path).frames.float().mean(dim=(0, 2, 3))
    assert torch.allclose(found, torch.tensor(colour).float(), atol=2.0)


def test_mp4_says_which_colours_it_has(tmp_path: Path) -> None:
    import av

    write_video([smooth_clip()], tmp_path / "a.mp4", fps=8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


def test_mp4_starts_with_its_index(tmp_path: Path) -> None:
    content = write_video([smooth_clip()], tmp_path / "a.mp4", fps=8).read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("fps", [1, 8, 16, 23.976, 24, 29.97, 60])
def test_mp4_frame_rates(tmp_path: Path, fps: float) -> None:
    info = probe_video(write_video([smooth_clip(6)], tmp_path / "a.mp4", fps=fps))
    assert info.fps == pytest.approx(fps, rel=1e-5)
    assert info.num_frames == 6


@settings(max_examples=12, deadline=None)
@given(width=st.integers(1, 67), height=st.integers(1, 67), num_frames=st.integers(1, 5))
def test_mp4_takes_any_size(tmp_path_factory: pytest.TempPathFactory, width: int, height: int, num_frames: int) -> None:
    path = tmp_path_factory.getbasetemp() / "size.mp4"
    write_video([smooth_clip(num_frames, height, width)], path, fps=16)
    frames = read_video(path).frames
    assert frames.shape == (num_frames, 3, height + height % 2, width + width % 2)


def test_odd_sides_repeat_their_edge(tmp_path: Path) -> None:
    clip = smooth_clip(4, 33, 47)
    frames = read_video(write_video([clip], tmp_path / "a.mp4", fps=8), as_float=True).frames.transpose(0, 1)
    assert psnr(frames[..., :33, :47], clip) > 38
    assert psnr(frames[..., 33, :47], clip[..., 32, :]) > 30


def test_crf_trades_size_for_quality(tmp_path: Path) -> None:
    sizes = [write_video([smooth_clip()], tmp_path / "a.mp4", fps=8, crf=crf).stat().st_size for crf in (10, 40)]
    assert sizes[0] > 1.5 * sizes[1]


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "a.png"])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    frames = [smooth_clip(1)] if name == "a.png" else [smooth_clip()]
    written = [write_video(frames, tmp_path / folder / name, fps=8).read_bytes() for folder in "ab"]
    assert written[0] == written[1]


def test_png_sequence_is_exact(tmp_path: Path) -> None:
    values = torch.randint(0, 256, (3, 5, 9, 7), generator=torch.Generator().manual_seed(0))
    clip = values.float() / 127.5 - 1
    write_video(clip.split(2, dim=1), tmp_path / "new/frames/shot_%02d.png", fps=24)
    names = [f"shot_{index:02d}.png" for index in range(5)]
    assert files_below(tmp_path / "new/frames") == names
    for index, name in enumerate(names):
        found = np.asarray(load_image(tmp_path / "new/frames" / name))
        assert np.array_equal(found, values[:, index].permute(1, 2, 0).numpy())


def test_png_sequence_goes_into_a_folder_that_holds_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "0000.png").write_bytes(b"an older frame")
    write_video([smooth_clip(3)], tmp_path / "%04d.png", fps=24)
    assert files_below(tmp_path) == ["0000.png", "0001.png", "0002.png", "notes.txt"]
    assert load_image(tmp_path / "0000.png").size == (64, 48)


@pytest.mark.parametrize(("name", "fps"), [("a.gif", 24), ("a.gif", 16), ("a.webp", 24), ("a.webp", 15)])
def test_animations_keep_frames_and_total_time(tmp_path: Path, name: str, fps: int) -> None:
    clip = levels_clip(25)
    write_video(clip.split(3, dim=1), tmp_path / name, fps=fps)
    durations, levels = [], []
    with Image.open(tmp_path / name) as image:
        assert image.info["loop"] == 0
        for index in range(25):
            image.seek(index)
            image.load()
            durations.append(image.info["duration"])
            levels.append(image_to_tensor(image.convert("RGB")))
        assert image.n_frames == 25
    assert levels_of(torch.stack(levels).add(1).mul(127.5)) == list(range(25))
    assert sum(durations) == pytest.approx(25_000 / fps, abs=10)


@pytest.mark.parametrize(("name", "bound"), [("a.gif", 26), ("a.webp", 38)])
def test_animations_look_like_the_clip(tmp_path: Path, name: str, bound: float) -> None:
    clip = smooth_clip(4)
    write_video([clip], tmp_path / name, fps=8)
    with Image.open(tmp_path / name) as image:
        image.seek(2)
        assert psnr(image_to_tensor(image.convert("RGB")), clip[:, 2]) > bound


def test_one_frame_can_be_a_single_png(tmp_path: Path) -> None:
    clip = smooth_clip(1)
    check_output(tmp_path / "a.png", num_frames=1)
    write_video([clip], tmp_path / "a.png", fps=24)
    assert (image_to_tensor(load_image(tmp_path / "a.png")) - clip[:, 0]).abs().max() <= 1 / 255 + 1e-6
    with pytest.raises(MediaError, match=r"frames/%04d\.png"):
        write_video([clip, clip], tmp_path / "b.png", fps=24)
    assert files_below(tmp_path) == ["a.png"]


def test_write_image_is_exact_and_carries_its_record(tmp_path: Path) -> None:
    picture = tensor_to_image(smooth_clip(1)[:, 0])
    write_image(picture, tmp_path / "new/a.png", provenance=Provenance.of(preset="tiny-t2v", settings={}))
    assert np.array_equal(np.asarray(load_image(tmp_path / "new/a.png")), np.asarray(picture))
    with pytest.raises(RequestError, match=r"\.png"):
        write_image(picture, tmp_path / "a.gif")


def test_half_precision_frames_are_accepted(tmp_path: Path) -> None:
    path = write_video([smooth_clip().bfloat16()], tmp_path / "a.mp4", fps=8)
    assert read_video(path).frames.shape[0] == 12


# -- sound


@pytest.mark.parametrize(("channels", "rate"), [(1, 16_000), (2, 44_100), (1, 22_051)])
def test_sound_is_muxed_and_cut_to_the_video(tmp_path: Path, channels: int, rate: int) -> None:
    seconds = torch.arange(rate * 3) / rate
    tone = 0.5 * torch.sin(2 * torch.pi * 440 * seconds).expand(channels, -1)
    path = write_video([smooth_clip(16)], tmp_path / "a.mp4", fps=16, audio=AudioTrack(tone, rate))
    info = probe_video(path)
    assert info.has_audio
    assert info.num_frames == 16
    track = load_audio(path, sample_rate=16_000)
    assert track.samples.shape[0] == channels
    assert track.seconds == pytest.approx(1.0, abs=0.1)
    spectrum = torch.fft.rfft(track.samples[0, 2000:14000]).abs()
    assert float(spectrum.argmax()) * 16_000 / 12_000 == pytest.approx(440, abs=2)


def test_sound_shorter_than_the_video_is_kept_whole(tmp_path: Path) -> None:
    track = AudioTrack(torch.zeros(1, 4000), 16_000)
    path = write_video([smooth_clip(16)], tmp_path / "a.mp4", fps=16, audio=track)
    assert load_audio(path).seconds == 0.25
    assert probe_video(path).num_frames == 16


@pytest.mark.parametrize(("seconds", "frames"), [(0.25, 4), (0.26, 5), (2.0, 16)])
def test_the_shortest_ends_the_file(tmp_path: Path, seconds: float, frames: int) -> None:
    track = AudioTrack(torch.zeros(1, int(seconds * 16_000)), 16_000)
    taken = []
    chunks = (taken.append(chunk) or chunk for chunk in smooth_clip(16).split(4, dim=1))
    path = write_video(chunks, tmp_path / "a.mp4", fps=16, audio=track, shortest=True)
    assert probe_video(path).num_frames == frames
    assert len(taken) == 4


def test_sound_is_at_its_place_to_the_sample(tmp_path: Path) -> None:
    clicks = torch.zeros(1, 16_000)
    clicks[0, [2000, 9000]] = 0.9
    path = write_video([smooth_clip(16)], tmp_path / "a.mp4", fps=16, audio=AudioTrack(clicks, 16_000))
    heard = load_audio(path).samples[0].abs()
    assert heard.shape == (16_000,)
    assert sorted(heard.topk(2).indices.tolist()) == [2000, 9000]


# -- memory and files


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "a.png"])
def test_new_files_have_the_usual_permissions(tmp_path: Path, name: str) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_video([smooth_clip(1)], tmp_path / name, fps=8)
    assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.gif").symlink_to(tmp_path / "real/a.gif")
    write_video([smooth_clip(2)], tmp_path / "link.gif", fps=8)
    assert (tmp_path / "link.gif").is_symlink()
    assert (tmp_path / "real/a.gif").stat().st_size > 0


def test_relative_names_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_video([smooth_clip(2)], "a.MP4", fps=8) == Path("a.MP4")
    assert files_below(tmp_path) == ["a.MP4"]
