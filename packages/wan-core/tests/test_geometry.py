"""Sizes: pixels, latents, tokens."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_core.errors import RequestError
from wan_core.media import (
    LatentSpec,
    VideoGeometry,
    best_output_size,
    latent_grid_for_area,
    padded_size_within,
    parse_size,
)

WAN21 = LatentSpec(channels=16)
WAN22 = LatentSpec(channels=48, spatial_stride=16)


@pytest.mark.parametrize(
    ("spec", "num_frames", "height", "width", "latent_shape", "tokens"),
    [
        (WAN21, 81, 720, 1280, (16, 21, 90, 160), 75600),
        (WAN21, 81, 480, 832, (16, 21, 60, 104), 32760),
        (WAN22, 121, 704, 1280, (48, 31, 44, 80), 27280),
        (WAN21, 1, 16, 16, (16, 1, 2, 2), 1),
    ],
)
def test_known_shapes_and_token_counts(
    spec: LatentSpec, num_frames: int, height: int, width: int, latent_shape: tuple[int, ...], tokens: int
) -> None:
    geometry = VideoGeometry.for_video(spec, num_frames, height, width)
    assert geometry.latent_shape == latent_shape
    assert geometry.num_tokens == tokens
    assert geometry.tokens_per_frame * geometry.latent_frames == tokens


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((80, 480, 832), "num_frames must be 4n+1, got 80; nearest are 77 and 81"),
        ((82, 480, 832), "num_frames must be 4n+1, got 82; nearest are 81 and 85"),
        ((0, 480, 832), "num_frames must be at least 1, got 0"),
        ((-3, 480, 832), "num_frames must be at least 1, got -3"),
        ((81, 488, 832), "height must be a multiple of 16, got 488; nearest are 480 and 496"),
        ((81, 480, 1), "width must be at least 16 pixels, got 1"),
        ((81, -480, 832), "height must be at least 16 pixels, got -480"),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest_that_do(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(message)}$"):
        VideoGeometry.for_video(WAN21, *sizes)


def test_a_patch_in_time_asks_for_whole_patches() -> None:
    spec = LatentSpec(channels=16, patch_size=(2, 2, 2))
    assert VideoGeometry.for_video(spec, 13, 32, 32).token_grid == (2, 2, 2)
    with pytest.raises(RequestError, match=re.escape("num_frames must be 8n+5, got 9; nearest are 5 and 13")):
        VideoGeometry.for_video(spec, 9, 32, 32)
    with pytest.raises(RequestError, match=re.escape("num_frames must be 8n+5, got 1; the smallest is 5")):
        VideoGeometry.for_video(spec, 1, 32, 32)


@given(
    num_frames=st.integers(-5, 200),
    height=st.integers(-5, 200),
    width=st.integers(-5, 200),
    stride=st.sampled_from([8, 16]),
    patch=st.sampled_from([1, 2]),
)
def test_a_geometry_divides_without_remainder_or_is_refused(
    num_frames: int, height: int, width: int, stride: int, patch: int
) -> None:
    spec = LatentSpec(16, 4, stride, (1, patch, patch))
    try:
        geometry = VideoGeometry.for_video(spec, num_frames, height, width)
    except RequestError:
        assert (
            num_frames < 1
            or num_frames % 4 != 1
            or min(height, width) < 1
            or height % 8
            or width % 8
            or stride * patch > 8
        )
        return
    _, frames, rows, columns = geometry.latent_shape
    assert (4 * (frames - 1) + 1, rows * stride, columns * stride) == (num_frames, height, width)
    assert geometry.num_tokens == frames * (rows // patch) * (columns // patch) > 0


@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    multiples=st.sampled_from([(16, 16), (32, 32), (32, 16), (64, 64)]),
    area=st.sampled_from([3072, 114688, 399360, 921600]),
)
def test_best_size_is_in_multiples_and_within_the_area(
    width: int, height: int, multiples: tuple[int, int], area: int
) -> None:
    try:
        size = best_output_size(width, height, *multiples, area)
    except RequestError:
        assert max(width / height, height / width) * multiples[0] * multiples[1] * 4 > area
        return
    assert size.width % multiples[0] == 0
    assert size.height % multiples[1] == 0
    assert 0 < size.width * size.height <= area


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), area=st.integers(1024, 10**6))
def test_latent_grid_is_even_and_keeps_the_area(width: int, height: int, area: int) -> None:
    try:
        rows, columns = latent_grid_for_area(height, width, area, WAN21)
    except RequestError:
        assert max(width / height, height / width) * 256 > area
        return
    assert rows % 2 == 0
    assert columns % 2 == 0
    assert 0 < rows * columns * 64 <= area


def test_a_size_that_fits_already_is_kept() -> None:
    assert best_output_size(1280, 704, 32, 32, 1280 * 704) == (1280, 704)
    assert latent_grid_for_area(720, 1280, 1280 * 720, WAN21) == (90, 160)


@pytest.mark.parametrize(("width", "height"), [(100_000, 10), (10, 100_000), (1, 5000)])
def test_too_elongated_pictures_are_refused_with_a_remedy(width: int, height: int) -> None:
    for attempt in (
        lambda: best_output_size(width, height, 32, 32, 704 * 1280),
        lambda: latent_grid_for_area(height, width, 832 * 480, WAN21),
    ):
        with pytest.raises(RequestError, match=f"{width}x{height} picture has no size .* crop it"):
            attempt()


def test_empty_pictures_are_refused() -> None:
    with pytest.raises(RequestError, match="must not be empty"):
        best_output_size(0, 5, 32, 32, 1000)
    with pytest.raises(RequestError, match="must not be empty"):
        latent_grid_for_area(5, 5, 0, WAN21)


@pytest.mark.parametrize("text", ["1280*720", "1280x720", " 1280 X 720 "])
def test_sizes_are_read_width_first(text: str) -> None:
    assert parse_size(text) == (1280, 720)


@pytest.mark.parametrize("text", ["", "1280", "1280*", "0*720", "-1*5", "1280*720*3", "1280,720", "1e3*5", "9999999*9"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="such as 1280\\*720 or 1280x704"):
        parse_size(text)


@pytest.mark.parametrize(
    ("width", "height", "area", "expected"),
    [
        (1280, 720, 1024 * 704, (1088, 640)),
        (720, 1280, 480 * 832, (448, 832)),
        (854, 480, 1280 * 720, (896, 512)),
        (64, 64, 64 * 64, (64, 64)),
    ],
)
def test_an_image_is_padded_into_an_area(width: int, height: int, area: int, expected: tuple[int, int]) -> None:
    assert padded_size_within(width, height, area) == expected


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(64 * 64, 1280 * 720))
def test_a_padded_size_is_in_multiples_within_the_area(width: int, height: int, area: int) -> None:
    try:
        size = padded_size_within(width, height, area)
    except RequestError as error:
        assert "crop it" in str(error)  # noqa: PT017 - one of both is always so
        return
    assert size.width % 64 == size.height % 64 == 0
    assert size.width * size.height <= area


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0)])
def test_an_empty_image_has_no_padded_size(width: int, height: int) -> None:
    with pytest.raises(RequestError, match="must not be empty"):
        padded_size_within(width, height, 4096)
