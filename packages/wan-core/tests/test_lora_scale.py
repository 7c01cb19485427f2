"""What a LoRA file says of its scale in other places than beside its tensors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from wan_core.checkpoints import LoRA, MemorySource, with_loras
from wan_core.errors import CheckpointError

from .lora_files import BASE, QUERY, SPELLINGS, assert_close, merged, read, spelt, updates, write

ONE = {QUERY: updates(BASE, 2)[QUERY]}


def notes(path: Path) -> tuple[str, ...]:
    return tuple(with_loras(MemorySource(BASE), [LoRA(path)]).notes)


@pytest.mark.parametrize(
    ("beside", "name"),
    [
        ({"alpha": 8}, "alpha"),
        ({"config": {"lora_alpha": 8.0}}, "config.lora_alpha"),
        ({"network_alpha": 8}, "net"),
    ],
)
def test_an_alpha_in_a_trainers_own_way_is_told(tmp_path: Path, beside: dict[str, Any], name: str) -> None:
    torch.save({"state_dict": spelt(ONE, "ComfyUI"), "step": 5, **beside}, tmp_path / "lora.pt")
    (note,) = notes(tmp_path / "lora.pt")
    assert f"says {name}" in note
    assert "the strength 4 behind the name" in note
    assert_close(read(tmp_path / "lora.pt"), merged(BASE, ONE, 1.0))


def test_an_alpha_that_is_used_or_is_the_rank_needs_no_word(tmp_path: Path) -> None:
    tensors = spelt(ONE, "ComfyUI")
    assert notes(write(tmp_path / "a.safetensors", tensors, {"lora_alpha": "2"})) == ()
    tensors[SPELLINGS["ComfyUI"](QUERY)[2]] = torch.tensor(8.0)
    assert notes(write(tmp_path / "b.safetensors", tensors, {"lora_alpha": "8"})) == ()
    assert_close(read(tmp_path / "b.safetensors"), merged(BASE, ONE, 4.0))
    tensors = spelt(ONE, "ComfyUI") | {"alpha": torch.tensor(8.0)}
    assert "says alpha = 8" in notes(write(tmp_path / "c.safetensors", tensors))[0]


def test_settings_of_peft_count_for_its_file_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6}))
    path = write(tmp_path / "style.safetensors", spelt(ONE, "peft"))
    assert_close(read(path), merged(BASE, ONE, 3.0))
    other = write(tmp_path / "comfy.safetensors", spelt(ONE, "ComfyUI"))
    assert_close(read(other), merged(BASE, ONE, 1.0))
    write(tmp_path / "adapter_model.safetensors", spelt(ONE, "peft"))  # whose settings they are then
    assert_close(read(path), merged(BASE, ONE, 1.0))


def test_lengths_in_two_spellings_are_refused(tmp_path: Path) -> None:
    start = f"diffusion_model.{QUERY}"
    lengths = {f"{start}.dora_scale": torch.ones(24, 1), f"{start}.lora_magnitude_vector": torch.ones(24)}
    path = write(tmp_path / "lora.safetensors", spelt(ONE, "ComfyUI") | lengths)
    with pytest.raises(CheckpointError, match="are the same tensor"):
        read(path)
