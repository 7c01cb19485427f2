"""One more file of each example, where the task of a model needs it."""

import json
from pathlib import Path

import pytest

from wan_core.errors import RequestError
from wan_core.training import find_examples, look_into
from wan_core.training.folders import DataFolder

SOUNDS = {"sound": (".wav", "")}


def touch(folder: Path, *names: str) -> None:
    """Empty files: finding opens none of them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_a_file_that_a_task_needs_is_found_beside_each_clip(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "a.sound.wav", "b/c.d.mp4", "b/c.d.sound/1.png")
    for name in ("a.txt", "b/c.d.txt"):
        (tmp_path / name).write_text("words")
    found = look_into([DataFolder(path=tmp_path)], files=SOUNDS)
    assert found.bad == []
    assert {each.file.name: each.files["sound"].name for each in found.examples} == {
        "a.mp4": "a.sound.wav",
        "c.d.mp4": "c.d.sound",
    }


def test_a_file_that_a_task_needs_is_a_column_of_a_table(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "x.wav")
    table = tmp_path / "metadata.jsonl"
    table.write_text(json.dumps({"file": "a.mp4", "caption": "c", "Sound": "X.wav"}))
    (example,) = look_into([DataFolder(path=tmp_path)], files=SOUNDS).examples
    assert example.files == {"sound": tmp_path / "x.wav"}
    with pytest.raises(RequestError, match="unknown column 'Sound'"):
        find_examples(tmp_path)


def test_where_a_table_has_no_column_for_it_the_file_lies_beside_the_clip(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "a.sound.wav", "b.mp4")
    rows = [{"file": name, "caption": "c"} for name in ("a.mp4", "b.mp4")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = look_into([DataFolder(path=tmp_path)], files=SOUNDS)
    assert [each.files for each in found.examples] == [{"sound": tmp_path / "a.sound.wav"}]
    assert "b.mp4 has no sound" in str(found.bad[0])


def test_a_clip_without_the_file_is_left_out_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "b.sound.wav", "c.mp4", "c.sound.wav", "c.sound/1.png")
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("words")
    found = look_into([DataFolder(path=tmp_path)], files=SOUNDS)
    assert [each.file.name for each in found.examples] == ["b.mp4"]
    assert "a.mp4 has no sound, such as a.sound.wav" in str(found.bad[0])
    assert "keep one" in str(found.bad[1])
