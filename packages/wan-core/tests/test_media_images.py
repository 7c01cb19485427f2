"""Pictures of every mode, fitting to a size, bytes and tensors."""

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.goldens.harness import read_case
from wan_core.errors import MediaError, RequestError
from wan_core.media import (
    contact_sheet,
    fit_cover,
    image_to_tensor,
    load_image,
    stretch_bicubic,
    tensor_to_image,
    to_uint8,
)
from wan_core.media.images import to_rgb

SHARED = Path(__file__).resolve().parents[4] / "shared/goldens"


def gradient(width: int = 24, height: int = 16) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) % 256], axis=-1).astype(np.uint8)


def saved(tmp_path: Path, image: Image.Image, name: str, **options: object) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


def pixels(path: Path) -> np.ndarray:
    image = load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


# -- modes


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm"])
def test_lossless_rgb_files_are_read_exactly(tmp_path: Path, name: str) -> None:
    expected = gradient()
    assert np.array_equal(pixels(saved(tmp_path, Image.fromarray(expected), name)), expected)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_lossy_files_are_read_closely(tmp_path: Path, name: str) -> None:
    found = pixels(saved(tmp_path, Image.fromarray(gradient()).resize((64, 64)), name, quality=95))
    assert found.shape == (64, 64, 3)


def test_transparent_pixels_show_white_not_their_hidden_colour(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:2, :, 3] = 255
    rgba[2, :, 3] = 128
    found = pixels(saved(tmp_path, Image.fromarray(rgba, "RGBA"), "a.png"))
    assert found[0, 0].tolist() == [200, 0, 0]
    assert found[3, 0].tolist() == [255, 255, 255]
    assert abs(int(found[2, 0, 1]) - 127) <= 1


def test_grey_with_alpha_lies_over_white(tmp_path: Path) -> None:
    found = pixels(
        saved(
            tmp_path, Image.fromarray(np.dstack([np.zeros((3, 3)), np.zeros((3, 3))]).astype(np.uint8), "LA"), "a.png"
        )
    )
    assert (found == 255).all()


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_premultiplied_alpha_lies_over_white(mode: str) -> None:
    straight = "RGBA" if mode == "RGBa" else "LA"
    image = Image.new(straight, (2, 2), (100, 0) if straight == "LA" else (100, 0, 0, 0)).convert(mode)
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)


def test_palette_with_transparent_index_lies_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 2))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(1, (2, 0, 4, 2))
    found = pixels(saved(tmp_path, image, "a.png", transparency=0))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[0, 3].tolist() == [0, 255, 0]


def test_rgb_with_transparent_colour_lies_over_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    found = pixels(saved(tmp_path, image, "a.png", transparency=(1, 2, 3)))
    assert found.tolist() == [[[255, 255, 255], [9, 9, 9]]]


def test_greyscale_and_bitmap_become_three_equal_channels(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = pixels(saved(tmp_path, Image.fromarray(grey), "a.png"))
    assert all(np.array_equal(found[..., c], grey) for c in range(3))
    bitmap = pixels(saved(tmp_path, Image.fromarray(grey > 100), "b.png"))
    assert set(np.unique(bitmap)) == {0, 255}


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    found = pixels(saved(tmp_path, Image.fromarray(values), name))
    assert np.array_equal(found[..., 0], np.round(values / 257).astype(np.uint8))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_sixteen_bit_modes_agree_whatever_their_byte_order(mode: str) -> None:
    order = ">u2" if mode.endswith("B") else "<u2"
    image = Image.frombytes(mode, (3, 1), np.array([0, 32768, 65535], order).tobytes())
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 128, 255]


def test_32_bit_grey_outside_16_bits_is_stretched() -> None:
    image = Image.fromarray(np.array([[-100, 0, 100_000]], np.int32))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 0, 255]


