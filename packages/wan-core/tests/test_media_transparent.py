"""Transparent videos and animations, those that FFmpeg does not read among them."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from wan_core.errors import MediaError
from wan_core.media import count_frames, load_image, probe_video, read_video, write_video

from .media_clips import (
    PATCH,
    centre,
    encode_frames,
    flat_frame,
    levels_clip,
    levels_of,
    psnr,
    smooth_clip,
)

HALF = (228, 158, 148)  # the patch over white at half opacity
CODES = np.array(PATCH) / 255


# -- transparency


@pytest.mark.parametrize(
    ("depth", "kind", "row", "key", "clear"),
    [
        (1, 0, b"\x50", b"\0\1", [1, 3]),
        (2, 0, b"\x1b", b"\0\1", [1]),
        (4, 0, b"\x01\x2f", b"\0\2", [2]),
        (8, 0, b"\0\1\2\3", b"\0\3", [3]),
        (16, 0, b"\0\0\0\1\0\2\1\2", b"\0\2", [2]),
        (16, 2, b"\1\0\2\0\3\0" + bytes(18), b"\1\0\2\0\3\0", [0]),
    ],
)
def test_the_transparent_colour_of_a_png_is_one_of_its_own_depth(
    tmp_path: Path, depth: int, kind: int, row: bytes, key: bytes, clear: list[int]
) -> None:
    header = struct.pack(">IIBBBBB", 4, 1, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", key), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
    )
    image = load_image(path)
    whites = [x for x in range(4) if image.getpixel((x, 0)) == (255, 255, 255)]
    last_is_white = row in {b"\x1b", b"\x01\x2f"}  # the last level of these greys is white itself
    assert whites == sorted({*clear, *([3] if last_is_white else [])})


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


def test_a_webp_without_durations_shows_ten_frames_a_second(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    greys = [Image.new("RGB", (32, 32), (level,) * 3) for level in (16, 80, 160, 240)]
    greys[0].save(path, save_all=True, append_images=greys[1:], duration=0, lossless=True)
    assert probe_video(path).seconds == pytest.approx(0.4)
    assert [int(frame[0, 0, 0]) for frame in read_video(path, fps=10).frames] == [16, 80, 160, 240]
    assert probe_video(path).fps == pytest.approx(10)


def test_the_clock_of_an_animated_png_is_not_its_rate(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=[100, 300], default_image=True)
    assert probe_video(tmp_path / "a.png").fps <= 1000
