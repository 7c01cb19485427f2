"""Images say what their colours are; they are read as the same colours in sRGB, or refused by name."""

import gc
import io
import struct
import sys
from fractions import Fraction
from pathlib import Path

import av
import pytest
from PIL import Image

from tests.colour_profiles import ADOBE, BT709, P3, chrm, cmyk_profile, gama, grey_profile, png_with, rgb_profile
from wan_core.errors import MediaError
from wan_core.media import load_image, read_video

Colour = tuple[int, int, int]
PIXEL = (200, 60, 40)
IN_P3, IN_ADOBE = (217, 42, 23), (231, 57, 34)  # the same code values in these colour spaces, seen in sRGB
ADOBE_GAMMA = 563 / 256


def flat(colour: object = PIXEL, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (16, 16), colour)  # type: ignore[arg-type]


def read(path: Path) -> Colour:
    image = load_image(path)
    assert image.mode == "RGB"
    return image.getpixel((5, 5))  # type: ignore[return-value]


def near(found: Colour, wanted: Colour, levels: int) -> bool:
    return max(abs(one - other) for one, other in zip(found, wanted, strict=True)) <= levels


@pytest.mark.parametrize(("ending", "levels"), [("png", 0), ("tif", 0), ("jpg", 3), ("webp", 6), ("avif", 3)])
@pytest.mark.parametrize(("primaries", "gamma", "wanted"), [(P3, None, IN_P3), (ADOBE, ADOBE_GAMMA, IN_ADOBE)])
def test_icc_profiles_are_applied(
    tmp_path: Path, ending: str, levels: int, primaries: tuple[tuple[float, float], ...], gamma: float, wanted: Colour
) -> None:
    path = tmp_path / f"image.{ending}"
    flat().save(path, icc_profile=rgb_profile(primaries, gamma), quality=100)
    assert near(read(path), wanted, levels)


def test_a_profile_that_is_srgb_changes_no_pixel(tmp_path: Path) -> None:
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    noise.save(tmp_path / "a.png", icc_profile=rgb_profile(BT709))
    assert load_image(tmp_path / "a.png").tobytes() == noise.tobytes()


def test_colours_are_converted_before_they_are_laid_over_white(tmp_path: Path) -> None:
    flat((*PIXEL, 128), "RGBA").save(tmp_path / "a.png", icc_profile=rgb_profile(P3))
    assert read(tmp_path / "a.png") == tuple(round(255 + (value - 255) * 128 / 255) for value in IN_P3)
    flat((*PIXEL, 0), "RGBA").save(tmp_path / "b.png", icc_profile=rgb_profile(P3))
    assert read(tmp_path / "b.png") == (255, 255, 255)


def test_palettes_and_grey_in_an_rgb_profile_are_converted(tmp_path: Path) -> None:
    flat().quantize(4).save(tmp_path / "a.png", icc_profile=rgb_profile(P3))
    assert read(tmp_path / "a.png") == IN_P3
    flat(100, "L").save(tmp_path / "b.png", icc_profile=rgb_profile(P3, 1.0))
    assert read(tmp_path / "b.png") == (168, 168, 168)  # light of 100 / 255 by the curve of sRGB


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_profiles_are_applied_to_every_kind_of_grey(tmp_path: Path, mode: str) -> None:
    image = flat({"L": 128, "LA": (128, 255), "I;16": 128 * 257}[mode], mode)
    image.save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    assert near(read(tmp_path / "a.png"), (188, 188, 188), 1)


def test_inks_become_the_colours_of_the_print_profile(tmp_path: Path) -> None:
    # Half an ink is L = 75, light 0.482; black point compensation takes the 0.184 of full ink for black: sRGB 163.
    for name, inks, wanted in (("paper", (0, 0, 0, 0), 255), ("half", (0, 128, 0, 0), 163), ("ink", (0, 255, 0, 0), 0)):
        flat(inks, "CMYK").save(tmp_path / f"{name}.tif", icc_profile=cmyk_profile(50))
        assert near(read(tmp_path / f"{name}.tif"), (wanted,) * 3, 2)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_a_damaged_profile_is_refused(tmp_path: Path, ending: str) -> None:
    for number, data in enumerate([b"abc" * 100, rgb_profile(P3)[:300]]):
        flat().save(tmp_path / f"{number}.{ending}", icc_profile=data)
        with pytest.raises(MediaError, match=r"colour profile of .* is damaged; save the image again as sRGB"):
            load_image(tmp_path / f"{number}.{ending}")


