"""Colours as a video says them: HDR, wide gamuts, matrices and ranges, said or not."""

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from wan_core.errors import MediaError
from wan_core.media import count_frames, probe_video, read_video, stream_video
from wan_core.media.colour import (
    BT709,
    PRIMARIES,
    TRANSFERS,
    UNSAID,
    Description,
    conversion,
    hlg_light,
    pq_code,
    pq_light,
)

from .media_clips import PATCH, centre, encode_frames, flat_frame

BT2020, DISPLAY_P3, PQ, HLG, UNSPECIFIED = 9, 12, 16, 18, 2
REFERENCE_WHITE = 203


def light_of(patch: tuple[int, ...] = PATCH, *, primaries: int, curve: str = "srgb") -> NDArray[np.float64]:
    """An SDR colour as linear light in another gamut, white being 1."""
    code = np.array(patch) / 255
    light = code**2.4 if curve == "bt1886" else TRANSFERS[13].to_light(code)
    return np.linalg.solve(PRIMARIES[primaries].to_xyz(), BT709.to_xyz()) @ light


def hdr_codes(light: NDArray[np.float64], transfer: int, primaries: int = BT2020) -> NDArray[np.float64]:
    """Display light, 1 being 203 cd/m2, as HDR code values in [0, 1] (BT.2100)."""
    if transfer == PQ:
        return pq_code(light * REFERENCE_WHITE / 10_000)
    shown = light * REFERENCE_WHITE / 1000
    luminance = PRIMARIES[primaries].to_xyz()[1] @ shown
    scene = shown * luminance ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


def tags(matrix: int, primaries: int, transfer: int, full: bool = False) -> dict[str, object]:
    return {
        "colorspace": matrix, "color_primaries": primaries, "color_trc": transfer, "color_range": 2 if full else 1
    }  # fmt: skip


# -- HDR


@pytest.mark.parametrize("curve", ["srgb", "bt1886"])
@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize(
    ("primaries", "codec", "pixel_format", "full"),
    [
        (BT2020, "libx265", "yuv420p10le", False),
        (BT2020, "ffv1", "yuv422p12le", False),
        (BT2020, "ffv1", "yuv444p10le", True),
        (DISPLAY_P3, "ffv1", "yuv420p10le", False),
        (BT2020, "prores_ks", "yuv422p10le", False),
    ],
)
def test_hdr_is_tone_mapped(
    tmp_path: Path, curve: str, transfer: int, primaries: int, codec: str, pixel_format: str, full: bool
) -> None:
    codes = hdr_codes(light_of(primaries=primaries, curve=curve), transfer, primaries)
    frames = [flat_frame(codes, pixel_format, 9, full=full) for _ in range(2)]
    options = {"crf": "1", "x265-params": "log-level=none:bframes=0"} if codec == "libx265" else {}
    name = "a.mov" if codec == "prores_ks" else "a.mkv"
    path = encode_frames(tmp_path / name, frames, codec, tags=tags(9, primaries, transfer, full), **options)
    found = centre(read_video(path).frames)
    # What sRGB and BT.1886 make of the same numbers differs; both lie near (212, 72, 38).
    assert found == pytest.approx((203, 70, 51) if curve == "srgb" else PATCH, abs=2)
    assert found == pytest.approx((212, 72, 38), abs=14)
    assert ("PQ" if transfer == PQ else "HLG") in probe_video(path).notes[0]
    assert count_frames(path) == 2


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_greys_stay_grey_and_in_order(transfer: int) -> None:
    convert = conversion(BT2020, transfer)
    assert convert is not None
    ramp = np.repeat(np.arange(0, 65536, 13, dtype=np.uint16)[None, :, None], 3, axis=2)
    shown = convert.apply(ramp)[0].astype(int)
    assert (shown.max(axis=1) - shown.min(axis=1)).max() <= 1
    assert (np.diff(shown[:, 0]) >= 0).all()
    assert shown[0, 0] == 0
    assert shown[-1, 0] == 255


@pytest.mark.parametrize(
    ("nits", "expected"),
    # Below the knee (92 cd/m2 for a peak of 1000) the light is as it was, above it follows the spline of BT.2408.
    [(10, 73), (50, 142), (90, 182), (203, 230), (1000, 255), (4000, 255)],
)
def test_the_eetf_keeps_mid_tones_and_rolls_off_highlights(nits: float, expected: int) -> None:
    convert = conversion(BT2020, PQ)
    assert convert is not None
    code = round(float(pq_code(np.array(nits / 10_000))) * 65535)
    found = convert.apply(np.full((1, 1, 3), code, np.uint16)).ravel()
    assert found == pytest.approx([expected] * 3, abs=1)


