"""Frames as a player shows them: square pixels, upright."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base
from torch import Tensor

from wan_core.media import load_image, probe_video, read_video, to_uint8, write_video
from wan_core.media.video_frames import square_pixels

from .media_clips import PATCH, centre, clip_frames, encode_frames, flat_frame, psnr, smooth_clip

CODES = np.array(PATCH) / 255


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