@pytest.mark.parametrize(
    ("mode", "colour", "data"),
    [
        ("CMYK", (10, 20, 30, 40), rgb_profile(P3)),
        ("CMYK", (10, 20, 30, 40), grey_profile(2.2)),
        ("RGB", PIXEL, cmyk_profile(50)),
        ("L", 100, cmyk_profile(50)),
        ("RGB", PIXEL, grey_profile(2.2)),
    ],
)
def test_a_profile_for_another_kind_of_image_is_refused(tmp_path: Path, mode: str, colour: object, data: bytes) -> None:
    flat(colour, mode).save(tmp_path / "a.tif", icc_profile=data)
    with pytest.raises(MediaError, match="its colour profile is for"):
        load_image(tmp_path / "a.tif")


# -- PNG


@pytest.mark.parametrize(
    ("chunks", "colour", "wanted"),
    [
        ({"gAMA": gama(1.0)}, (128, 64, 255), (188, 137, 255)),
        ({"gAMA": gama(1 / 1.8)}, PIXEL, (210, 77, 53)),
        ({"gAMA": gama(0.45455)}, PIXEL, PIXEL),
        ({"gAMA": gama(0.45455), "cHRM": chrm(P3)}, PIXEL, (219, 37, 13)),  # a power of 2.2, not the curve of sRGB
        ({"gAMA": gama(256 / 563), "cHRM": chrm(ADOBE)}, PIXEL, IN_ADOBE),
        ({"gAMA": gama(0.45455), "cHRM": chrm(BT709)}, PIXEL, PIXEL),
        ({"cHRM": chrm(P3)}, PIXEL, IN_P3),
        ({"cHRM": chrm(BT709)}, PIXEL, PIXEL),
        ({"sRGB": b"\0", "gAMA": gama(1.0)}, PIXEL, PIXEL),
        ({"cICP": bytes([12, 13, 0, 1])}, PIXEL, IN_P3),
        ({"cICP": bytes([12, 2, 0, 1])}, PIXEL, IN_P3),
        ({"cICP": bytes([1, 13, 0, 1]), "sRGB": b"\0", "gAMA": gama(1.0)}, PIXEL, PIXEL),
        ({"cICP": bytes([12, 13, 0, 1]), "sRGB": b"\0"}, PIXEL, IN_P3),
        ({"cICP": bytes([1, 8, 0, 1])}, (128, 64, 255), (188, 137, 255)),
        ({"cICP": bytes([1, 13, 0, 0])}, (235, 16, 126), (255, 0, 128)),
    ],
)
def test_png_chunks_are_obeyed_in_their_order(
    tmp_path: Path, chunks: dict[str, bytes], colour: Colour, wanted: Colour
) -> None:
    found = read(png_with(tmp_path / "a.png", flat(colour), **chunks))
    assert near(found, wanted, 1)


def test_the_code_points_of_a_png_come_before_its_profile(tmp_path: Path) -> None:
    flat().save(tmp_path / "a.png", icc_profile=rgb_profile(ADOBE, ADOBE_GAMMA))
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert read(png_with(tmp_path / "b.png", image, cICP=bytes([12, 13, 0, 1]))) == IN_P3


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_mapped_to_the_brightness_of_a_screen(tmp_path: Path, transfer: int) -> None:
    white = {16: 148, 18: 191}[transfer]  # BT.2408: reference white is at 58 % of PQ and 75 % of HLG
    found = read(png_with(tmp_path / "a.png", flat((white,) * 3), cICP=bytes([9, transfer, 0, 1])))
    assert len(set(found)) == 1
    assert 190 <= found[0] <= 245
    dark = read(png_with(tmp_path / "b.png", flat((0, 0, 0)), cICP=bytes([9, transfer, 0, 1])))
    assert dark == (0, 0, 0)


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ({"cICP": bytes([77, 13, 0, 1])}, "colour primaries number 77"),
        ({"cICP": bytes([1, 99, 0, 1])}, "transfer characteristic number 99"),
        ({"gAMA": gama(0)}, "gAMA or cHRM chunk"),
        ({"gAMA": gama(1), "cHRM": bytes(32)}, "gAMA or cHRM chunk"),
    ],
)
def test_unknown_or_impossible_chunks_are_refused(tmp_path: Path, chunks: dict[str, bytes], reason: str) -> None:
    with pytest.raises(MediaError, match=reason):
        load_image(png_with(tmp_path / "a.png", flat(), **chunks))