def test_a_brighter_mastering_display_leaves_room_for_its_highlights(tmp_path: Path) -> None:
    codes = hdr_codes(np.full(3, 900 / REFERENCE_WHITE), PQ)
    brightness = {}
    for peak in (1000, 4000):
        master = f"G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)L({peak}0000,50)"
        path = encode_frames(
            tmp_path / f"{peak}.mkv",
            [flat_frame(codes, "yuv420p10le", 9) for _ in range(3)],
            "libx265",
            tags=tags(9, BT2020, PQ),
            **{"x265-params": f"log-level=none:bframes=0:hdr10=1:repeat-headers=1:master-display={master}", "crf": "1"},
        )
        frames = read_video(path).frames
        brightness[peak] = centre(frames)[0]
        assert centre(frames[-1:]) == pytest.approx(centre(frames), abs=1)
    assert brightness[1000] == pytest.approx(255, abs=1)
    assert brightness[4000] < 250


def test_curves_of_bt2100() -> None:
    # BT.2408, table 1: HDR reference white, 203 cd/m2, is 58 % in PQ and 75 % in HLG.
    assert pq_code(np.array(203 / 10_000)) == pytest.approx(0.58, abs=0.002)
    assert 1000 * hlg_light(np.array(0.75)) ** 1.2 == pytest.approx(203, abs=1)
    codes = np.linspace(0, 1, 101)
    assert pq_code(pq_light(codes)) == pytest.approx(codes, abs=1e-6)


def test_tables_are_as_exact_as_the_formulas() -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 65536, (40, 50, 3)).astype(np.uint16)
    image[:, :25] //= 64  # dark ones
    for primaries, transfer in ((BT2020, 14), (DISPLAY_P3, 13), (5, 6), (1, 5)):
        curve = TRANSFERS[transfer]
        matrix = np.linalg.solve(BT709.to_xyz(), PRIMARIES[primaries].to_xyz())
        exact = 255 * curve.to_code((curve.to_light(image / 65535) @ matrix.T).clip(0, 1))
        convert = conversion(primaries, transfer)
        assert convert is not None
        assert np.abs(convert.apply(image) - exact).max() < 0.53


# -- other gamuts and curves


@pytest.mark.parametrize(
    ("primaries", "transfer", "expected"),
    [
        (DISPLAY_P3, 13, (217, 42, 23)),  # as an image with that profile is read
        (DISPLAY_P3, 1, (219, 46, 28)),
        (1, 13, PATCH),  # screen recordings say sRGB
        (1, 1, PATCH),
        (2, 2, PATCH),
        (6, 6, (194, 65, 39)),
        (5, 6, (204, 60, 40)),
        (1, 4, (201, 58, 35)),
        (1, 5, (189, 36, 17)),
        (1, 8, (228, 133, 110)),
    ],
)
def test_gamut_and_curve_become_those_of_bt709(
    tmp_path: Path, primaries: int, transfer: int, expected: tuple[int, ...]
) -> None:
    frames = [flat_frame(np.array(PATCH) / 255, "yuv444p10le")]
    path = encode_frames(tmp_path / "a.mkv", frames, "ffv1", tags=tags(1, primaries, transfer))
    assert centre(read_video(path).frames) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv420p12le", "yuv420p"])
@pytest.mark.parametrize("transfer", [1, 14, 15])
@pytest.mark.parametrize("primaries", [BT2020, UNSPECIFIED])
def test_sdr_in_bt2020_becomes_bt709(tmp_path: Path, pixel_format: str, transfer: int, primaries: int) -> None:
    curve = TRANSFERS[transfer]
    light = np.linalg.solve(PRIMARIES[BT2020].to_xyz(), BT709.to_xyz()) @ curve.to_light(np.array(PATCH) / 255)
    frames = [flat_frame(curve.to_code(light), pixel_format, 9)]
    path = encode_frames(tmp_path / "a.mkv", frames, "ffv1", tags=tags(9, primaries, transfer))
    assert centre(read_video(path).frames) == pytest.approx(PATCH, abs=2)


