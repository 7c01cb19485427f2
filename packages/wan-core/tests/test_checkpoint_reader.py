"""Reading files of weights: every kind, mapped or not, folders with shards, and what is refused."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wan_core.checkpoints import TensorSource, read_weights
from wan_core.checkpoints.readers.file_systems import is_on_network
from wan_core.errors import CheckpointError

DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64,
)  # fmt: skip


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {f"t.{str(dtype)[6:]}": (torch.rand(3, 5, generator=generator) * 8).to(dtype) for dtype in DTYPES}
    return made | {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "big": torch.rand(70, 90, generator=generator),
    }


def assert_same(source: TensorSource, expected: Mapping[str, Tensor]) -> None:
    assert set(source) == set(expected)
    for name, tensor in expected.items():
        info, read = source.info(name), source.read(name)
        assert (info.shape, info.dtype) == (tuple(tensor.shape), tensor.dtype)
        assert read.dtype == tensor.dtype
        assert torch.equal(
            read.contiguous().reshape(-1).view(torch.uint8), tensor.contiguous().reshape(-1).view(torch.uint8)
        )


@pytest.mark.parametrize("mmap", [True, False, None])
def test_safetensors_give_back_what_was_saved(tmp_path: Path, mmap: bool | None) -> None:
    save_file(tensors(), tmp_path / "w.safetensors", metadata={"format": "pt", "who": "me"})
    source = read_weights(tmp_path / "w.safetensors", mmap=mmap)
    assert_same(source, tensors())
    assert source.metadata == {"format": "pt", "who": "me"}


@pytest.mark.parametrize("mmap", [True, False])
def test_torch_files_give_back_what_was_saved(tmp_path: Path, mmap: bool) -> None:
    big = tensors()["big"]
    saved = tensors() | {
        "transposed": big.t(),
        "rows": big[3:9],
        "every_other": big[:, ::2],
        "shared": big[1],
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    }
    torch.save(saved, tmp_path / "w.pth")
    assert_same(read_weights(tmp_path / "w.pth", mmap=mmap), {k: v.detach() for k, v in saved.items()})


def test_nested_dicts_get_dotted_names_and_plain_values_become_metadata(tmp_path: Path) -> None:
    torch.save({"generator": {"a.weight": torch.ones(2)}, "step": 12, "note": "x", "none": None}, tmp_path / "m.pt")
    source = read_weights(tmp_path / "m.pt")
    assert source.keys() == ("generator.a.weight",)
    assert source.metadata == {"step": "12", "note": "x"}


@pytest.mark.parametrize("nested", [{"a": {"b": torch.ones(2)}, "a.b": torch.zeros(2)}, {0: torch.ones(2), "0": None}])
def test_a_name_that_two_levels_give_is_refused(tmp_path: Path, nested: Mapping[object, object]) -> None:
    torch.save({name: torch.zeros(2) if value is None else value for name, value in nested.items()}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m\.pt has '(a\.b|0)' twice"):
        read_weights(tmp_path / "m.pt")


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    save_file(EXPECTED, tmp_path / "w.pth")
    torch.save(EXPECTED, tmp_path / "w.bin")
    for name in ("w.pth", "w.bin"):
        assert_same(read_weights(tmp_path / name), EXPECTED)


def test_a_torch_file_called_safetensors_is_named_as_such(tmp_path: Path) -> None:
    # torch's own loader goes by this one suffix.
    torch.save(EXPECTED, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"rename it to w\.pth"):
        read_weights(tmp_path / "w.safetensors")


def test_writing_to_a_mapped_tensor_does_not_reach_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4096)}, tmp_path / "w.safetensors")
    source = read_weights(tmp_path / "w.safetensors", mmap=True)
    source.read("a").zero_()
    assert read_weights(tmp_path / "w.safetensors").read("a").sum() == 4096


def test_a_released_tensor_can_be_read_again(tmp_path: Path) -> None:
    expected = {"a": torch.rand(1000, 100), "b": torch.rand(1000, 100)}
    save_file(expected, tmp_path / "w.safetensors")
    source = read_weights(tmp_path / "w.safetensors", mmap=True)
    for name in expected:
        source.read(name).clone()
        source.release(name)
    assert_same(source, expected)


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
                         "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]}}).encode()  # fmt: skip
    payload = bytes([1, 2, 3]) + torch.tensor([1.5, -2.0]).numpy().tobytes()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + payload)
    assert read_weights(tmp_path / "w.safetensors", mmap=True).read("b").tolist() == [1.5, -2.0]


# -- folders -----------------------------------------------------------------------------------------------------------


def sharded(folder: Path, weight_map: Mapping[str, str] | None = None) -> Path:
    """Two shards with an index."""
    folder.mkdir(exist_ok=True)
    save_file({"a": torch.ones(2)}, folder / "m-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(3)}, folder / "m-00002-of-00002.safetensors")
    default = {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {**default, **(weight_map or {})}}))
    return folder


EXPECTED = {"a": torch.ones(2), "b": torch.zeros(3)}


def test_a_folder_is_read_by_its_index(tmp_path: Path) -> None:
    assert_same(read_weights(sharded(tmp_path)), EXPECTED)


def test_numbered_shards_need_no_index(tmp_path: Path) -> None:
    (sharded(tmp_path) / "m.safetensors.index.json").unlink()
    assert_same(read_weights(tmp_path), EXPECTED)


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "anything.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert read_weights(tmp_path).keys() == ("a",)


def test_the_usual_name_wins_among_several(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "diffusion_pytorch_model.safetensors")
    torch.save({"b": torch.ones(2)}, tmp_path / "Wan2.1_VAE.pth")
    assert read_weights(tmp_path).keys() == ("a",)


def test_a_file_beside_shards_of_its_name_is_refused(tmp_path: Path) -> None:
    for name in ("model", "model-00001-of-00002", "model-00002-of-00002"):
        save_file({name: torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"holds model\.safetensors and shards of that name .*keep one"):
        read_weights(tmp_path)


def test_shards_that_link_into_the_blobs_of_a_hub_cache_are_read(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "repo" / "snapshots" / "1f2e", tmp_path / "repo" / "blobs"
    blobs.mkdir(parents=True)
    sharded(snapshot.parent.parent / "x").rename(tmp_path / "made")
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "made").iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert_same(read_weights(snapshot), EXPECTED)


def outside(tmp_path: Path) -> Path:
    """A folder whose shards exist also outside it."""
    folder = sharded(tmp_path / "in")
    save_file({"a": torch.ones(2)}, tmp_path / "out.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "out.safetensors")
    (folder / "sub").mkdir()
    save_file({"a": torch.ones(2)}, folder / "sub" / "s.safetensors")
    return folder


@pytest.mark.parametrize(
    "name", ["../out.safetensors", "/etc/hosts", "sub/../../out.safetensors", "sub/s.safetensors", "link.safetensors",
             "..", ".", "", "a\\b.safetensors", "nul\0.safetensors", "x" * 300],
)  # fmt: skip
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = outside(tmp_path)
    sharded(folder, {"a": name})
    with pytest.raises(CheckpointError, match="refused"):
        read_weights(folder)


FOLDER_FAULTS = {
    "missing shard": (lambda f: (f / "m-00002-of-00002.safetensors").unlink(), "missing: m-00002-of-00002"),
    "index of another model": (
        lambda f: sharded(f, {"c": "m-00001-of-00002.safetensors"}), "lack 1 tensors .*different models"),
    "index is no JSON": (lambda f: (f / "m.safetensors.index.json").write_text("{"), "no JSON"),
    "index is a list": (lambda f: (f / "m.safetensors.index.json").write_text("[]"), "no JSON object"),
    "index without map": (lambda f: (f / "m.safetensors.index.json").write_text("{}"), "no weight_map"),
    "index of numbers": (
        lambda f: (f / "m.safetensors.index.json").write_text('{"weight_map": {"a": 1}}'), "no weight_map"),
    "index is binary": (lambda f: (f / "m.safetensors.index.json").write_bytes(b"\xff\xfe"), "no JSON"),
    "deep index": (
        lambda f: (f / "m.safetensors.index.json").write_text("[" * 100_000 + "]" * 100_000), "no JSON"),
    "two indexes": (lambda f: (f / "n.safetensors.index.json").write_text("{}"), "several indexes"),
    "no index, shard lost": (
        lambda f: [(f / n).unlink() for n in ("m.safetensors.index.json", "m-00001-of-00002.safetensors")],
        "lacks shards 1 of 2"),
    "no index, two models": (
        lambda f: [(f / "m.safetensors.index.json").unlink(),
                   save_file({"z": torch.ones(1)}, f / "n-00001-of-00001.safetensors")], "mixes the shards"),
    "same tensor twice": (
        lambda f: save_file({"a": torch.ones(2), "b": torch.zeros(3)}, f / "m-00002-of-00002.safetensors"),
        "in two shards"),
    "cut shard": (lambda f: os.truncate(f / "m-00002-of-00002.safetensors", 40), "cut off or damaged"),
    "nothing": (lambda f: [path.unlink() for path in f.iterdir()], "no weights in"),
    "several files": (
        lambda f: [path.rename(f / f"x{path.stem[2:7]}.safetensors") for path in sorted(f.glob("m-*"))]
        and (f / "m.safetensors.index.json").unlink(), "several files of weights"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDER_FAULTS)
def test_a_damaged_folder_is_one_clear_error(tmp_path: Path, name: str) -> None:
    fault, words = FOLDER_FAULTS[name]
    fault(sharded(tmp_path / "w"))
    with pytest.raises(CheckpointError, match=words):
        read_weights(tmp_path / "w")


# -- what is no file of weights ----------------------------------------------------------------------------------------

FILE_FAULTS = {
    "missing": (None, "No such file"),
    "empty": (b"", "empty"),
    "pointer of git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS pointer"),
    "web page": (b"<!DOCTYPE html><html>404</html>", "web page"),
    "old pickle": (b"\x80\x02cos\nsystem\n", "old format"),
    "picture": (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "no weights that we know"),
    "text": (b"hello there, these are no weights", "no weights that we know"),
}


@pytest.mark.parametrize("name", FILE_FAULTS)
def test_a_file_without_weights_says_what_it_is(tmp_path: Path, name: str) -> None:
    content, words = FILE_FAULTS[name]
    if content is not None:
        (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_weights(tmp_path / "w.safetensors")


def test_a_folder_that_is_a_device_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no regular file"):
        read_weights("/dev/null")


# -- network file systems ----------------------------------------------------------------------------------------------

MOUNTS = """/dev/sda1 / ext4 rw 0 0
server:/export /mnt/nfs nfs4 rw 0 0
tmpfs /mnt/nfs/local tmpfs rw 0 0
me@host: /home/me/remote\\040disk fuse.sshfs rw 0 0
/dev/sdb1 /mnt/usb fuseblk rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "network"),
    [("/data/w", False), ("/mnt/nfs/w", True), ("/mnt/nfsx/w", False), ("/mnt/nfs/local/w", False),
     ("/home/me/remote disk/w", True), ("/mnt/usb/w", False)],
)  # fmt: skip
def test_network_file_systems_are_known_by_the_list_of_mounts(tmp_path: Path, path: str, network: bool) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    assert is_on_network(Path(path), tmp_path / "mounts") is network


def test_without_a_list_of_mounts_everything_is_local(tmp_path: Path) -> None:
    assert not is_on_network(tmp_path, tmp_path / "none")


def test_files_on_a_network_are_not_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    monkeypatch.setattr("wan_core.checkpoints.readers.reader.is_on_network", lambda path: True)
    monkeypatch.setattr("mmap.mmap", None)
    assert read_weights(tmp_path / "w.safetensors").read("a").tolist() == [1.0, 1.0]
