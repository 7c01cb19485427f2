"""Media of one name with one caption, dots in names, and lists of examples by names that are not read."""

from pathlib import Path

import pytest
from PIL import Image

from wan_core.errors import RequestError
from wan_core.training import find_examples, reading_notes
from wan_core.training.data import ClipSettings, check_example
from wan_core.training.folders import DataFolder, look_into


def touch(folder: Path, *names: str) -> None:
    """Empty media, and texts that are called as what they say."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name if name.endswith(("txt", "caption")) else "")


# -- Live Photos: an image and a video of one name


@pytest.mark.parametrize(
    ("still", "clip"), [("IMG_1.HEIC", "IMG_1.MOV"), ("a.jpg", "a.mp4"), ("my.cat.png", "my.cat.webm")]
)
def test_an_image_and_a_video_of_one_name_share_its_caption_and_a_note_says_so(
    tmp_path: Path, still: str, clip: str
) -> None:
    caption = f"{Path(still).stem}.txt"
    touch(tmp_path, still, clip, caption, "other.png", "other.txt")
    found = {each.file.name: each for each in find_examples(tmp_path)}
    assert {name: each.caption for name, each in found.items()} == {
        still: caption,
        clip: caption,
        "other.png": "other.txt",
    }
    (note,) = reading_notes(found.values())
    assert still in note
    assert clip in note
    assert "share a caption: both are trained on" in note
    (tmp_path / clip).unlink()  # the remedy
    assert reading_notes(find_examples(tmp_path)) == []


def test_many_pairs_are_one_note_which_stays_when_a_clip_is_checked(tmp_path: Path) -> None:
    for number in range(30):
        touch(tmp_path, f"{number:02}.png", f"{number:02}.mov", f"{number:02}.txt")
    Image.new("RGB", (32, 32)).save(tmp_path / "00.png")
    examples = find_examples(tmp_path)
    (note,) = reading_notes(examples)
    assert "00.mov and 00.png (and 29 more such pairs)" in note
    settings = ClipSettings(num_frames=5, fps=8, area=32 * 32)
    (clip,) = check_example(next(each for each in examples if each.file.name == "00.png"), settings)
    assert clip.notes == (note,)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["a.mp4", "a.mov", "a.txt"],
            r"a\.mov and a\.mp4 are two videos of one name; move one out of the folder, or give",
        ),
        (["a.heic", "a.jpg", "a.mov", "a.txt"], r"a\.heic and a\.jpg are two images of one name"),
        (
            ["a.mp4", "a.txt", "a.caption"],
            r"a\.caption and a\.txt are two captions of one name; move one out of the folder$",
        ),
        (["my.cat.mp4", "my.txt"], r"my\.cat\.mp4 has no caption my\.cat\.txt"),
    ],
)
def test_two_of_a_kind_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    touch(tmp_path, *files)
    with pytest.raises(RequestError) as caught:
        find_examples(tmp_path)
    assert caught.match(message)


# -- lists by near names


@pytest.mark.parametrize("name", ["metadata.tsv", "captions.csv", "train.jsonl", "metadata.parquet", "sub/labels.json"])
def test_lists_by_names_that_are_not_read_are_named_with_those_that_are(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.mp4", "sub/b.mp4", name)
    with pytest.raises(RequestError) as caught:
        find_examples(tmp_path)
    assert f"{tmp_path / name} is not read: a list in a folder is called metadata.csv" in str(caught.value)
    assert "a.mp4 has no caption a.txt" in str(caught.value)


def test_a_list_alone_in_its_folder_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "data.csv")
    with pytest.raises(RequestError, match=r"data\.csv is not read: .* or is given itself to --data"):
        find_examples(tmp_path)


def test_other_files_beside_examples_are_no_matter(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "a.txt", "dataset.json", "info.json")
    found = look_into([DataFolder(path=tmp_path)])
    assert [each.caption for each in found.examples] == ["a.txt"]
    assert not found.bad


@pytest.mark.parametrize("name", ["Metadata.CSV", "metadata.csv"])
def test_the_letter_case_of_a_list_is_no_matter(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / name).write_text("file,caption\na.mp4,words\n")
    assert [each.caption for each in find_examples(tmp_path)] == ["words"]


@pytest.mark.parametrize("name", ["captions.tsv", "captions.txt", "a.mp4"])
def test_a_file_that_is_no_list_is_refused_with_the_kinds_that_are(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    with pytest.raises(RequestError, match=r"no list that is read; a list is \.csv, \.jsonl, \.json"):
        find_examples(tmp_path / name)
