"""WebDataset shards, written by webdataset itself and by hand."""

import io
import json
import tarfile

import pytest
import torch
from PIL import Image

from wan_core.errors import MediaError, RequestError
from wan_core.media import write_video
from wan_core.training.data import ClipSettings, check_example, load_clip, load_first_image
from wan_core.training.folders import DataFolder, find_examples, look_into

SETTINGS = ClipSettings(num_frames=5, fps=8, area=32 * 32)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "a.mp4"
    write_video([torch.linspace(-1, 1, 9).view(1, 9, 1, 1).expand(3, 9, 32, 32)], path, fps=8)
    return path.read_bytes()


def pack(path, members) -> None:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def test_shards_of_webdataset_are_examples(tmp_path, clip) -> None:
    import webdataset

    picture = io.BytesIO()
    Image.new("RGB", (32, 32), (255, 0, 0)).save(picture, "PNG")
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{shard:04d}.tar")) as writer:
            writer.write({"__key__": f"{shard}0", "mp4": clip, "txt": f"plain {shard}"})
            values = {"caption": f"told {shard}", "start": 0.25}
            writer.write({"__key__": f"{shard}1", "mp4": clip, "json": values, "png": picture.getvalue()})
    examples = find_examples(tmp_path)
    assert [example.caption for example in examples] == ["plain 0", "told 0", "plain 1", "told 1"]
    plain, told = (load_clip(example, SETTINGS) for example in examples[:2])
    assert plain.shape == (3, 5, 32, 32)
    torch.testing.assert_close(told[:, 0], plain[:, 2], atol=0.02, rtol=0)
    assert load_first_image(examples[1], told)[0].min() == 1.0
    assert len(list(tmp_path.iterdir())) == 2


def test_folders_of_keys_are_kept_apart(tmp_path, clip) -> None:
    pack(tmp_path / "a.tar", {"x/0.mp4": clip, "x/0.txt": b"one", "y/0.mp4": clip, "y/0.txt": b"two"})
    assert [example.caption for example in find_examples(tmp_path)] == ["one", "two"]


@pytest.mark.parametrize(
    ("names", "captions"),
    [
        (["my.cat.mp4", "my.txt"], ["my.txt"]),  # one key of WebDataset
        (["my.cat.mp4", "my.cat.txt"], ["my.cat.txt"]),
        (["my.cat.mp4", "my.cat.txt", "my.dog.MP4", "my.dog.txt"], ["my.cat.txt", "my.dog.txt"]),
        (["v1.5.cat.png", "v1.5.cat.txt", "v1.5.dog.mp4", "v1.5.dog.txt"], ["v1.5.cat.txt", "v1.5.dog.txt"]),
        (["a/my.cat.mp4", "a/my.cat.json", "a/my.cat.txt"], ["a/my.cat.txt"]),
    ],
)
def test_dots_in_the_names_of_members(tmp_path, names, captions) -> None:
    pack(tmp_path / "a.tar", {name: b"{}" if name.endswith("json") else name.encode() for name in names})
    assert [example.caption for example in find_examples(tmp_path)] == captions


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"/etc/a.mp4": b"x"}, "unsafe"),
        ({"..\\a.mp4": b"x"}, "unsafe"),
        ({"a.mp4": b""}, "0 bytes"),
        ({"a.txt": b"x"}, "0 videos"),
        ({"a.mp4": b"x", "a.mkv": b"x", "a.txt": b"x"}, "2 videos"),
        ({"a.mp4": b"x", "a.json": b"{"}, "must be JSON"),
        ({"a.mp4": b"x", "a.json": b"[]"}, "one JSON object"),
        ({"a.mp4": b"x", "a.json": json.dumps({"caption": "a", "start": "soon"}).encode()}, "seconds"),
        ({"a.mp4": b"x", "a.txt": b"x" * (1 << 20) + b"x"}, "possible"),
        ({"a.py": b"x"}, "unknown ending"),
        ({"a.mp4": b"x", "a.mask.png": b"x", "a.txt": b"x"}, r"a\.mask\.png has no caption"),
        ({"a.b.mp4": b"x", "a.b.txt": b"x", "a.txt": b"x"}, "a has 0 videos"),
    ],
)
def test_members_that_may_not_be_there_are_named(tmp_path, members, message) -> None:
    pack(tmp_path / "a.tar", members)
    with pytest.raises(RequestError, match=message):
        find_examples(tmp_path)


def test_a_bad_example_in_a_shard_is_one_entry_and_hides_no_other(tmp_path) -> None:
    bad = {
        "1.mp4": b"x", "1.txt": b"h\xe4", "2.mp4": b"x", "2.json": b"{", "3.txt": b"x", "4.mp4": b"", "4.txt": b"x",
        "5.mp4": b"x", "5.json": b'{"caption": "a", "caption": "b"}', "6.mp4": b"x", "6.MP4": b"x", "6.txt": b"x",
        "7.mp4": b"x", "7.json": b'{"caption": "a\\ud800"}', "8.mp4": b"x",
    }  # fmt: skip
    pack(tmp_path / "a.tar", {"0.mp4": b"x", "0.txt": b"good"} | bad)
    found = look_into([DataFolder(path=tmp_path)])
    assert [each.caption for each in found.examples] == ["good"]
    reasons = ["no UTF-8", "must be JSON", "0 videos", "0 bytes", "twice", "keep one", "half a character", "no caption"]
    assert [reason in str(error) for reason, error in zip(reasons, found.bad, strict=True)] == [True] * len(reasons)
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for caption in (b"one", b"two"):
            for name, content in (("0.mp4", b"x"), ("0.txt", caption)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    with pytest.raises(RequestError, match=r"has 0\.mp4 and 0\.mp4; keep one"):
        find_examples(tmp_path)


def test_what_systems_put_beside_files_is_no_member(tmp_path) -> None:
    beside = {".DS_Store": b"x", "._a.mp4": b"x", "__MACOSX/a.mp4": b"x", ".hidden/b.mp4": b"x"}
    pack(tmp_path / "a.tar", {"./u\u0308.mp4": b"x", "./\u00fc.txt": b"one name, two spellings"} | beside)
    assert [example.caption for example in find_examples(tmp_path)] == ["one name, two spellings"]


def test_devices_are_refused(tmp_path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        info = tarfile.TarInfo("a.mp4")
        info.type = tarfile.CHRTYPE
        file.addfile(info)
    with pytest.raises(RequestError, match="no plain file"):
        find_examples(tmp_path)


def test_packed_and_cut_shards_are_refused(tmp_path, clip) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    with pytest.raises(MediaError, match="uncompressed"):
        find_examples(tmp_path)
    pack(tmp_path / "a.tar", {"a.txt": b"x", "a.mp4": clip})
    content = (tmp_path / "a.tar").read_bytes()
    examples = find_examples(tmp_path)
    (tmp_path / "a.tar").write_bytes(content[:2000])
    with pytest.raises(MediaError, match="cut off"):
        check_example(examples[0], SETTINGS)


def test_a_damaged_video_is_named_by_its_shard(tmp_path) -> None:
    pack(tmp_path / "a.tar", {"b.mp4": b"no video", "b.txt": b"x"})
    with pytest.raises(MediaError, match=r"a\.tar:b\.mp4"):
        check_example(find_examples(tmp_path)[0], SETTINGS)
