"""Files as ``torch.save`` writes them, written tensor by tensor."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from wan_core.checkpoints import MemorySource, read_weights
from wan_core.checkpoints.readers.sources import cast
from wan_core.checkpoints.torch_writer import write_torch_file
from wan_core.errors import CheckpointError


def odd_tensors() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(3, 5), "half": torch.randn(7).half(), "bf": torch.randn(2, 2, 2).bfloat16(),
        "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "long": torch.arange(3), "b": torch.tensor([True]),
        "transposed": torch.randn(4, 2).t(), "é": torch.ones(1, dtype=torch.uint8), "d": torch.ones(2).double(),
    }  # fmt: skip


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_we_write(tmp_path: Path, mmap: bool) -> None:
    write_torch_file(cast(MemorySource(odd_tensors()), {"d": torch.float32}), tmp_path / "w.pth")
    loaded = torch.load(tmp_path / "w.pth", weights_only=True, mmap=mmap)
    expected = odd_tensors() | {"d": torch.ones(2)}
    assert list(loaded) == list(expected)
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].data_ptr() % 8 == 0
    source = read_weights(tmp_path / "w.pth")
    assert all(torch.equal(source.read(name), tensor) for name, tensor in expected.items())
    with zipfile.ZipFile(tmp_path / "w.pth") as archive:
        assert archive.testzip() is None


def test_a_dtype_that_torch_files_lack_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tensor a has dtype"):
        write_torch_file(MemorySource({"a": torch.ones(1).to(torch.float8_e4m3fn)}), tmp_path / "w.pth")
    assert not list(tmp_path.iterdir())