# -- cameras and phones


def test_a_camera_set_to_adobe_rgb_is_read_as_that(tmp_path: Path) -> None:
    for name, space, index, wanted in (
        ("a", 65535, "R03", IN_ADOBE),
        ("b", 65535, "R98", PIXEL),
        ("c", 2, "", IN_ADOBE),
    ):
        exif = Image.Exif()
        exif.get_ifd(0x8769).update({0xA001: space, 0xA005: {1: index}})
        flat().save(tmp_path / f"{name}.jpg", exif=exif, quality=100, subsampling=0)
        assert near(read(tmp_path / f"{name}.jpg"), wanted, 3)


def test_heic_is_read_with_its_profile(tmp_path: Path) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    flat().save(tmp_path / "plain.HEIC", "HEIF", quality=100)
    flat().save(tmp_path / "p3.heic", quality=100, icc_profile=rgb_profile(P3))
    assert near(read(tmp_path / "plain.HEIC"), PIXEL, 3)
    assert near(read(tmp_path / "p3.heic"), IN_P3, 3)


def test_heic_without_its_package_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x1cftypheic" + bytes(100))
    with pytest.raises(MediaError, match=r"a\.heic is a HEIC image; install the extra wan-core\[heif\]"):
        load_image(tmp_path / "a.heic")


@pytest.mark.parametrize(
    ("chunks", "wanted"),
    [
        ({"cICP": bytes([2, 2, 0, 1]), "gAMA": gama(1.0)}, (128, 64, 255)),
        ({"tEXt": b"a\0" + bytes(2_000_000), "cICP": bytes([1, 8, 0, 1])}, (128, 64, 255)),
    ],
)
def test_what_cicp_leaves_open_others_say_and_no_long_chunk_hides_it(
    tmp_path: Path, chunks: dict[str, bytes], wanted: Colour
) -> None:
    assert read(png_with(tmp_path / "a.png", flat(wanted), **chunks)) == (188, 137, 255)


