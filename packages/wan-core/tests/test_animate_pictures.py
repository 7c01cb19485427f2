"""Pictures of Wan-Animate's preprocessing: sizes, chosen frames, skeletons, masks, faces."""

import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from wan_core.animate import HUES, sam2, without_overlaps
from wan_core.animate.draw import draw_pose, line_width
from wan_core.animate.driving_video import DrivingVideo
from wan_core.animate.face import FaceBox, crop_face, face_box, fill_boxes
from wan_core.animate.frames import are_even, frame_indices, nearest_frames, select_frames
from wan_core.animate.keypoints import NUM_DETECTED, PosePoints, Skeleton, split_points
from wan_core.animate.mask import augment_mask, background, dilate_mask, fill_cells, pack_mask, unpack_mask
from wan_core.animate.persons import Sighting
from wan_core.animate.resize import padded_resize, resize_to_area, size_of_area
from wan_core.animate.sam2 import MaskTracker
from wan_core.animate.tracking import kept_masks, make_masks
from wan_core.errors import BackendError, MediaError, RequestError
from wan_core.kept_clips import KeptParts
from wan_core.media import fit_padded, video_reader, write_video
from wan_core.media.video_decoding import TimedFrame


def test_a_wide_picture_lies_between_bars_of_the_colour() -> None:
    padded = padded_resize(np.full((10, 40, 3), 9, dtype=np.uint8), 21, 20, (1, 2, 3))
    assert padded[:8].reshape(-1, 3).tolist() == [[1, 2, 3]] * 160
    assert (padded[8:13] == 9).all()
    assert padded[13:].reshape(-1, 3).tolist() == [[1, 2, 3]] * 160


def test_a_picture_of_one_channel_keeps_it() -> None:
    assert padded_resize(np.zeros((30, 50, 1), dtype=np.uint8), 64, 64, 7).shape == (64, 64, 1)


def test_a_picture_at_its_own_size_stays() -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 32, 3), dtype=np.uint8)
    assert (padded_resize(image, 48, 32) == image).all()
    assert (resize_to_area(image, 48 * 32) == image).all()


@pytest.mark.parametrize("size", [(31, 50), (50, 31), (9, 70)])
def test_without_opencv_a_reference_is_the_same_to_one_level(size: tuple[int, int]) -> None:
    image = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    without = np.asarray(fit_padded(Image.fromarray(image), 48, 32)).astype(int)
    assert abs(padded_resize(image, 32, 48) - without).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, -1)])
def test_an_empty_size_is_refused(height: int, width: int) -> None:
    with pytest.raises(RequestError, match="must not be empty"):
        padded_resize(np.zeros((4, 4, 3), dtype=np.uint8), height, width)


def test_a_picture_whose_side_would_vanish_is_refused() -> None:
    with pytest.raises(RequestError, match="1x500 is too long and narrow for 64x64"):
        padded_resize(np.zeros((500, 1, 3), dtype=np.uint8), 64, 64)
    with pytest.raises(RequestError, match="no size of 400 pixels in multiples of 16"):
        size_of_area(100, 10, 400)
    with pytest.raises(RequestError, match="0 pixels"):
        size_of_area(100, 10, 0)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1024, 2_000_000))
def test_a_size_of_an_area_is_within_it_in_whole_multiples(width: int, height: int, area: int) -> None:
    try:
        size = size_of_area(width, height, area)
    except RequestError:
        return
    assert size.width * size.height <= area
    assert size.width % 16 == size.height % 16 == 0


def test_frames_at_the_videos_own_rate_are_all_of_it() -> None:
    assert select_frames(7, 24).tolist() == list(range(7))
    assert select_frames(3, 15, 30).tolist() == [0, 0, 1, 2, 2, 2]  # halves go to the even frame
    assert select_frames(60, 30, 15).tolist() == list(range(0, 60, 2))


def test_a_duration_that_differs_by_a_tenth_counts() -> None:
    assert len(select_frames(100, 25, 25, duration=4.4)) == 100
    assert len(select_frames(100, 25, 25, duration=2.0)) == 50
    assert select_frames(100, 25, 25, duration=8.0)[-1] == 99