@pytest.mark.parametrize(
    ("primaries", "name"), [(9, "bt2020"), (12, "smpte432"), (5, "bt470bg"), (6, "smpte170m"), (11, "smpte431")]
)
def test_gamuts_as_ffmpegs_colorspace_filter_has_them(tmp_path: Path, primaries: int, name: str) -> None:
    generator = np.random.default_rng(3)
    coarse = generator.integers(40, 200, (4, 4, 3)).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(coarse.repeat(16, axis=0).repeat(16, axis=1), format="rgb24")
    frame = frame.reformat(format="yuv444p12le", dst_colorspace=1, dst_color_range=1)
    frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range = primaries, 1, 1, 1
    path = encode_frames(tmp_path / "a.mkv", [frame], "ffv1", tags=tags(1, primaries, 1))
    graph = av.filter.Graph()
    source = graph.add_buffer(width=64, height=64, format="yuv444p12le", time_base=frame.time_base)
    options = f"iprimaries={name}:itrc=bt709:ispace=bt709:irange=tv:all=bt709:format=yuv444p12"
    graph.link_nodes(source, graph.add("colorspace", options), graph.add("buffersink")).configure()
    graph.vpush(frame)
    expected = graph.vpull().reformat(format="rgb24", src_colorspace=1, dst_colorspace="DEFAULT").to_ndarray()
    found = read_video(path).frames[0].permute(1, 2, 0).numpy()
    middles = np.s_[8::16, 8::16]
    assert np.abs(found[middles].astype(int) - expected[middles]).max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_below_the_knee_as_swscale_maps_it(transfer: int) -> None:
    generator = np.random.default_rng(4)
    light = np.stack([light_of(tuple(patch), primaries=BT2020) for patch in generator.integers(20, 150, (64, 3))])
    codes = np.stack([hdr_codes(each, transfer) for each in light.clip(0, 1)])
    image = np.round(codes * 65535).astype(np.uint16).reshape(8, 8, 3)
    frame = av.VideoFrame.from_ndarray(image, format="gbrp16le")
    frame.color_primaries, frame.color_trc = BT2020, transfer
    theirs = frame.reformat(format="gbrp16le", dst_color_trc=1, dst_color_primaries=1, interpolation=0x4).to_ndarray()
    convert = conversion(BT2020, transfer)
    assert convert is not None
    difference = np.abs(convert.apply(image) - theirs / 257.0)
    assert difference.mean() < 1
    assert difference.max() < 10  # it interpolates between the points of a coarse cube


# -- refusals


@pytest.mark.parametrize(
    ("numbers", "name"),
    [((14, 9, 16), "ICtCp"), ((10, 9, 14), "constant luminance"), ((8, 1, 1), "YCgCo"), ((15, 9, 16), "Dolby Vision")],
)
def test_other_matrices_are_refused_by_name(tmp_path: Path, numbers: tuple[int, int, int], name: str) -> None:
    frames = [flat_frame((0.5, 0.4, 0.3), "yuv420p10le", 9)]
    path = encode_frames(tmp_path / "a.mkv", frames, "ffv1", tags=tags(*numbers))
    for read in (read_video, probe_video, count_frames, lambda file: next(stream_video(file))):
        with pytest.raises(MediaError, match=name) as caught:
            read(path)
        assert "a.mkv" in str(caught.value)
        assert "BT.709" in str(caught.value)


@pytest.mark.parametrize(("said", "is_refused"), [({}, True), ({"colorspace": 9, "color_trc": 16}, False)])
def test_dolby_vision_without_a_base_layer_is_refused(
    tmp_path: Path, said: dict[str, object], is_refused: bool
) -> None:
    frames = [flat_frame((0.5, 0.4, 0.3), "yuv420p10le", 9) for _ in range(3)]
    path = encode_frames(
        tmp_path / "a.mp4", frames, "libx265", tags=said, **{"x265-params": "log-level=none:bframes=0"}
    )
    path.write_bytes(path.read_bytes().replace(b"hev1", b"dvh1"))
    if is_refused:
        with pytest.raises(MediaError, match="Dolby Vision"):
            read_video(path)
    else:
        assert len(read_video(path).frames) == 3


def describe(*, matrix: int = 1, primaries: int = 1, transfer: int = 1) -> Description:
    return Description(matrix=matrix, primaries=primaries, transfer=transfer, is_rgb=False, width=640, height=480)


