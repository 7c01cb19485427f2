"""Lists of examples whose texts have lost letters or whose keys stand twice."""

import json
from pathlib import Path

import pytest

from wan_core.errors import RequestError
from wan_core.files import quoted
from wan_core.tasks import GenerationRequest
from wan_core.training.folders import find_examples

WRONG = {"a\ud800": "half a character", "a\0b": "zero character", "a\ufffdb": "replacement character"}


@pytest.mark.parametrize("caption", WRONG)
def test_letters_that_were_lost_are_not_trained_on(tmp_path: Path, caption: str) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file": "a.mp4", "caption": caption}))
    with pytest.raises(RequestError, match=rf"metadata\.jsonl, line 1: caption: it has a? ?{WRONG[caption]}"):
        find_examples(tmp_path)


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("text", WRONG)
def test_letters_that_were_lost_make_no_video(field: str, text: str) -> None:
    with pytest.raises(RequestError, match=rf"{field}, character 2: it has a? ?{WRONG[text]}"):
        GenerationRequest(**{"prompt": "a cat", field: text}).validate()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.json", '{"a.mp4": "one", "b.mp4": "two", "a.mp4": "three"}'),
        ("metadata.jsonl", '{"file": "a.mp4", "caption": "one", "caption": "two"}'),
    ],
)
def test_a_key_that_stands_twice_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError, match=r"'(a\.mp4|caption)' stands twice"):
        find_examples(tmp_path)


def test_a_faulty_first_row_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text('file,caption\na.mp4,"red" car\n')
    with pytest.raises(RequestError, match=r"metadata\.csv, line 2"):
        find_examples(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", ",file_name,text\n0,a.mp4,a cat\n"),  # as pandas writes it
        ("metadata.csv", "Unnamed: 0,file_name,text\n0,a.mp4,a cat\n"),
        ("metadata.json", '{"a.mp4": {"caption": "a cat"}}'),  # sd-scripts
    ],
)
def test_lists_of_pandas_and_of_sd_scripts_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / name).write_text(text)
    assert [(each.file.name, each.caption) for each in find_examples(tmp_path)] == [("a.mp4", "a cat")]


def test_a_column_without_a_name_is_refused_where_it_says_something(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "metadata.csv").write_text(",file_name,text\nblue,a.mp4,a cat\n")
    with pytest.raises(RequestError, match="unknown column ''"):
        find_examples(tmp_path)


def test_a_long_text_is_quoted_in_part() -> None:
    assert quoted("a cat") == "'a cat'"
    assert quoted("a" * 1000) == "'" + "a" * 300 + "' and 700 more characters"
