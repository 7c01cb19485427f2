"""Frames as a player shows them: shape, orientation, transparency, interlacing; animations that are not FFmpeg's."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.ExifTags import Base
from torch import Tensor

from wan_core.errors import MediaError
from wan_core.media import count_frames, load_image, probe_video, read_video, stream_video, to_uint8, write_video
from wan_core.media.video_decoding import TimedFrame, _deinterlaced
from wan_core.media.video_frames import look_of, pixels, square_pixels

from .media_clips import centre, encode_frames, flat_frame, levels_clip, levels_of, psnr, smooth_clip

PATCH = (200, 60, 40)
HALF = (228, 158, 148)  # the patch over white at half opacity
CODES = np.array(PATCH) / 255


def rgb_frame(image: NDArray[np.uint8], pixel_format: str = "yuv420p") -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return frame.reformat(format=pixel_format, dst_colorspace=1, interpolation=0x4 | 0x40000)


def clip_frames(clip: Tensor, pixel_format: str = "yuv420p") -> list[av.VideoFrame]:
    return [rgb_frame(image, pixel_format) for image in to_uint8(clip).permute(1, 2, 3, 0).numpy()]


# -- sample aspect ratio


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize(
    ("size", "ratio", "shown"),
    [
        ((72, 64), Fraction(16, 9), (128, 64)),
        ((96, 64), Fraction(4, 3), (128, 64)),
        ((128, 64), Fraction(1, 2), (64, 64)),
        ((72, 64), Fraction(10, 11), (65, 64)),
        ((64, 64), Fraction(1, 1), (64, 64)),
        ((64, 64), Fraction(1279, 1280), (64, 64)),
    ],
)
def test_pixels_become_square(
    tmp_path: Path, name: str, size: tuple[int, int], ratio: Fraction, shown: tuple[int, int]
) -> None:
    frames = [flat_frame(CODES, "yuv420p", size=size) for _ in range(2)]
    path = encode_frames(tmp_path / name, frames, "libx264", tags={"sample_aspect_ratio": ratio, "colorspace": 1})
    info = probe_video(path)
    assert (info.width, info.height) == shown
    video = read_video(path)
    assert video.frames.shape == (2, 3, shown[1], shown[0])
    assert centre(video.frames) == pytest.approx(PATCH, abs=3)


def test_a_stretched_frame_is_scaled_not_cut(tmp_path: Path) -> None:
    frames = clip_frames(smooth_clip(1, 64, 72))
    wide = read_video(
        encode_frames(tmp_path / "a.mkv", frames, "libx264", tags={"sample_aspect_ratio": Fraction(16, 9)}, crf="1")
    ).frames
    plain = read_video(encode_frames(tmp_path / "b.mkv", frames, "libx264", crf="1")).frames
    expected = torch.nn.functional.interpolate(plain.float(), (64, 128), mode="bicubic", align_corners=False)
    assert psnr(wide / 127.5, expected / 127.5) > 35


@pytest.mark.parametrize("ratio", [None, Fraction(0), Fraction(1000, 1), Fraction(1, 9), Fraction(-1, 1)])
def test_an_absurd_ratio_is_no_ratio(ratio: Fraction | None) -> None:
    assert square_pixels(ratio) == 1


def test_an_absurd_ratio_is_noted(tmp_path: Path) -> None:
    path = encode_frames(
        tmp_path / "a.mkv",
        [flat_frame(CODES, "yuv420p")],
        "libx264",
        tags={"sample_aspect_ratio": Fraction(20), "colorspace": 1},
    )
    info = probe_video(path)
    assert (info.width, info.height) == (64, 64)
    assert "20:1" in info.notes[0]


# -- orientation

ORIENTATIONS = [
    (1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, -1, 0), (0, -1, 1, 0), (0, 1, 1, 0),
    (0, -1, -1, 0),
]  # fmt: skip


def set_matrix(path: Path, matrix: Sequence[float]) -> None:
    """Write a, b, c, d into the track header of an mp4."""
    a, b, c, d = (round(value * 0x10000) for value in matrix)
    content = bytearray(path.read_bytes())
    struct.pack_into(">9i", content, content.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(bytes(content))


def moved(frames: Tensor, matrix: tuple[int, ...]) -> Tensor:
    """Every pixel (x, y) at (a x + c y, b x + d y), the least being 0."""
    a, b, c, d = matrix
    height, width = frames.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    shown = frames.new_zeros(*frames.shape[:2], int(to_y.max()) + 1, int(to_x.max()) + 1)
    shown[:, :, to_y, to_x] = frames
    return shown


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_every_display_matrix_is_followed(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    path = write_video([smooth_clip(2, 32, 48)], tmp_path / "a.mp4", fps=8)
    plain = read_video(path).frames
    set_matrix(path, matrix)
    expected = moved(plain, matrix)
    assert torch.equal(read_video(path).frames, expected)
    info = probe_video(path)
    assert (info.height, info.width) == tuple(expected.shape[2:])


@pytest.mark.parametrize("degrees", [10, 80, 100, 170, 200, 280, 350])
@pytest.mark.parametrize("mirrored", [False, True])
def test_other_angles_become_the_nearest_quarter_turn(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    path = write_video([smooth_clip(1, 32, 48)], tmp_path / "a.mp4", fps=8)
    plain = read_video(path).frames

    def matrix(angle: float) -> tuple[float, ...]:
        cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        return (-cos, -sin, -sin, cos) if mirrored else (cos, sin, -sin, cos)

    set_matrix(path, matrix(degrees))
    nearest = tuple(round(value) for value in matrix(round(degrees / 90) * 90))
    assert torch.equal(read_video(path).frames, moved(plain, nearest))


def test_a_turned_frame_with_side_data_that_pyav_does_not_know_is_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    image = Image.fromarray(to_uint8(smooth_clip(1, 32, 48))[:, 0].permute(1, 2, 0).numpy())
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
        packet = av.Packet((tmp_path / "a.jpg").read_bytes())
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 10)
        container.mux(packet)
    frames = read_video(tmp_path / "a.mov").frames
    upright = torch.from_numpy(np.array(load_image(tmp_path / "a.jpg"))).permute(2, 0, 1)[None]
    assert frames.shape == (1, 3, 48, 32)
    assert psnr(frames / 127.5, upright / 127.5) > 35


def test_pixels_are_squared_before_turning(tmp_path: Path) -> None:
    frames = clip_frames(smooth_clip(2, 64, 72))
    tags = {"sample_aspect_ratio": Fraction(16, 9), "colorspace": 1}
    path = encode_frames(tmp_path / "a.mp4", frames, "libx264", tags=tags)
    plain = read_video(path).frames
    set_matrix(path, (0, 1, -1, 0))
    assert torch.equal(read_video(path).frames, moved(plain, (0, 1, -1, 0)))
    assert (probe_video(path).width, probe_video(path).height) == (64, 128)


# -- transparency


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("a.webm", "libvpx", "yuva420p"),
        ("a.mkv", "libvpx-vp9", "yuva420p"),
        ("a.mov", "prores_ks", "yuva444p10le"),
        ("a.mov", "qtrle", "argb"),
        ("a.mov", "png", "rgba"),
        ("a.mkv", "ffv1", "yuva444p12le"),
        ("a.mkv", "ffv1", "yuva420p"),
        ("a.mkv", "ffv1", "bgra"),
        ("a.apng", "apng", "rgba"),
    ],
)
@pytest.mark.parametrize(("opacity", "expected"), [(0.5, HALF), (1.0, PATCH), (0.0, (255, 255, 255))])
def test_what_is_transparent_lies_over_white(
    tmp_path: Path, name: str, codec: str, pixel_format: str, opacity: float, expected: tuple[int, ...]
) -> None:
    matrix = 5 if codec == "libvpx" else 1  # VP8 has no other
    frames = [flat_frame((*CODES, opacity), pixel_format, matrix) for _ in range(3)]
    tags = {"alpha_mode": 1} if "vpx" in codec else {}
    if pixel_format.startswith("yuv"):
        tags["colorspace"] = matrix
    options = {"crf": "4", "b": "2M", "auto-alt-ref": "0"} if "vpx" in codec else {}
    path = encode_frames(tmp_path / name, frames, codec, tags=tags, **options)
    frames = read_video(path).frames
    assert centre(frames) == pytest.approx(expected, abs=4)
    assert frames.shape == (3, 3, 64, 64)
    assert count_frames(path) == 3


@pytest.mark.parametrize(
    ("codec", "size", "said", "expected"),
    [
        ("libvpx-vp9", (64, 64), {"colorspace": 1, "color_primaries": 12, "color_trc": 13}, (236, 149, 139)),
        ("libvpx", (64, 640), {}, HALF),  # VP8 has the matrix of BT.601 alone, in HD too
    ],
)
def test_a_transparent_webm_has_the_colours_it_says(
    tmp_path: Path, codec: str, size: tuple[int, int], said: dict[str, object], expected: tuple[int, ...]
) -> None:
    frames = [flat_frame((*CODES, 0.5), "yuva420p", 1 if said else 5, size=size) for _ in range(3)]
    options = {"crf": "4", "b": "2M", "auto-alt-ref": "0"}
    path = encode_frames(tmp_path / "a.webm", frames, codec, tags={"alpha_mode": 1, **said}, **options)
    assert centre(read_video(path).frames) == pytest.approx(expected, abs=3)


def test_the_fourth_byte_of_an_uncompressed_avi_is_no_alpha(tmp_path: Path) -> None:
    path = encode_frames(tmp_path / "a.avi", [flat_frame((*CODES, 0.0), "bgra")], "rawvideo")
    assert centre(read_video(path).frames) == pytest.approx(PATCH, abs=1)


def test_a_part_of_a_transparent_webm_has_its_times(tmp_path: Path) -> None:
    greys = [flat_frame((level / 255, level / 255, level / 255, 1.0), "yuva420p") for level in range(16, 176, 8)]
    tags = {"alpha_mode": 1, "colorspace": 1}
    path = encode_frames(tmp_path / "a.webm", greys, "libvpx-vp9", tags=tags, crf="4", b="2M", g="5")
    assert levels_of(read_video(path).frames) == list(range(20))
    assert levels_of(read_video(path, start=1.2, end=1.5).frames) == [12, 13, 14]
    assert levels_of(read_video(path, start=0.5, fps=5).frames) == [5, 7, 9, 11, 13, 15, 17, 19]


def test_hdr_is_mapped_before_it_lies_over_white(tmp_path: Path) -> None:
    frames = [flat_frame((0.5, 0.5, 0.5, opacity), "yuva444p10le", 9) for opacity in (1.0, 0.5)]
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 16}
    found = read_video(encode_frames(tmp_path / "a.mkv", frames, "ffv1", tags=tags)).frames
    whole = centre(found)[0]
    assert whole == pytest.approx(184, abs=10)  # 92 cd/m2 of 203
    assert centre(found[1:])[0] == pytest.approx((whole + 255) / 2, abs=2)


# -- interlacing


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
    done = list(_deinterlaced(iter([TimedFrame(index, 1.0, frame, look) for index, frame in enumerate(frames)])))
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
    done = list(_deinterlaced(iter(timed)))
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
    done = list(_deinterlaced(iter(timed)))
    assert [each.frame.width for each in done] == [96] * 6 + [48] * 6 + [96] * 6
    assert [each.time for each in done] == list(range(18))


# -- animations


@pytest.mark.parametrize("fps", [8, 24, 30])
def test_our_animated_webp_is_read_back(tmp_path: Path, fps: int) -> None:
    clip = smooth_clip(9, 32, 48)
    path = write_video([clip], tmp_path / "a.webp", fps=fps)
    info = probe_video(path)
    assert (info.width, info.height, info.num_frames, info.has_audio) == (48, 32, 9, False)
    assert info.fps == pytest.approx(fps, rel=0.005)
    assert info.seconds == pytest.approx(9 / fps, abs=0.0011)
    video = read_video(path, as_float=True)
    assert video.fps == info.fps
    assert psnr(video.frames, clip.transpose(0, 1)) > 30
    assert count_frames(path) == 9


def test_parts_and_rates_of_an_animated_webp(tmp_path: Path) -> None:
    path = write_video([levels_clip(24)], tmp_path / "a.webp", fps=24)
    assert levels_of(read_video(path).frames) == list(range(24))
    assert levels_of(read_video(path, start=0.5).frames) == list(range(12, 24))
    assert levels_of(read_video(path, fps=8).frames) == list(range(0, 24, 3))
    assert count_frames(path, start=0.25, end=0.75, fps=16) == 8


def test_frames_of_a_webp_are_shown_as_long_as_it_says_and_over_white(tmp_path: Path) -> None:
    images = [Image.new("RGBA", (32, 32), (level, level, level, 255)) for level in (16, 24, 32)]
    images[1].putalpha(0)
    images[0].save(
        tmp_path / "a.webp", save_all=True, append_images=images[1:], duration=[100, 300, 600], lossless=True
    )
    assert levels_of(read_video(tmp_path / "a.webp", fps=10).frames) == [0, 30, 30, *[2] * 7]


def test_an_animated_webp_has_the_colours_of_its_profile(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = bytearray(srgb)  # its red light is the green one
    red, green = (int.from_bytes(srgb[srgb.index(name, 128) + 4 :][:4], "big") + 8 for name in (b"rXYZ", b"gXYZ"))
    swapped[red : red + 12], swapped[green : green + 12] = srgb[green : green + 12], srgb[red : red + 12]
    images = [Image.new("RGB", (32, 32), colour) for colour in (PATCH, (90, 90, 90))]
    for name, profile in (("same", srgb), ("swapped", bytes(swapped))):
        path = tmp_path / f"{name}.webp"
        images[0].save(path, save_all=True, append_images=images[1:], lossless=True, icc_profile=profile)
    assert centre(read_video(tmp_path / "same.webp").frames) == list(PATCH)
    assert centre(read_video(tmp_path / "swapped.webp").frames) == pytest.approx((60, 200, 40), abs=2)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_damaged_or_still_webp_is_refused(tmp_path: Path, share: float) -> None:
    path = write_video([smooth_clip(9, 32, 48)], tmp_path / "a.webp", fps=8)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(MediaError):
        read_video(path)
    Image.new("RGB", (32, 32)).save(path)
    with pytest.raises(MediaError, match="no video"):
        read_video(path)


def test_what_a_gif_leaves_out_is_white(tmp_path: Path) -> None:
    images = [Image.new("RGBA", (32, 32), (*PATCH, 255)) for _ in range(2)]
    for image in images:
        image.paste((0, 0, 0, 0), (0, 0, 16, 32))
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100, disposal=2)
    frames = read_video(tmp_path / "a.gif").frames
    assert frames[0, :, 16, 4].tolist() == [255, 255, 255]
    assert frames[0, :, 16, 28].tolist() == pytest.approx(PATCH, abs=3)