def test_every_number_of_h273_is_read_or_refused() -> None:
    for number in range(256):
        for seen in (describe(matrix=number), describe(primaries=number), describe(transfer=number)):
            if seen.refusal() is None:
                assert seen.swscale_matrix in (1, 4, 5, 7, 9)
                conversion(seen.primaries, seen.transfer)
            else:
                assert number not in UNSAID
    assert describe(primaries=10).refusal() == "has the colour primaries CIE XYZ (SMPTE ST 428)"
    assert describe(matrix=12, primaries=9).swscale_matrix == 9
    assert describe(matrix=12, primaries=12).refusal() is not None


# -- matrices and ranges


@pytest.mark.parametrize(
    ("size", "taken"),
    [((1280, 720), 1), ((1920, 1080), 1), ((720, 1280), 1), ((720, 576), 5), ((640, 480), 5), ((704, 600), 1)],
)
def test_a_matrix_that_is_not_said_is_the_one_of_that_size(tmp_path: Path, size: tuple[int, int], taken: int) -> None:
    frames = [flat_frame(np.array(PATCH) / 255, "yuv420p", taken, size=size)]
    path = encode_frames(tmp_path / "a.mkv", frames, "ffv1")
    assert centre(read_video(path).frames) == pytest.approx(PATCH, abs=2)
    (note,) = probe_video(path).notes
    assert note.startswith(f"does not say its colour matrix; {'BT.709' if taken == 1 else 'BT.601'} is taken")


@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize(("matrix", "primaries"), [(UNSPECIFIED, BT2020), (9, UNSPECIFIED), (UNSPECIFIED, UNSPECIFIED)])
def test_what_hdr_does_not_say_is_that_of_bt2020(tmp_path: Path, transfer: int, matrix: int, primaries: int) -> None:
    codes = hdr_codes(light_of(primaries=BT2020), transfer)
    frames = [flat_frame(codes, "yuv420p10le", 9)]
    path = encode_frames(tmp_path / "a.mkv", frames, "ffv1", tags=tags(matrix, primaries, transfer))
    assert centre(read_video(path).frames) == pytest.approx((203, 70, 51), abs=2)
    hdr, *guess = probe_video(path).notes
    assert "BT.2020" in hdr
    assert len(guess) == (matrix == UNSPECIFIED)
    assert all("BT.2020 is taken" in note for note in guess)


def test_what_is_said_may_change_midway(tmp_path: Path) -> None:
    codes = hdr_codes(light_of(primaries=BT2020), PQ)
    parts = [(np.array(PATCH) / 255, 1, tags(1, 1, 1)), (codes, 9, tags(9, BT2020, PQ))]
    for number, (values, matrix, said) in enumerate(parts):
        frames = [flat_frame(values, "yuv420p10le", matrix) for _ in range(3)]
        encode_frames(tmp_path / f"{number}.h264", frames, "libx264", tags=said, crf="1")
    whole = tmp_path / "whole.h264"
    whole.write_bytes(b"".join((tmp_path / f"{number}.h264").read_bytes() for number in range(2)))
    frames = read_video(whole).frames
    assert len(frames) == 6
    assert centre(frames[:3]) == pytest.approx(PATCH, abs=2)
    assert centre(frames[3:]) == pytest.approx((203, 70, 51), abs=2)


def test_nothing_is_noted_where_everything_is_said(tmp_path: Path) -> None:
    path = encode_frames(tmp_path / "a.mkv", [flat_frame((0.5, 0.4, 0.3), "yuv420p")], "ffv1", tags=tags(1, 1, 1))
    assert probe_video(path).notes == ()


@pytest.mark.parametrize(("matrix", "swscale"), [(1, 1), (5, 5), (6, 5), (7, 7), (4, 4), (9, 9)])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p10le"])
def test_a_matrix_and_a_range_that_are_said_are_used(
    tmp_path: Path, matrix: int, swscale: int, full: bool, pixel_format: str
) -> None:
    frames = [flat_frame(np.array(PATCH) / 255, pixel_format, swscale, full=full)]
    path = encode_frames(tmp_path / "a.mkv", frames, "ffv1", tags=tags(matrix, 1, 1, full))
    assert centre(read_video(path).frames) == pytest.approx(PATCH, abs=2)
