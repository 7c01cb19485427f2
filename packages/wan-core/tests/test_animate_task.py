"""Parts of Wan-Animate's task: segments of long videos, the reference's place, sound as long as the frames."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wan_core.errors import RequestError
from wan_core.media import AudioTrack, fit_padded, lengthened
from wan_core.tasks import AnimateRequest
from wan_core.tasks.segments import extended_length, known_channels, mirrored, num_segments


@given(st.integers(1, 400), st.integers(1, 20), st.sampled_from([1, 5]))
def test_segments_cover_the_video_and_none_is_for_nothing(num_frames: int, quarter: int, overlap: int) -> None:
    clip = 4 * quarter + 9
    count, step = num_segments(num_frames, clip, overlap), clip - overlap
    covered = overlap + count * step
    assert covered >= num_frames
    assert count == 1 or covered - step < num_frames
    if num_frames > clip:
        assert extended_length(num_frames, clip, overlap) == covered


def test_a_driving_video_goes_back_at_its_end_and_forth_at_its_start() -> None:
    assert [mirrored(index, 4) for index in range(9)] == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert {mirrored(index, 1) for index in range(5)} == {0}


def test_what_is_known_is_not_rounded_and_what_is_given_stays_as_it_was() -> None:
    shown = torch.full((1, 5, 1, 1), 0.25)
    channels = known_channels(shown, 2)
    assert channels[0, :, :, 0, 0].T.tolist() == [[1, 1, 1, 1], [1, 0.25, 0.25, 0.25]]
    assert shown.eq(0.25).all()


@pytest.mark.parametrize(("size", "inside"), [((30, 60), (24, 0, 40, 32)), ((90, 20), (0, 9, 64, 23))])
def test_a_reference_is_in_the_middle_of_black(size: tuple[int, int], inside: tuple[int, int, int, int]) -> None:
    fitted = fit_padded(Image.new("RGB", size, (255, 9, 200)), 64, 32)
    assert fitted.size == (64, 32)
    assert fitted.getbbox() == inside
    assert fitted.crop(inside).getcolors() == [((inside[2] - inside[0]) * (inside[3] - inside[1]), (255, 9, 200))]


def test_a_reference_of_no_height_is_refused() -> None:
    with pytest.raises(RequestError, match="4000x2 is too long and narrow for 64x32"):
        fit_padded(Image.new("RGB", (4000, 2)), 64, 32)


def test_a_short_sound_is_followed_by_silence_and_a_long_one_stays() -> None:
    track = AudioTrack(torch.ones(2, 100), 100)
    longer = lengthened(track, 1.5)
    assert np.isclose(longer.seconds, 1.5)
    assert longer.samples[:, 100:].eq(0).all()
    assert torch.equal(lengthened(track, 0.5).samples, track.samples)


@pytest.mark.parametrize(
    ("values", "words"), [({}, "--src-root-path"), ({"src_root_path": ".", "refert_num": 2}, "1 or 5")]
)
def test_impossible_requests_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        AnimateRequest(**values).validate()  # type: ignore[arg-type]