def test_float_grey_counts_as_zero_to_one_and_nan_as_zero(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan]], np.float32))
    assert pixels(saved(tmp_path, image, "a.tif"))[0, :, 0].tolist() == [0, 128, 255, 0]
    assert np.asarray(to_rgb(Image.fromarray(np.array([[0.0, 500.0]], np.float32))))[0, :, 0].tolist() == [0, 255]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    found = pixels(saved(tmp_path, Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "a.jpg", quality=100))
    assert np.abs(found.astype(int) - [0, 255, 255]).max() <= 3


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_other_colour_spaces_become_rgb(mode: str) -> None:
    image = Image.fromarray(gradient())
    assert np.abs(np.asarray(to_rgb(image.convert(mode))).astype(int) - gradient()).max() <= 6


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_animations_give_their_first_frame(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
    assert np.abs(pixels(path)[8, 8].astype(int) - [255, 0, 0]).max() <= 4


# -- EXIF orientation

TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(gradient()), name, exif=exif)
    assert np.array_equal(pixels(path), TURNS[orientation](gradient()))


def test_a_phone_photo_comes_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(gradient(64, 32)), "a.jpg", exif=exif)
    assert load_image(path).size == (32, 64)


def test_broken_exif_only_loses_the_orientation(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(gradient()), "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert load_image(path).size == (24, 16)


# -- refusals


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("size", [(10_001, 10_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_from_the_header_alone(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(*size) + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    with pytest.raises(MediaError, match="scale it down"):
        load_image(path)


def test_the_pixel_limit_can_be_set(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(gradient()), "a.png")
    assert load_image(path, max_pixels=24 * 16).size == (24, 16)
    with pytest.raises(MediaError, match="24x16 pixels"):
        load_image(path, max_pixels=24 * 16 - 1)


def test_missing_picture_is_a_request_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"none\.png does not exist"):
        load_image(tmp_path / "none.png")


def test_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(RequestError, match="no regular file"):
        load_image(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    "content", [b"hello, I am text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", bytes(500)]
)
def test_no_picture_is_a_media_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(MediaError, match="no picture"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.tif", "a.bmp"])
def test_cut_off_pictures_are_refused(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(MediaError) as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000"]))
def test_damaged_bytes_give_a_picture_or_a_media_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(gradient()).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind.lower()}"
    path.write_bytes(bytes(content))
    try:
        mode = load_image(path, max_pixels=1_000_000).mode
    except MediaError as error:
        mode = "RGB" if "\n" not in str(error) else str(error)
    assert mode == "RGB"


# -- tensors


def test_bytes_survive_the_way_to_a_tensor_and_back() -> None:
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    tensor = image_to_tensor(image)
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    assert tensor.min() == -1
    assert tensor.max() == 1
    assert np.array_equal(np.asarray(tensor_to_image(tensor)), np.asarray(image))


def test_values_are_rounded_and_clamped() -> None:
    level = 2 / 255
    values = torch.tensor([-3.0, -1.0, -1 + 0.4 * level, -1 + 0.6 * level, 1 - 0.4 * level, 1.0, 9.0])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255, 255]


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 70), height=st.integers(1, 70), to_width=st.integers(1, 70), to_height=st.integers(1, 70))
def test_fit_cover_gives_exactly_the_asked_size(width: int, height: int, to_width: int, to_height: int) -> None:
    image = Image.new("RGB", (width, height), (10, 200, 30))
    scales = to_width / width, to_height / height
    if max(scales) > 64 * min(scales):
        with pytest.raises(RequestError, match="crop it first"):
            fit_cover(image, to_width, to_height)
        return
    fitted = fit_cover(image, to_width, to_height)
    assert fitted.size == (to_width, to_height)
    assert fitted.getpixel((0, 0)) == (10, 200, 30)  # no black border anywhere
    assert fitted.getpixel((to_width - 1, to_height - 1)) == (10, 200, 30)


def test_fit_cover_keeps_the_centre() -> None:
    image = Image.new("RGB", (30, 10), "black")
    image.paste((255, 255, 255), (10, 0, 20, 10))
    assert np.asarray(fit_cover(image, 10, 10)).min() == 255


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_stretch_bicubic_takes_one_or_many(height: int, width: int) -> None:
    batch = torch.rand(2, 3, 9, 7) * 2 - 1
    stretched = stretch_bicubic(batch, height, width)
    assert stretched.shape == (2, 3, height, width)
    assert torch.equal(stretch_bicubic(batch[1], height, width), stretched[1])


# -- the reference's numbers


def reference_picture(height: int, width: int) -> Image.Image:
    y, x, c = np.mgrid[0:height, 0:width, 0:3]
    return Image.fromarray(((x * 37 + y * 59 + c * 101 + (x * y) % 13 * 7) % 256).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "target", "digest"),
    [
        ((70, 45), (128, 96), "ed80674a2bd35a95"),
        ((150, 97), (128, 96), "a56a642c47f8ce6d"),
        ((97, 150), (128, 96), "a1f6e56e549a2315"),
    ],
)
def test_fit_cover_is_bit_exact(size: tuple[int, int], target: tuple[int, int], digest: str) -> None:
    fitted = fit_cover(reference_picture(size[1], size[0]), *target)
    assert hashlib.sha256(fitted.tobytes()).hexdigest()[:16] == digest


def test_fit_cover_makes_the_inputs_of_the_shared_goldens() -> None:
    for path in [*SHARED.glob("e2e_ti2v_i2v_*"), *SHARED.glob("mi2v_preprocess*")]:
        case = read_case(path)
        for name, picture in case.named("in.image").items():
            if picture.dtype != torch.uint8:
                continue
            expected = case.tensors["mid.vae_input" if name == "_uint8" else f"out.tensor{name}"]
            found = fit_cover(Image.fromarray(picture.numpy()), width=expected.shape[3], height=expected.shape[2])
            assert torch.equal(image_to_tensor(found), expected[:, 0]), (path.stem, name)


def test_stretch_bicubic_makes_the_inputs_of_the_shared_goldens() -> None:
    for path in SHARED.glob("e2e_i2v_a14b_*"):
        case = read_case(path)
        expected = case.tensors["mid.vae_input"]
        image = image_to_tensor(Image.fromarray(case.tensors["in.image_uint8"].numpy()))
        assert torch.equal(stretch_bicubic(image, *expected.shape[2:]), expected[:, 0]), path.stem


def test_stretch_bicubic_is_the_cubic_of_minus_three_quarters() -> None:
    """A step of two samples, doubled in width: Keys' kernel with a = -0.75 and clamped edges, by hand."""
    step = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(3, 1, 4)
    expected = [0.0, -0.03515625, -0.10546875, 0.2265625, 0.7734375, 1.10546875, 1.03515625, 1.0]
    assert torch.allclose(stretch_bicubic(step, 1, 8)[0, 0], torch.tensor(expected), atol=1e-6)


# -- contact sheet


def test_contact_sheet_places_frames_row_by_row() -> None:
    clip = torch.stack([torch.full((3, 8, 12), value) for value in (-1.0, 0.0, 1.0)])
    sheet = contact_sheet([*clip, Image.new("RGB", (12, 8), "red"), Image.new("RGB", (12, 8), "blue")], 2, gap=2)
    assert sheet.size == (2 * 14 + 2, 3 * 10 + 2)
    assert sheet.getpixel((3, 3)) == (0, 0, 0)
    assert sheet.getpixel((17, 3)) == (128, 128, 128)
    assert sheet.getpixel((17, 13)) == (255, 0, 0)
    assert sheet.getpixel((3, 23)) == (0, 0, 255)
    assert sheet.getpixel((17, 23)) == (255, 255, 255)


def test_contact_sheet_scales_into_cells_without_distortion() -> None:
    sheet = contact_sheet(
        [Image.new("RGB", (20, 10), "red"), Image.new("RGB", (10, 20), "blue")], 2, cell_width=40, gap=0
    )
    assert sheet.size == (80, 20)
    assert sheet.getpixel((60, 10)) == (0, 0, 255)
    assert sheet.getpixel((44, 10)) == (255, 255, 255)


@pytest.mark.parametrize("arguments", [([], 3), ([Image.new("RGB", (2, 2))], 0)])
def test_contact_sheet_refuses_nothing(arguments: tuple[list[Image.Image], int]) -> None:
    with pytest.raises(ValueError, match="a sheet needs"):
        contact_sheet(*arguments)
