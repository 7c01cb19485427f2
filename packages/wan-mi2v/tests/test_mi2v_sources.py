"""Pictures from files, folders and videos; positions and frame ranges as text."""

from pathlib import Path

import pytest
import torch

from wan_core import RequestError
from wan_core.media import write_video
from wan_mi2v.request import FrameRange, parse_frames, parse_positions
from wan_mi2v.sources import Room, list_images, read_images

from .mi2v_model import colours, request

ROOM = Room(5, "latent frames", 4)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Ten frames whose grey counts up."""
    grey = torch.linspace(-0.9, 0.9, 10).view(1, 10, 1, 1).expand(3, 10, 32, 32)
    return write_video([grey], tmp_path / "in.mp4", fps=8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:13", (0, 13, 1)), (":5", (0, 5, 1)), ("8:", (8, None, 1)), (":", (0, None, 1)),
        ("0:49:4", (0, 49, 4)), (" 1:2 ", (1, 2, 1)), ("::2", (0, None, 2)),
    ],
)  # fmt: skip
def test_frame_ranges_are_read_as_slices(text: str, expected: tuple[int, int | None, int]) -> None:
    assert parse_frames(text) == FrameRange(*expected)


@pytest.mark.parametrize("text", ["", "13", "5:5", "5:3", "-1:3", "0:9:0", "a:b", "0:1:2:3", "1.5:3"])
def test_other_frame_ranges_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="START:STOP"):
        parse_frames(text)


@pytest.mark.parametrize("text", ["", "0,", "a", "0 8", "-1", "1.5", "0;8"])
def test_positions_are_whole_numbers(text: str) -> None:
    assert parse_positions("0, 8,20") == (0, 8, 20)
    with pytest.raises(RequestError, match="0,8,20"):
        parse_positions(text)


def test_a_folder_stands_for_its_images_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["frame10.png", "frame2.PNG", "a.jpg", ".hidden.png", "notes.txt"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    other = tmp_path / "other" / "z.webp"
    found = [path.name for path in list_images([other, tmp_path])]
    assert found == ["z.webp", "a.jpg", "frame2.PNG", "frame10.png"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no pictures"):
        list_images([tmp_path])


@pytest.mark.parametrize(
    ("frames", "indexes"), [("0:5", [0, 1, 2, 3, 4]), ("1:9:4", [1, 5]), ("7:", [7, 8, 9]), ("::2", [0, 2, 4, 6, 8])]
)
def test_a_range_chooses_frames_of_a_video(clip: Path, frames: str, indexes: list[int]) -> None:
    found = read_images(request(clip=clip, frames=frames), ROOM)
    assert [name for name, _ in found] == [f"in.mp4 {index}" for index in indexes]
    greys = [image.getpixel((16, 16))[0] for _, image in found]  # type: ignore[index]
    expected = [(0.1 + 0.2 * index) * 127.5 for index in indexes]
    assert all(abs(grey - wanted) < 5 for grey, wanted in zip(greys, expected, strict=True))


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ("0:11", "10 frames"),
        ("20:", "10 frames"),
        ("0:6", "6 pictures"),
        (None, "more than 5"),
        ("0:9999999", "9999999"),
    ],
)
def test_frames_that_are_not_there_or_do_not_fit_are_refused(clip: Path, frames: str | None, words: str) -> None:
    room = Room(20, "frames", 1) if frames in ("0:11", "20:") else ROOM
    with pytest.raises(RequestError, match=words):
        read_images(request(clip=clip, frames=frames), room)


def test_images_are_counted_before_they_are_read(tmp_path: Path) -> None:
    paths = tuple(tmp_path / f"missing{index}.png" for index in range(6))
    with pytest.raises(RequestError, match="--frame-num 21 or fewer"):
        read_images(request(images=paths), ROOM)


def test_images_in_memory_need_no_files() -> None:
    assert [name for name, _ in read_images(request(pictures=colours(2)), ROOM)] == ["picture 0", "picture 1"]