@pytest.mark.parametrize("arguments", [(0, 25.0, 25.0), (10, 0.0, 25.0), (10, 25.0, 0.0), (1, 60.0, 10.0)])
def test_a_video_without_a_frame_is_refused(arguments: tuple[int, float, float]) -> None:
    with pytest.raises(RequestError, match="must be above 0"):
        select_frames(*arguments)
    with pytest.raises(RequestError, match="must be above 0"):
        frame_indices(arguments[0], arguments[1], 0, arguments[2])


def test_frames_at_uneven_times_are_taken_by_those() -> None:
    times = np.array([0.5, 0.6, 0.7, 1.15, 1.5])  # from 0.5 on, as where a recording begins with sound alone
    assert nearest_frames(times, 10, 1.2).tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4]
    assert nearest_frames(times, 2.5, 1.2).tolist() == [0, 2, 3]
    assert not are_even(times, 5 / 1.2)
    assert are_even(np.arange(40).round(1) / 23.976 + 0.001, 24)
    with pytest.raises(RequestError, match="ask for more"):
        nearest_frames(times, 0.1, 1.2)


def test_a_recording_of_uneven_times_is_told_or_taken_by_them(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height = 32, 16
        for time in (*range(0, 100, 20), *range(100, 1100, 200)):  # milliseconds
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 32, 3), dtype=np.uint8))
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    by_time = DrivingVideo.open(path, 10, None)
    assert by_time.indices.tolist()[:9] == [0, 5, 6, 6, 7, 7, 8, 8, 9]
    assert "even times" not in " ".join(by_time.notes)
    whole = DrivingVideo.open(path, -1, None)
    assert whole.indices.tolist() == list(range(10))
    assert "even times" in whole.notes[-1]


