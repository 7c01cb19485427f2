"""What counts as an example: pairs, tables of other trainers, names and texts as people have them."""

import codecs
import json
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from wan_core.errors import RequestError
from wan_core.files import decode_text, read_text
from wan_core.training import ClipRule, data_folders, find_examples, look_into, read_config
from wan_core.training.folders import DataFolder


def touch(folder: Path, *names: str) -> None:
    """Empty media: finding opens none of them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def captions_of(folder: Path) -> dict[str, str]:
    return {each.file.relative_to(folder).as_posix(): each.caption for each in find_examples(folder)}


# -- media beside text files


def test_images_and_videos_of_all_subfolders_are_examples(tmp_path: Path) -> None:
    for name in ("a.jpg", "clip.MOV", "b/a.PNG", "b/c/d.webm"):
        touch(tmp_path, name)
        (tmp_path / name).with_suffix(".txt").write_text(f"caption of {name}")
    found = captions_of(tmp_path)
    assert found == {name: f"caption of {name}" for name in ("a.jpg", "clip.MOV", "b/a.PNG", "b/c/d.webm")}
    assert [each.is_image for each in find_examples(tmp_path)] == [True, False, True, False]


def test_what_systems_leave_in_folders_is_no_example(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "._a.mp4", ".hidden.png", "__MACOSX/a.mp4", ".cache/b.png", "Thumbs.db")
    for name in ("a.TXT", "._a.txt", "README.txt", "readme.zh.txt", "LICENSE.txt", "Notes.txt"):
        (tmp_path / name).write_text("words")
    assert captions_of(tmp_path) == {"a.mp4": "words"}


def test_a_caption_called_like_a_readme_is_one_where_its_video_is(tmp_path: Path) -> None:
    touch(tmp_path, "notes.mp4")
    (tmp_path / "notes.txt").write_text("a sheet of notes")
    assert captions_of(tmp_path) == {"notes.mp4": "a sheet of notes"}


def test_composed_and_decomposed_names_belong_together(tmp_path: Path) -> None:
    touch(tmp_path, unicodedata.normalize("NFD", "caf\u00e9.mp4"))
    (tmp_path / unicodedata.normalize("NFC", "caf\u00e9.txt")).write_text("coffee")
    assert list(captions_of(tmp_path).values()) == ["coffee"]


def test_links_in_circles_end(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png")
    (tmp_path / "in/a.txt").write_text("once")
    (tmp_path / "in/again").symlink_to(tmp_path)
    assert captions_of(tmp_path) == {"in/a.png": "once"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.mp4", "a.txt", "b.txt"], r"b\.txt has no video or image; remove it, or name it README"),
        (["a.mp4", "a.txt", "b.wmv", "b.txt"], r"b\.txt has no video or image; b\.wmv is none of \.mp4"),
        (["a.mp4", "a.txt", "sub/b.png"], r"sub/b\.png has no caption b\.txt"),
    ],
)
def test_what_does_not_belong_together_is_named(tmp_path: Path, files: list[str], message: str) -> None:
    touch(tmp_path, *files)
    for path in (*tmp_path.rglob("*.txt"), *tmp_path.rglob("*.caption")):
        path.write_text("words")
    with pytest.raises(RequestError, match=message):
        find_examples(tmp_path)


def test_a_link_of_a_table_to_nothing_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to("elsewhere.mp4")
    (tmp_path / "metadata.csv").write_text("file,caption\na.mp4,a\n")
    with pytest.raises(RequestError, match=r"line 2: a.mp4 is a link to elsewhere.mp4, which is not there"):
        find_examples(tmp_path)


def test_all_that_is_wrong_is_listed_and_cut_after_twenty(tmp_path: Path) -> None:
    touch(tmp_path, "good.mp4", *(f"{number:02d}.mp4" for number in range(25)))
    (tmp_path / "good.txt").write_text("fine")
    with pytest.raises(RequestError) as caught:
        find_examples(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("25 of 26 examples in")
    assert [line.split("/")[-1].split()[0] for line in lines[1:21]] == [f"{number:02d}.mp4" for number in range(20)]
    assert lines[21:] == ["  and 5 more", "mend them, or leave them out with --skip-bad"]
    found = look_into([DataFolder(path=tmp_path)])
    assert ([each.caption for each in found.examples], len(found.bad)) == (["fine"], 25)


# -- texts


@pytest.mark.parametrize(
    "data",
    [
        "caf\u00e9 \u732b".encode(),
        codecs.BOM_UTF8 + "caf\u00e9 \u732b".encode(),
        "caf\u00e9 \u732b".encode("utf-16"),
        codecs.BOM_UTF16_BE + "caf\u00e9 \u732b".encode("utf-16-be"),
        "caf\u00e9 \u732b".encode("utf-32"),
    ],
)
def test_captions_are_read_in_the_encoding_that_they_state(tmp_path: Path, data: bytes) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(data)
    assert captions_of(tmp_path) == {"a.png": "caf\u00e9 \u732b"}


def test_line_ends_of_every_system_are_one(tmp_path: Path) -> None:
    assert decode_text(b"a\r\nb\rc\nd", "x") == "a\nb\nc\nd"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("one\ntwo caf\u00e9".encode("latin-1"), r"a\.txt, line 2: byte 0xe9 is no UTF-8 text"),
        ("\u7ea2".encode("gbk"), r"a\.txt, line 1: byte 0xba is no UTF-8"),
        ("word".encode("utf-16-le"), r"a\.txt, line 1: it has a zero character, as UTF-16 without"),
        ("x\n\nlost \ufffd letter".encode(), r"a\.txt, line 3: it has a replacement character"),
        (codecs.BOM_UTF16_LE + "ab".encode("utf-16-le") + b"c", r"a\.txt, line 1: .*UTF-16-LE"),
    ],
)
def test_other_texts_are_refused_by_name_and_line(tmp_path: Path, data: bytes, message: str) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(RequestError, match=message):
        find_examples(tmp_path)


# -- tables


@pytest.mark.parametrize(
    ("file", "caption"),
    [
        ("file", "caption"), ("file_name", "text"), ("video", "prompt"), ("video_path", "caption"), ("path", "text"),
        ("file_path", "text"), ("image", "prompt"), ("image_path", "caption"), ("File", " Caption "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_the_columns_of_other_trainers_are_read(tmp_path: Path, file: str, caption: str, kind: str) -> None:
    touch(tmp_path, "in/a.png", "in/b.mp4")
    rows = [{file: "in/a.png", caption: "one, two"}, {file: "in/b.mp4", caption: "three"}]
    text = {
        "csv": f'{file},{caption}\nin/a.png,"one, two"\nin/b.mp4,three\n',
        "jsonl": "\n".join(map(json.dumps, rows)),
        "json": json.dumps(rows),
    }[kind]
    (tmp_path / f"metadata.{kind}").write_text(text)
    assert captions_of(tmp_path) == {"in/a.png": "one, two", "in/b.mp4": "three"}
    (tmp_path / f"metadata.{kind}").rename(tmp_path / f"train.{kind}")
    assert len(find_examples(tmp_path / f"train.{kind}")) == 2


@pytest.mark.parametrize(
    "data",
    [
        b"file;caption\na.png;one, two\n",
        "file\tcaption\na.png\tone, two\n".encode("utf-16"),
        codecs.BOM_UTF8 + b'file,caption,width,height\r\na.png,"one, two",1920,1080\r\n',
    ],
)
def test_tables_of_spreadsheets_are_read(tmp_path: Path, data: bytes) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_bytes(data)
    assert captions_of(tmp_path) == {"a.png": "one, two"}


def test_one_object_of_files_and_captions_is_a_table(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.mp4")
    (tmp_path / "metadata.json").write_text(json.dumps({"a.png": "one", "b.mp4": "two"}))
    assert captions_of(tmp_path) == {"a.png": "one", "b.mp4": "two"}


def test_a_video_with_an_image_starts_from_it(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text("video,image,prompt\na.mp4,a.png,both\n,b.png,image\n")
    both, image = find_examples(tmp_path)
    assert (both.file.name, both.image and both.image.name, both.is_image) == ("a.mp4", "a.png", False)
    assert (image.file.name, image.image, image.is_image) == ("b.png", None, True)


@pytest.mark.parametrize("name", ["in\\A.mp4", ".\\in\\A.mp4", "in/a.MP4", "IN\\a.mp4"])
def test_paths_of_windows_lead_to_their_files(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "in/A.mp4")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file": name, "caption": "x"}))
    assert captions_of(tmp_path) == {"in/A.mp4": "x"}


def test_decomposed_folders_are_found(tmp_path: Path) -> None:
    touch(tmp_path, unicodedata.normalize("NFD", "\u00e9t\u00e9/\u00e0.mp4"))
    (tmp_path / "metadata.csv").write_text("file,caption\n\u00e9t\u00e9/\u00e0.mp4,x\n", encoding="utf-8")
    assert len(find_examples(tmp_path)) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file": "C:\\data\\a.mp4", "caption": "x"}, "is no place in the folder of the table"),
        ({"file": "\\\\server\\share\\a.mp4", "caption": "x"}, "is no place in the folder of the table"),
        ({"file": "none\\a.mp4", "caption": "x"}, "there is no file"),
        ({"file": "TWO.png", "caption": "x"}, "there is no file .* are alike"),
        ({"file": "a.mp4", "video": "a.mp4", "caption": "x"}, "'video' is a second column for file"),
        ({"file": "a.mp4", "caption": ["x", "y"]}, "caption must be text"),
        ({"file": "a.mp4", "caption": "x", "negative_prompt": "y"}, "unknown column 'negative_prompt'"),
        ({"file": "a.txt", "caption": "x"}, r"a\.txt is none of \.mp4"),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    touch(tmp_path, "a.mp4", "a.txt", "two.png", "Two.png")
    (tmp_path / "metadata.json").write_text(json.dumps([row]))
    with pytest.raises(RequestError, match=rf"metadata\.json, line 1: .*{message}"):
        find_examples(tmp_path)


# -- lists of folders


def test_folders_of_a_toml_file_have_repeats_and_clips(tmp_path: Path) -> None:
    for name in ("images", "videos", "more"):
        touch(tmp_path, f"{name}/a.png")
        (tmp_path / f"{name}/a.txt").write_text(name)
    (tmp_path / "dataset.toml").write_text(
        '[[datasets]]\npath = "images"\nrepeats = 5\n'
        '[[datasets]]\nvideo_directory = "videos"\nframe_extraction = "uniform"\nframe_sample = 3\n'
        f'[[directory]]\npath = "{tmp_path / "more"}"\nnum_repeats = 2\n'
    )
    found = look_into(data_folders([tmp_path / "dataset.toml"]), ClipRule("chunk")).examples
    assert [(each.caption, each.repeats, str(each.clips)) for each in found] == [
        ("images", 5, "chunk"), ("videos", 1, "uniform:3"), ("more", 2, "chunk"),
    ]  # fmt: skip


def test_a_config_has_datasets_too(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_bytes(
        codecs.BOM_UTF8 + b'steps = 3\n[[datasets]]\npath = "a"\n[[datasets]]\npath = "b"\nrepeats = 2\n'
    )
    read = read_config(config, ["steps", "data"])
    assert read["steps"] == "3"
    assert [(str(each.path), each.repeats) for each in data_folders(read["data"])] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[datasets]]\nrepeats = 2\n", "needs one path"),
        ('[[datasets]]\npath = "a"\nrepeats = 0\n', "repeats must be a number from 1"),
        ('[[datasets]]\npath = "a"\nrepeats = 1.5\n', "repeats must be a number from 1"),
        ('[[datasets]]\npath = "a"\nresolution = [1, 2]\n', "unknown name 'resolution'; known are path"),
        ('[[datasets]]\npath = "a"\nclips = "some"\n', "clips must be one of head, chunk, full, slide:N"),
        ("[general]\nresolution = [960, 544]\n", "'general' is not known there"),
        ('datasets = "a"\n', r"written \[\[datasets\]\]"),
        ("", r"has no \[\[datasets\]\]"),
        ("a = = 1", "no TOML"),
    ],
)
def test_wrong_lists_of_folders_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset.toml").write_text(text)
    with pytest.raises(RequestError, match=message):
        data_folders([tmp_path / "dataset.toml"])


def test_images_lie_in_shards_too(tmp_path: Path) -> None:
    import io
    import tarfile

    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "JPEG")
    members = {
        "0.jpg": picture.getvalue(), "0.txt": "caf\u00e9".encode("utf-16"), "._0.jpg": b"x", "README.txt": b"about",
        "1.jpg": picture.getvalue(), "1.json": json.dumps({"text": "one", "url": ["x"]}).encode(),
    }  # fmt: skip
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    assert [(each.caption, each.is_image) for each in find_examples(tmp_path)] == [("caf\u00e9", True), ("one", True)]


@pytest.mark.parametrize(
    "name", ["../a.mp4", "in/../../a.mp4", "..\\a.mp4", "{outside}/a.mp4", "/etc/passwd", "C:a.mp4"]
)
@pytest.mark.parametrize("column", ["file", "image"])
def test_lists_name_nothing_outside_of_their_folder(tmp_path: Path, name: str, column: str) -> None:
    folder = tmp_path / "data"
    touch(tmp_path, "a.mp4")
    touch(folder, "b.mp4", "in/c.mp4")
    row = {"file": "b.mp4", "caption": "x", column: name.format(outside=tmp_path)}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(RequestError, match=r"metadata\.jsonl, line 1: .* is no place in the folder of the table"):
        find_examples(folder)


def test_links_in_lists_stay_inside_or_in_the_store_of_a_hub_cache(tmp_path: Path) -> None:
    folder = tmp_path / "cache/snapshots/1"
    touch(tmp_path, "out.mp4")
    touch(tmp_path / "cache", "blobs/1234")
    touch(folder, "b.mp4")
    for name, target in {"in.mp4": "b.mp4", "hub.mp4": "../../blobs/1234", "out.mp4": tmp_path / "out.mp4"}.items():
        (folder / name).symlink_to(target)
    (folder / "metadata.csv").write_text("file,caption\nin.mp4,x\nhub.mp4,y\n")
    assert [each.file.name for each in find_examples(folder)] == ["in.mp4", "hub.mp4"]
    (folder / "metadata.csv").write_text("file,caption\nout.mp4,x\n")
    with pytest.raises(RequestError, match=r"line 2: out\.mp4 is a link out of its folder, to .*out\.mp4"):
        find_examples(folder)


def test_an_absolute_name_inside_of_the_folder_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.mp4")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"video_path": str(tmp_path / "in/a.mp4"), "caption": "x"}))
    assert [each.file for each in find_examples(tmp_path)] == [tmp_path / "in/a.mp4"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "file,caption\na.mp4," + "x" * 140_000, "field larger than field limit"),
        ("metadata.csv", 'file,caption\na.mp4,"' + "x\n" * 90_000, "is a quote open"),
        ("metadata.jsonl", "[" * 200_000, "must be JSON|recursion"),
        ("metadata.json", '{"a":' * 200_000, "must be JSON|recursion"),
        ("metadata.jsonl", '{"file": ' + "9" * 5000 + "}", "must be JSON"),
        ("metadata.jsonl", '{"file": "a.mp4", "caption": "x", "start": 1e999}', "start must be seconds"),
        ("metadata.jsonl", '{"file": "a.mp4", "caption": "x", "start": 1e300}', "start must be seconds"),
        ("metadata.jsonl", json.dumps({"file": "a" * 5000 + ".mp4", "caption": "x"}), "there is no file"),
        ("metadata.jsonl", json.dumps({"file": "a/" * 3000 + "a.mp4", "caption": "x"}), "there is no file"),
        ("metadata.jsonl", json.dumps({"file": "a\u0000.mp4", "caption": "x"}), "a zero character"),
        ("metadata.jsonl", json.dumps({"file": "a.mp4", "caption": "x" * 200_000}), "more than 100000 letters"),
        ("metadata.jsonl", json.dumps({"x" * 9000: 1}), "unknown column"),
    ],
)
def test_lists_that_nobody_writes_get_a_sentence(tmp_path: Path, name: str, text: str, message: str) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError, match=message) as refused:
        find_examples(tmp_path)
    assert len(str(refused.value)) < 1000
    assert "\0" not in str(refused.value)


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.toml")
    with pytest.raises(RequestError, match=r"a\.toml is no regular file"):
        data_folders([tmp_path / "a.toml"])
    with pytest.raises(RequestError, match=r"/dev/zero is no regular file"):
        read_text("/dev/zero")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('file,caption\na.mp4,a\nb.mp4,"b\nc.mp4,"c"\n', r"metadata.csv, line 3: .*is a quote open"),
        ('file,caption\na.mp4,a\nb.mp4,"b\nc.mp4,c\n', r"metadata.csv, line 3: .*is a quote open"),
        ("file,caption,Caption\na.mp4,a,b\n", r"metadata.csv, line 1: there are two columns 'caption'"),
        ("file,caption,caption\na.mp4,a,\n", "two columns 'caption'"),
    ],
)
def test_a_csv_that_loses_rows_or_columns_is_refused(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(RequestError, match=message):
        find_examples(tmp_path)


def test_each_bad_row_is_one_entry_and_hides_no_other(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    bad = ['"caption": ["x"]', '"caption": true', '"caption": "x", "colour": 1', '"caption": "x", "text": "y"']
    rows = ['{"file": "a.mp4", "caption": "good"}', *(f'{{"file": "a.mp4", {each}}}' for each in bad), "{", "[1]"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    found = look_into([DataFolder(path=tmp_path)])
    assert [each.caption for each in found.examples] == ["good"]
    assert [f"line {number}:" in str(error) for number, error in enumerate(found.bad, 2)] == [True] * 6
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("file,caption\na.mp4,x,y\na.mp4,good\n")
    found = look_into([DataFolder(path=tmp_path)])
    assert (len(found.examples), len(found.bad)) == (1, 1)


def test_one_object_with_our_columns_is_one_row(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "metadata.json").write_text('{"file": "a.mp4", "caption": "x"}')
    assert [(each.file.name, each.caption) for each in find_examples(tmp_path)] == [("a.mp4", "x")]
