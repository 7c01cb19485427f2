"""Writing weights: whole or not at all, in shards of a bounded size, readable by the format's own library."""

import errno
import io
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, safe_open
from torch import Tensor

from wan_core.checkpoints import MemorySource, read_weights, write_file, write_shards
from wan_core.drafts import whole_folder
from wan_core.errors import CheckpointError, MediaError, RequestError


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "b.bytes": torch.arange(7, dtype=torch.uint8),
        "a.weight": torch.randn(5, 6),
        "half": torch.randn(3, 3).half(),
        "transposed": torch.randn(4, 2).t(),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(2, 0),
        "fp8": torch.randn(4).to(torch.float8_e4m3fn),
    }


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    write_file(MemorySource(tensors(), metadata={"who": "me"}), tmp_path / "w.safetensors")
    read = load_file(tmp_path / "w.safetensors")
    assert set(read) == set(tensors())
    for name, tensor in tensors().items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].float(), tensor.float())
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "who": "me"}
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_tensors_are_aligned_to_their_size(tmp_path: Path) -> None:
    write_file(MemorySource(tensors()), tmp_path / "w.safetensors")
    header = (tmp_path / "w.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    for name, entry in json.loads(header[8 : 8 + length]).items():
        if name != "__metadata__":
            assert (8 + length + entry["data_offsets"][0]) % tensors()[name].element_size() == 0


def test_dtypes_can_be_changed_by_name(tmp_path: Path) -> None:
    write_file(MemorySource(tensors()), tmp_path / "w.safetensors", dtypes={"a.weight": torch.bfloat16})
    source = read_weights(tmp_path / "w.safetensors")
    assert source.info("a.weight").dtype == torch.bfloat16
    assert source.info("half").dtype == torch.float16


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12), limit=st.integers(1, 200))
def test_shards_hold_everything_once_and_stay_below_the_limit(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    stored = {f"t{i}": torch.full((size,), float(i)) for i, size in enumerate(sizes)}
    names = write_shards(MemorySource(stored), folder, stem="m", max_shard_bytes=limit)
    read = read_weights(folder)
    assert {name: read.read(name).tolist() for name in read} == {name: t.tolist() for name, t in stored.items()}
    for name in names:
        shard = load_file(folder / name)  # our reader takes the others along
        assert sum(t.nbytes for t in shard.values()) <= limit or sum(t.nbytes > 0 for t in shard.values()) == 1
    if len(names) > 1:
        index = json.loads((folder / "m.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(sizes) * 4
        assert names == [f"m-{i + 1:05d}-of-{len(names):05d}.safetensors" for i in range(len(names))]


def test_a_shard_size_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="at least 1 byte, got 0"):
        write_shards(MemorySource(tensors()), tmp_path, max_shard_bytes=0)


def test_a_dtype_that_the_format_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tensor z has dtype torch\.complex128"):
        write_file(MemorySource({"z": torch.zeros(2, dtype=torch.complex128)}), tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


class FullDisk(io.BytesIO):
    """A file on a disk with room for its header only."""

    def write(self, content: object) -> int:
        if self.tell() > 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content)  # type: ignore[arg-type]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    write_file(MemorySource({"old": torch.ones(1)}), path)
    monkeypatch.setattr(Path, "open", lambda self, mode: FullDisk())
    with pytest.raises(MediaError, match="disk is full"):
        write_file(MemorySource(tensors()), path)
    monkeypatch.undo()
    assert read_weights(path).keys() == ("old",)
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_a_failing_source_leaves_nothing(tmp_path: Path) -> None:
    class Failing(MemorySource):
        def read(self, name: str) -> Tensor:
            if name == "half":
                raise CheckpointError("cut off")
            return super().read(name)

    with pytest.raises(CheckpointError, match="cut off"):
        write_file(Failing(tensors()), tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_folder_below_a_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(MediaError, match="cannot write"):
        write_shards(MemorySource(tensors()), tmp_path / "file" / "out")


def test_a_folder_becomes_visible_when_it_is_whole(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as draft:
        (draft / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_text() == "1"
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_fails_vanishes(tmp_path: Path) -> None:
    def fill() -> None:
        with whole_folder(tmp_path / "out") as draft:
            (draft / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert not list(tmp_path.iterdir())


def test_a_folder_with_content_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as draft:
        (draft / "a").write_text("1")
    with pytest.raises(RequestError, match="exists already"), whole_folder(tmp_path / "out"):
        pass
