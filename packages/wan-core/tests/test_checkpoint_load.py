"""Weights into networks: one complete error, dtypes, buffers, and how much memory it takes."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wan_core.checkpoints import DIT, MemorySource, load_model, read_weights
from wan_core.errors import CheckpointError
from wan_core.models import UMT5Config, WanDiTConfig

from .networks import build

CONFIG = WanDiTConfig(dim=16, ffn_dim=24, num_heads=2, num_layers=2, text_dim=8, text_len=4, freq_dim=8)


def weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: tensor.to(dtype) for name, tensor in build(CONFIG).state_dict().items()}


def test_a_loaded_model_has_the_weights_of_the_file_and_is_in_eval_mode() -> None:
    model = load_model(CONFIG, MemorySource(weights()), family="dit")
    assert not model.training
    assert all(torch.equal(tensor, weights()[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_every_difference_is_in_one_error() -> None:
    stored = weights()
    for name in ("head.head.weight", "head.head.bias", "blocks.0.self_attn.q.weight"):
        del stored[name]
    stored |= {f"extra.{i}": torch.ones(1) for i in range(9)}
    stored["blocks.1.ffn.0.weight"] = torch.ones(3, 16)
    source = MemorySource(stored, path=Path("model.safetensors"))
    with pytest.raises(CheckpointError) as caught:
        load_model(CONFIG, source, family="dit")
    message = str(caught.value)
    assert message.startswith("model.safetensors does not fit WanDiT")
    assert "3 missing: " in message
    assert "head.head.bias" in message
    assert "9 unexpected: extra.0, extra.1, extra.2, extra.3, extra.4, ..." in message
    assert "1 of another shape: blocks.1.ffn.0.weight [3, 16] instead of [24, 16]" in message
    assert "\n" not in message


def test_the_file_of_another_network_is_named() -> None:
    umt5 = build(UMT5Config(vocab_size=8, dim=8, dim_attn=8, dim_ffn=8, num_heads=2, num_layers=1))
    with pytest.raises(CheckpointError, match="looks like the text encoder"):
        load_model(CONFIG, MemorySource(umt5.state_dict()), family="dit")
    with pytest.raises(CheckpointError, match="holds no weights of such a network"):
        load_model(CONFIG, MemorySource({"x": torch.ones(1)}), family="dit")


def test_nothing_is_read_before_everything_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    source = MemorySource(weights() | {"extra": torch.ones(1)})
    monkeypatch.setattr(MemorySource, "read", lambda self, name: pytest.fail("read"))
    with pytest.raises(CheckpointError):
        load_model(CONFIG, source, family="dit")


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("wanted", [None, torch.bfloat16, torch.float32])
def test_listed_modules_stay_float32_and_the_rest_is_cast(stored: torch.dtype, wanted: torch.dtype | None) -> None:
    model = load_model(CONFIG, MemorySource(weights(stored)), family="dit", dtype=wanted)
    rest = wanted or (torch.bfloat16 if stored.itemsize == 1 else stored)
    for name, parameter in model.named_parameters():
        kept = re.search(r"time_embedding|time_projection|modulation|head|norm3", name)
        assert parameter.dtype == (torch.float32 if kept else rest), name


def test_without_a_dtype_the_one_of_most_weights_is_used() -> None:
    stored = weights(torch.bfloat16)
    stored["blocks.0.self_attn.q.bias"] = stored["blocks.0.self_attn.q.bias"].double()
    model = load_model(CONFIG, MemorySource(stored), family="dit")
    assert model.get_parameter("blocks.0.self_attn.q.bias").dtype == torch.bfloat16


def test_a_mapped_weight_that_needs_no_change_is_not_copied(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "w.safetensors")
    source = read_weights(tmp_path / "w.safetensors", mmap=True)
    first, second = (load_model(CONFIG, source, family="dit") for _ in range(2))
    name = "blocks.0.ffn.0.weight"
    assert first.get_parameter(name).data_ptr() == second.get_parameter(name).data_ptr() == source.read(name).data_ptr()


class WithBuffers(nn.Module):
    """A computed table that no file holds, a stored buffer, and a count."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(6.0).outer(torch.ones(2)), persistent=False)
        self.register_buffer("stored", torch.zeros(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))


def test_buffers_that_no_file_holds_are_computed() -> None:
    saved = WithBuffers()
    saved.stored += 5
    saved.count += 7
    model = load_model(
        None,
        MemorySource(saved.state_dict()),
        family=replace(DIT, network=lambda _: WithBuffers()),
        dtype=torch.bfloat16,
    )
    assert model.table.tolist() == WithBuffers().table.tolist()
    assert model.stored.tolist() == [5.0] * 3
    assert (int(model.count), model.count.dtype) == (7, torch.long)
    assert model.linear.weight.dtype == torch.bfloat16
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


class Uncomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("lost", torch.empty(3), persistent=False)


def test_a_buffer_that_nothing_computes_is_a_fault_of_the_code() -> None:
    with pytest.raises(TypeError, match="lost is neither stored nor computed"):
        load_model(None, MemorySource({}), family=replace(DIT, network=lambda _: Uncomputed()))


# -- memory ------------------------------------------------------------------------------------------------------------

MEMORY_PROBE = """
import json, resource, sys
import torch
from torch import nn
from dataclasses import replace
from wan_core.checkpoints import DIT, load_model, read_weights

path, dtype, mmap = sys.argv[1], getattr(torch, sys.argv[2]), json.loads(sys.argv[3])

class Big(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4096, 4096, bias=False) for _ in range(16))

def resident(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

def build(config):
    return Big()

torch.empty(8).to(dtype)
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
model = load_model(None, read_weights(path, mmap=mmap), family=replace(DIT, network=build), dtype=dtype)
total = sum(float(p.detach().reshape(-1)[::1024].float().sum()) for p in model.parameters())
kept = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({"peak": resident("VmHWM") - before, "kept": kept, "total": total}))
"""


@pytest.fixture(scope="module")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 layers of 4096 x 4096: 1.07 GB of float32 in both formats, written tensor by tensor."""
    folder = tmp_path_factory.mktemp("big")
    tensors = {f"layers.{i}.weight": torch.full((4096, 4096), float(i)) for i in range(16)}
    save_file(tensors, folder / "w.safetensors")
    torch.save(tensors, folder / "w.pth")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "mmap", "dtype"),
    [
        ("safetensors", "true", "float32"),
        ("safetensors", "true", "bfloat16"),
        ("safetensors", "false", "float32"),
        ("pth", "true", "bfloat16"),
        ("pth", "false", "bfloat16"),
    ],
)
def test_loading_a_gigabyte_needs_no_more_memory_than_it_keeps(
    big_file: Path, suffix: str, mmap: str, dtype: str
) -> None:
    command = [sys.executable, "-c", MEMORY_PROBE, str(big_file / f"w.{suffix}"), dtype, mmap]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert result["total"] == sum(i * 4096 * 4 for i in range(16))
    one_tensor = 4096 * 4096 * 4
    assert result["peak"] <= max(1.1 * result["kept"], result["kept"] + 1.1 * one_tensor), result
