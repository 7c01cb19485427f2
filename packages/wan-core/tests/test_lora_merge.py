"""Merging into files: what is written is what would be loaded, whole or not at all, in bounded memory."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import Tensor

from wan_core.checkpoints import LoRA, MemorySource, in_format, read_weights, with_loras, write_file, write_shards
from wan_core.cli import wan
from wan_core.presets import get_preset

from .dit_networks import CONFIG, network
from .lora_files import merged, spelt, updates, write
from .memory import peak_memory, reset_peak
from .networks import build

BASE = {name: tensor.clone() for name, tensor in network(CONFIG).state_dict().items()}
HEADS = {"config": json.dumps({"num_heads": CONFIG.num_heads, "text_len": CONFIG.text_len})}
TINY = json.dumps({"num_heads": 4, "text_len": 24})
LARGE = 2 * 1024  # a square bfloat16 matrix of this width is 8 MiB


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run ``wan`` in an empty folder with a LoRA and a network in the official layout."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "lora.safetensors", spelt(updates(BASE, 2), "kohya and musubi", 1.0))
    write(tmp_path / "other.safetensors", spelt(updates(BASE, 3, seed=1), "diffusers"))
    write_file(MemorySource(BASE, metadata=HEADS), tmp_path / "net.safetensors")
    return lambda *words: CliRunner().invoke(wan, [str(word) for word in words], catch_exceptions=False)


def read(path: Path) -> dict[str, Tensor]:
    source = read_weights(path)
    return {name: source.read(name).clone() for name in source}


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].float(), tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_the_file_holds_the_sum(run: Callable[..., Result], tmp_path: Path) -> None:
    before = (tmp_path / "net.safetensors").read_bytes()
    result = run(
        "merge-lora", "net.safetensors", "out.safetensors", "--lora", "lora.safetensors:0.5", "--lora",
        "other.safetensors", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    expected = merged(merged(BASE, updates(BASE, 2), 0.25), updates(BASE, 3, seed=1), 1.0)
    assert_close(read(tmp_path / "out.safetensors"), expected)
    assert (tmp_path / "net.safetensors").read_bytes() == before


def test_a_diffusers_folder_stays_one_and_gets_shards(run: Callable[..., Result], tmp_path: Path) -> None:
    write_shards(in_format(MemorySource(BASE, metadata=HEADS), "dit", "diffusers"), tmp_path / "net")
    (tmp_path / "net" / "config.json").write_text(
        json.dumps({"num_attention_heads": CONFIG.num_heads, "attention_head_dim": CONFIG.head_dim})
    )
    result = run("merge-lora", "net", "out", "--lora", "lora.safetensors", "--shard-size", "20KB")
    assert result.exit_code == 0, result.output
    found = read(tmp_path / "out")
    assert "blocks.0.attn1.to_q.weight" in found
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    expected = in_format(MemorySource(merged(BASE, updates(BASE, 2), 0.5)), "dit", "diffusers")
    assert_close(found, {name: expected.read(name) for name in expected})


def test_each_expert_gets_its_own(run: Callable[..., Result], tmp_path: Path) -> None:
    weights = {
        name: torch.zeros_like(tensor) for name, tensor in build(get_preset("tiny-moe").dit).state_dict().items()
    }
    for folder in ("high_noise_model", "low_noise_model"):
        write_shards(MemorySource(weights, metadata={"config": TINY}), tmp_path / "moe" / folder)
    for index in range(2):
        write(tmp_path / f"{index}.safetensors", spelt(updates(weights, 2, seed=index), "ComfyUI"))
    result = run("merge-lora", "moe", "out", "--lora", "high=0.safetensors", "--lora", "1.safetensors:-1", "--quiet")
    assert result.exit_code == 0, result.output
    low = merged(weights, updates(weights, 2, seed=1), -1.0)
    assert_close(read(tmp_path / "out" / "low_noise_model"), low)
    assert_close(read(tmp_path / "out" / "high_noise_model"), merged(low, updates(weights, 2), 1.0))


def test_convert_takes_the_same_option(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("convert", "net.safetensors", "out", "--to", "diffusers", "--lora", "lora.safetensors", "--quiet")
    assert result.exit_code == 0, result.output
    expected = in_format(MemorySource(merged(BASE, updates(BASE, 2), 0.5)), "dit", "diffusers")
    assert_close(read(tmp_path / "out"), {name: expected.read(name) for name in expected})


def test_a_narrow_file_is_widened_before_the_sum(run: Callable[..., Result], tmp_path: Path) -> None:
    narrow = {name: tensor.bfloat16() for name, tensor in BASE.items()}
    write_file(MemorySource(narrow, metadata=HEADS), tmp_path / "narrow.safetensors")
    result = run(
        "merge-lora", "narrow.safetensors", "out.safetensors", "--lora", "lora.safetensors:.01", "--dtype", "float32"
    )
    assert result.exit_code == 0, result.output
    widened = {name: tensor.float() for name, tensor in narrow.items()}
    assert_close(read(tmp_path / "out.safetensors"), merged(widened, updates(BASE, 2), 0.005))


# name: (arguments after `wan merge-lora`, exit code, words that the message must have)
CASES: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "no LoRA": (["net.safetensors", "out.safetensors"], 2, ("nothing to merge", "--lora PATH")),
    "no source": (["none", "out", "--lora", "lora.safetensors"], 3, ("none",)),
    "into the source": (["net.safetensors", "net.safetensors", "--lora", "lora.safetensors"], 2, ("of the source",)),
    "into the source, by another name": (
        ["net.safetensors", "./../{name}/net.safetensors", "--lora", "lora.safetensors", "--overwrite"],
        2, ("part of the source",),
    ),
    "over the LoRA": (
        ["net.safetensors", "lora.safetensors", "--lora", "lora.safetensors", "--overwrite"],
        2, ("would replace the LoRA",),
    ),
    "over something else": (["net.safetensors", "other.safetensors", "--lora", "lora.safetensors"], 2, ("exists",)),
    "an expert of one network": (["net.safetensors", "out", "--lora", "low=lora.safetensors"], 2, ("one network",)),
    "no transformer": (["vae.safetensors", "out", "--lora", "lora.safetensors"], 3, ("vae.safetensors",)),
    "a LoRA as source": (["other.safetensors", "out", "--lora", "lora.safetensors"], 3, ("other.safetensors",)),
    "a network as LoRA": (["net.safetensors", "out", "--lora", "net.safetensors"], 3, ("not a LoRA",)),
    "numbers that are none": (["net.safetensors", "out", "--lora", "nan.safetensors"], 3, ("NaN or infinity",)),
    "a shard size of nothing": (
        ["net.safetensors", "out", "--lora", "lora.safetensors", "--shard-size", "0"], 2, ("'0' is no size",)
    ),
    "an unknown dtype": (["net.safetensors", "out", "--lora", "lora.safetensors", "--dtype", "int3"], 2, ("int3",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_merged_is_one_sentence_and_leaves_nothing(
    name: str, run: Callable[..., Result], tmp_path: Path
) -> None:
    arguments, exit_code, words = CASES[name]
    write(tmp_path / "vae.safetensors", {"decoder.middle.0.residual.0.gamma": torch.ones(2, 1, 1, 1)})
    write(tmp_path / "nan.safetensors", {name: tensor / 0 for name, tensor in spelt(updates(BASE, 1), "peft").items()})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = run("merge-lora", *(word.format(name=tmp_path.name) for word in arguments), "--quiet")
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    for word in words:
        assert word in " ".join(result.output.split()), result.output
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_sums_are_made_where_it_is_asked_for(tmp_path: Path) -> None:
    """The meta device has no values that could be handed out."""
    save_file({"blocks.0.ffn.0.weight": torch.zeros(8, 8)}, tmp_path / "net")
    halves = {"blocks.0.ffn.0": (torch.ones(2, 8), torch.ones(8, 2))}
    loras = [LoRA(write(tmp_path / "lora.safetensors", spelt(halves, "ComfyUI")))]
    name = "blocks.0.ffn.0.weight"
    with pytest.raises(NotImplementedError, match="meta"):
        with_loras(read_weights(tmp_path / "net"), loras, device=torch.device("meta")).read(name)
    merged = with_loras(read_weights(tmp_path / "net"), loras, device=torch.device("cpu")).read(name)
    assert torch.equal(merged, with_loras(read_weights(tmp_path / "net"), loras).read(name))


def test_writing_needs_a_few_tensors_of_memory_not_a_model(tmp_path: Path) -> None:
    names = [f"blocks.{index}.ffn.0" for index in range(10)]
    save_file({f"{name}.weight": torch.zeros(LARGE, LARGE, dtype=torch.bfloat16) for name in names}, tmp_path / "net")
    halves = {name: (torch.ones(8, LARGE), torch.ones(LARGE, 8)) for name in names}
    lora = write(tmp_path / "lora.safetensors", spelt(halves, "ComfyUI"))
    source = with_loras(read_weights(tmp_path / "net"), [LoRA(lora)])
    largest = LARGE * LARGE * 2
    torch.ones(8, 8) @ torch.ones(8, 8)  # whatever the first product starts
    before = reset_peak()
    write_file(source, tmp_path / "out.safetensors")
    # Of one tensor: as stored, twice that in float32, and the rounded result. The whole model is ten tensors.
    assert peak_memory() - before < 7 * largest
    assert read_weights(tmp_path / "out.safetensors").read(f"{names[9]}.weight")[0, 0].item() == 8