def test_chunks_of_masks_read_the_video_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning decodes nothing, and all chunks together decode each frame once for prompts and once to follow."""
    monkeypatch.setattr(sam2, "CHUNK", 8)
    decoded: list[float] = []
    decode = video_reader.decoded_frames

    def counted(*arguments: Any) -> Iterator[TimedFrame]:
        for frame in decode(*arguments):
            decoded.append(frame.time)
            yield frame

    monkeypatch.setattr(video_reader, "decoded_frames", counted)
    levels = torch.linspace(-0.9, 0.9, 40).view(1, 40, 1, 1).expand(3, 40, 16, 16)
    video = DrivingVideo.open(write_video([levels], tmp_path / "a.mp4", fps=10), -1, None)
    assert (len(video), decoded) == (40, [])
    seen: list[NDArray[np.uint8]] = []

    class Tracker(MaskTracker):
        def __init__(self) -> None:
            pass

        def masks(self, frames: Any, length: int, prompts: Any) -> Iterator[NDArray[np.uint8]]:
            for index, frame in enumerate(frames):
                assert index not in prompts or np.array_equal(prompts[index].frame, frame)
                seen.append(frame)
                yield (frame[..., 0] > 120).astype(np.uint8)

    nobody = split_points(np.ones((NUM_DETECTED, 3)), 16, 16)
    kept = KeptParts(tmp_path / "kept")
    make_masks(video, [Sighting(nobody, 1)] * 40, kept, Tracker, lambda items, phase: items)
    assert [int(frame.mean()) for frame in seen] == sorted(int(frame.mean()) for frame in video.frames())
    assert len(decoded) <= 3 * 40  # the last time for this comparison
    assert [bool(mask.all()) for mask in kept_masks(video, kept)] == [frame.mean() > 120 for frame in seen]


@pytest.mark.parametrize("shape", [(1, 1), (48, 61), (64, 96)])
def test_a_mask_is_unpacked_as_it_was_packed(shape: tuple[int, int]) -> None:
    mask = (np.random.default_rng(1).random(shape) > 0.5).astype(np.uint8)
    assert np.array_equal(unpack_mask(pack_mask(mask), *shape), mask)


def skeleton(*, score: float = 1.0) -> Skeleton:
    hidden = np.full((21, 3), np.nan)
    body = np.full((20, 3), np.nan)
    body[2], body[3] = (20.0, 30.0, score), (60.0, 30.0, score)
    return Skeleton(body=body, left_hand=hidden, right_hand=hidden)


def test_a_limb_is_dimmer_than_its_joints() -> None:
    canvas = draw_pose(np.zeros((64, 96, 3), dtype=np.uint8), skeleton())
    assert canvas[30, 40].tolist() == [int(level * 0.6) for level in HUES[2]]
    assert canvas[30, 20].tolist() == list(HUES[2])
    assert canvas[30, 60].tolist() == list(HUES[3])
    assert not canvas[:, 64:].any()


def test_points_below_the_threshold_are_not_drawn() -> None:
    assert not draw_pose(np.zeros((64, 96, 3), dtype=np.uint8), skeleton(score=0.49)).any()


def test_points_of_hands_on_the_edge_are_left_out() -> None:
    hand = np.zeros((21, 3))
    hand[:, 2] = 1.0
    hand[4] = 10.0, 20.0, 1.0
    drawn = Skeleton(body=np.full((20, 3), np.nan), left_hand=hand, right_hand=np.zeros((21, 3)))
    canvas = draw_pose(np.zeros((32, 32, 3), dtype=np.uint8), drawn)
    assert canvas[20, 10].tolist() == [0, 0, 255]
    assert np.count_nonzero(canvas.any(axis=2)) == 5  # a disc of radius 1


@pytest.mark.parametrize("far", [1e20, -np.inf, np.nan])
def test_points_at_no_place_are_not_drawn(far: float) -> None:
    drawn = skeleton()
    drawn.body[3, 0] = far
    canvas = draw_pose(np.zeros((64, 96, 3), dtype=np.uint8), drawn)
    assert np.count_nonzero(canvas.any(axis=2)) == 5  # one joint


def test_fingers_are_half_as_wide_as_limbs() -> None:
    hand = np.zeros((21, 3))
    hand[4] = 400.0, 400.0, 1.0
    canvas = np.zeros((1000, 1000, 3), dtype=np.uint8)
    draw_pose(canvas, Skeleton(body=np.full((20, 3), np.nan), left_hand=hand, right_hand=np.zeros((21, 3))))
    assert canvas[400, 398:403, 2].tolist() == [255] * 5  # a disc of radius 2, where joints have 4
    assert not canvas[400, [397, 403]].any()


def test_lines_widen_with_the_canvas() -> None:
    assert [line_width(side, 2000) for side in (100, 599, 600, 1080)] == [1, 1, 2, 4]


def test_drawing_without_opencv_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(BackendError, match=r"opencv-python-headless.*wan-core\[animate\]"):
        draw_pose(np.zeros((8, 8, 3), dtype=np.uint8), skeleton())


def blot() -> np.ndarray:
    mask = np.zeros((40, 50), dtype=np.uint8)
    mask[10:21, 8:29] = 1
    mask[15:21, 8:20] = 0
    return mask


def test_a_mask_in_one_part_is_its_box_but_for_the_last_row_and_column() -> None:
    filled = fill_cells(blot(), 1, 1)
    assert filled[10:20, 8:28].all()
    assert (filled[20] == blot()[20]).all()


def test_cells_without_a_hit_stay_empty() -> None:
    filled = fill_cells(blot(), 2, 2)  # cells of 10 x 5
    assert filled[10:15, 8:28].all()
    assert not filled[15:20, 8:18].any()
    assert filled[15:20, 18:28].all()


def test_a_mask_smaller_than_its_parts_has_cells_of_a_pixel() -> None:
    assert (fill_cells(blot(), 1000, 1000) == blot()).all()


@pytest.mark.parametrize("iterations", [0, 3])
def test_an_empty_mask_stays(iterations: int) -> None:
    assert not augment_mask(np.zeros((9, 9), dtype=np.uint8), iterations).any()


def test_without_iterations_a_mask_stays() -> None:
    assert (augment_mask(blot(), 0) == blot()).all()


def test_a_mask_grows_by_half_the_square_each_time() -> None:
    dot = np.zeros((21, 21), dtype=np.uint8)
    dot[10, 10] = 1
    grown = dilate_mask(dot, 2, 5)
    assert grown.sum() == 81
    assert grown[6:15, 6:15].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [((-1, 7, 1, 1), "iterations -1"), ((1, 0, 1, 1), "k 0"), ((1, 7, 0, 1), "w_len and h_len must be at least 1")],
)
def test_impossible_masks_are_refused(options: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        augment_mask(blot(), *options)


def test_the_background_is_black_where_the_person_is() -> None:
    frame = np.full((40, 50, 3), 200, dtype=np.uint8)
    assert (background(frame, blot()) == 200 * (1 - blot()[..., None])).all()


def face_points(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    points = np.full((69, 3), 0.9)
    points[1:, :2] = np.linspace((left, top), (right, bottom), 68)
    return points


def test_a_face_box_grows_upwards_most() -> None:
    box = face_box(face_points(0.4, 0.4, 0.6, 0.6), 100, 100)
    assert box == FaceBox(38, 37, 61, 60)


def test_a_face_outside_of_the_frame_has_no_box() -> None:
    assert face_box(face_points(1.2, 0.4, 1.4, 0.6), 100, 100) is None
    assert face_box(face_points(-0.4, -0.4, -0.2, -0.2), 100, 100) is None
    assert face_box(face_points(0.4, 0.4, 0.4, 0.6), 100, 100) is None
    assert face_box(face_points(np.nan, 0.4, 0.4, 0.6), 100, 100) is None


def test_frames_without_a_face_take_the_box_before() -> None:
    first, second = FaceBox(0, 0, 5, 5), FaceBox(1, 1, 6, 6)
    assert fill_boxes([None, first, None, second, None]) == [first, first, first, second, second]
    with pytest.raises(MediaError, match="no frame shows a face"):
        fill_boxes([None, None])


def test_a_face_is_cut_out_to_a_square() -> None:
    frame = np.zeros((40, 40, 3), dtype=np.uint8)
    frame[10:20, 5:35] = 7
    assert (crop_face(frame, FaceBox(5, 10, 35, 20), 64) == 7).all()
    assert crop_face(frame, FaceBox(5, 10, 35, 20)).shape == (512, 512, 3)


def test_of_two_overlapping_boxes_the_surer_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 11], [20, 20, 30, 30]], dtype=np.float32)
    assert without_overlaps(boxes, np.array([1, 2, 0]), 0.45) == [1, 2]
    assert without_overlaps(np.zeros((2, 4)), np.array([0, 1]), 0.5) == [0]
    assert without_overlaps(np.zeros((0, 4)), np.zeros(0, dtype=np.intp), 0.5) == []


def detected() -> np.ndarray:
    points = np.zeros((NUM_DETECTED, 3))
    points[:, 0], points[:, 1], points[:, 2] = np.arange(133), 10.0, 0.5
    return points


def test_the_neck_is_between_the_shoulders_and_toes_between_big_and_small() -> None:
    person = split_points(detected(), 200, 100)
    assert person.body[1] == pytest.approx([5.5 / 200, 0.1, 0.5])
    assert person.body[18, 0] == pytest.approx(17.5 / 200)
    assert person.body[19, 0] == pytest.approx(20.5 / 200)
    assert [len(person.left_hand), len(person.right_hand), len(person.face)] == [21, 21, 69]
    assert person.in_pixels().right_hand[0] == pytest.approx([112.0, 10.0, 0.5])


def test_a_frame_without_anybody_has_the_body_before() -> None:
    nobody = detected()
    nobody[:, 1] = -1.0
    before: PosePoints = split_points(detected(), 200, 100)
    assert (split_points(nobody, 200, 100, before).body == before.body).all()
    with pytest.raises(MediaError, match="no person was found in the first frame"):
        split_points(nobody, 200, 100)