@pytest.mark.parametrize("data", [b"", b"\1\15\0", b"\1\15\0\1\0"])
def test_a_cicp_chunk_of_another_length_is_damaged(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(MediaError, match=r"cICP chunk of .* is damaged"):
        read(png_with(tmp_path / "a.png", flat(), cICP=data))


# -- JPEG 2000


def jp2_with(path: Path, image: Image.Image, content: bytes) -> Path:
    """A JPEG 2000 file with another ``colr`` box."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG2000")
    data = buffer.getvalue()
    place, header = data.index(b"colr") - 4, data.index(b"jp2h") - 4
    size = int.from_bytes(data[place : place + 4], "big")
    box = (8 + len(content)).to_bytes(4, "big") + b"colr" + content
    length = int.from_bytes(data[header : header + 4], "big") + len(box) - size
    path.write_bytes(data[:header] + length.to_bytes(4, "big") + data[header + 4 : place] + box + data[place + size :])
    return path


def test_jpeg_2000_says_its_colours_in_a_box(tmp_path: Path) -> None:
    file = tmp_path / "a.jp2"
    assert read(jp2_with(file, flat(), b"\2\0\0" + rgb_profile(P3))) == IN_P3
    assert read(jp2_with(file, flat(), b"\1\0\0\0\0\0\20")) == PIXEL
    assert read(jp2_with(file, flat(), bytes([5, 0, 0, 0, 12, 0, 13, 0, 0, 0x80]))) == IN_P3
    grey = jp2_with(file, flat(100, "L"), b"\2\0\0" + grey_profile(1.0))
    assert near(read(grey), (168, 168, 168), 2)
    with pytest.raises(MediaError, match=r"colour profile of .* is damaged"):
        read(jp2_with(file, flat(), b"\2\0\0" + rgb_profile(P3)[:200]))
    with pytest.raises(MediaError, match="colour space number 20 of JPEG 2000"):
        read(jp2_with(file, flat(), b"\1\0\0\0\0\0\24"))


# -- BMP


def bmp_with(path: Path, kind: bytes, profile: bytes) -> Path:
    """One pixel in a file with a BITMAPV5HEADER whose colour space is ``kind``."""
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 124, 1, 1, 1, 32, 3, 4, 0, 0, 0, 0) + masks + kind + bytes(48)
    head += struct.pack("<4I", 4, 124 + 4, len(profile), 0)
    data = head + bytes([*reversed(PIXEL), 255]) + profile
    path.write_bytes(b"BM" + struct.pack("<IHHI", 14 + len(data), 0, 0, 14 + 124) + data)
    return path


def test_a_bmp_file_says_its_colours_by_a_profile(tmp_path: Path) -> None:
    wanted = {b"DEBM": IN_P3, b"BGRs": PIXEL}  # PROFILE_EMBEDDED and LCS_sRGB, last letter first
    for kind, colour in wanted.items():
        assert load_image(bmp_with(tmp_path / "a.bmp", kind, rgb_profile(P3))).getpixel((0, 0)) == colour
    with pytest.raises(MediaError, match=r"profile of .* is in another file"):
        load_image(bmp_with(tmp_path / "a.bmp", b"KNIL", b"C:\\a.icc"))
    with pytest.raises(MediaError, match=r"profile of .* is damaged"):
        load_image(bmp_with(tmp_path / "a.bmp", b"DEBM", rgb_profile(P3)[:200]))


# -- videos


def mjpeg(path: Path, profile: bytes) -> Path:
    """Three JPEG files, each with its profile, as a video."""
    buffer = io.BytesIO()
    flat().save(buffer, "JPEG", quality=100, subsampling=0, icc_profile=profile)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj444p"
        for index in range(3):
            packet = av.Packet(buffer.getvalue())
            packet.stream, packet.time_base = stream, Fraction(1, 10)
            packet.pts = packet.dts = index
            container.mux(packet)
    return path


def video_colours(path: Path, **part: float) -> list[Colour]:
    return [tuple(frame[:, 5, 5].tolist()) for frame in read_video(path, **part).frames]  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", ["avi", "mov", "mkv"])
def test_the_profile_of_motion_jpeg_is_applied(tmp_path: Path, ending: str) -> None:
    found = video_colours(mjpeg(tmp_path / f"a.{ending}", rgb_profile(P3)))
    assert len(found) == 3
    assert all(near(each, IN_P3, 3) for each in found)
    with pytest.raises(MediaError, match=r"b\.\w+ is RGB, its colour profile is for CMYK"):
        video_colours(mjpeg(tmp_path / f"b.{ending}", cmyk_profile(20)))


@pytest.mark.parametrize("part", [{}, {"start": 0.15}])
@pytest.mark.parametrize("opacity", [255, 0])
def test_the_profile_of_an_animated_png_is_applied_to_all_frames(
    tmp_path: Path, part: dict[str, float], opacity: int
) -> None:
    path = tmp_path / "a.apng"
    shown = Image.new("RGBA", (16, 16), (*PIXEL, opacity))
    others = [Image.new("RGBA", (16, 16), (*PIXEL[:2], 41 + index, opacity)) for index in range(4)]
    shown.save(path, "PNG", save_all=True, append_images=others, duration=100, icc_profile=rgb_profile(P3))
    wanted = IN_P3 if opacity else (255, 255, 255)
    found = video_colours(path, **part)
    assert len(found) == (3 if part else 5)
    assert all(near(each, wanted, 7) for each in found)
    gc.collect()  # PyAV's side data of such frames would end the process here
