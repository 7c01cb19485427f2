import pytest
import torch
from safetensors.torch import save_file

from wan_core.checkpoints import MemorySource, read_weights, with_delta
from wan_core.errors import CheckpointError

BASE = {"a.weight": torch.eye(3), "a.bias": torch.zeros(3), "b.weight": torch.ones(2, 2)}
UPDATE = {
    "diffusion_model.a.lora_A.weight": torch.ones(2, 3),
    "diffusion_model.a.lora_B.weight": torch.ones(3, 2),
    "diffusion_model.a.alpha": torch.tensor(1.0),
}


def test_updates_are_added_and_other_tensors_replaced() -> None:
    new = torch.full((2, 5), 7.0)
    source = with_delta(MemorySource(BASE), MemorySource(UPDATE | {"b.weight": new}))
    assert set(source.keys()) == set(BASE)
    torch.testing.assert_close(source.read("a.weight"), torch.eye(3) + 1.0)
    torch.testing.assert_close(source.read("a.bias"), BASE["a.bias"])
    torch.testing.assert_close(source.read("b.weight"), new)
    assert source.info("b.weight").shape == (2, 5)


@pytest.mark.parametrize(
    "change",
    [{"c.weight": torch.ones(1)}, {name: t for name, t in UPDATE.items() if "lora_B" not in name}],
)
def test_a_change_of_something_else_is_refused(change) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit memory: \d"):
        with_delta(MemorySource(BASE), MemorySource(change))


def test_a_header_length_that_looks_like_a_pickle_is_read(tmp_path) -> None:
    for count in range(200):
        path = tmp_path / f"{count}.safetensors"
        save_file({"a": torch.ones(1)}, path, {"note": "x" * 8 * count})
        if path.read_bytes()[0] == 0x80:
            assert read_weights(path).read("a").item() == 1.0
            return
    pytest.fail("no header of such a length was made")
