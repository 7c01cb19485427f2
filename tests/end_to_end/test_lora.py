"""LoRA on the command line: merged on tiny models, recorded in the file, refused in one sentence where it cannot be."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file
from torch import Tensor

import wan_core.loading
from wan_core.checkpoints import read_weights
from wan_core.media import read_provenance, read_video

Run = Callable[..., Result]
TINY = ["--prompt", "a red circle", "--frame-num", 5, "--sample-steps", 1, "--seed", 3, "--quiet"]
DATA = Path(__file__).resolve().parents[1] / "data"
LAYER = "diffusion_model.blocks.0.self_attn.q"
WIDTH = 128  # of the tiny networks


def pair(width: int = WIDTH, layer: str = LAYER, **other: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {f"{layer}.lora_A.weight": torch.randn(2, width), f"{layer}.lora_B.weight": torch.randn(width, 2), **other}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of LoRA files, good and bad."""
    good = pair()
    contents: Mapping[str, Mapping[str, Tensor]] = {
        "good": good,
        "my=style:2": good,
        "wide": pair(2 * WIDTH),
        "i2v": good | pair(layer="diffusion_model.blocks.0.cross_attn.k_img"),
        "half": {f"{LAYER}.lora_A.weight": torch.ones(2, WIDTH)},
        "model": {f"blocks.{index}.self_attn.q.weight": torch.ones(2, 2) for index in range(9)},
        "oft": {f"{LAYER}.oft_blocks": torch.ones(2, 4, 4)},
        "lokr": {f"{LAYER}.lokr_w1": torch.ones(8, 8), f"{LAYER}.lokr_w2": torch.ones(WIDTH // 8, WIDTH // 8)},
        "halves": {
            name.replace("diffusion_model", half): tensor.clone()
            for half in ("transformer", "transformer_2")
            for name, tensor in good.items()
        },
        "nan": {name: tensor * torch.nan for name, tensor in good.items()},
        "alpha": good | {f"{LAYER}.alpha": torch.tensor(torch.inf)},
        "other": pair(layer="lora_unet_double_blocks_0_img_attn_qkv"),
    }
    for name, tensors in contents.items():
        save_file(dict(tensors), tmp_path / f"{name}.safetensors")
    whole = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><p>401")
    (tmp_path / "nothing.safetensors").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    return tmp_path


# name: (arguments after `wan generate`, exit code, words that the message must have). {tmp} is the folder of files.
CASES: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "no such file": (["--lora", "{tmp}/none.safetensors"], 2, ("there is no LoRA file", "none.safetensors")),
    "no such file with a strength": (["--lora", "{tmp}/none.safetensors:0.5"], 2, ("no LoRA file", "none.safetensors")),
    "nothing": (["--lora", ""], 2, ("names no LoRA file", "PATH:STRENGTH")),
    "nothing but a strength": (["--lora", ":0.5"], 2, ("names no LoRA file",)),
    "an expert's nothing": (["--lora", "high="], 2, ("names no LoRA file",)),
    "strength in words": (["--lora", "{tmp}/good.safetensors:strong"], 2, ("'strong'", "good.safetensors:0.8")),
    "strength with a comma": (["--lora", "{tmp}/good.safetensors:0,8"], 2, ("'0,8'", "number")),
    "strength of NaN": (["--lora", "{tmp}/good.safetensors:nan"], 2, ("nan", "-100 to 100")),
    "strength of infinity": (["--lora", "{tmp}/good.safetensors:-inf"], 2, ("-inf", "-100 to 100")),
    "strength of a thousand": (["--lora", "{tmp}/good.safetensors:1e3"], 2, ("1e3", "-100 to 100")),
    "an expert of one network": (["--lora", "high={tmp}/good.safetensors"], 2, ("one network", "no high-noise expert")),
    "another expert of one network": (["--lora", "low={tmp}/good.safetensors:0.5"], 2, ("no low-noise expert",)),
    "an expert there is not": (["--lora", "mid={tmp}/good.safetensors"], 2, ("no LoRA file mid=",)),
    "another width": (["--lora", "{tmp}/wide.safetensors"], 3, ("1 of another shape", "[256, 256] instead of [128,")),
    "of an image model": (["--lora", "{tmp}/i2v.safetensors"], 3, ("2 without a place", "k_img", "--force-lora")),
    "half a pair": (["--lora", "{tmp}/half.safetensors"], 3, ("without the other half", "lora_A", "fetch it again")),
    "a model": (["--lora", "{tmp}/model.safetensors"], 3, ("not a LoRA", "none of its 9 tensors")),
    "an OFT": (["--lora", "{tmp}/oft.safetensors"], 3, ("OFT", "plain LoRA")),
    "two halves for one network": (["--lora", "{tmp}/halves.safetensors"], 3, ("two experts", "one network")),
    "of another architecture": (["--lora", "{tmp}/other.safetensors"], 3, ("2 without a place", "another model")),
    "of another architecture, forced": (["--lora", "{tmp}/other.safetensors", "--force-lora"], 3, ("another model",)),
    "an infinite alpha": (["--lora", "{tmp}/alpha.safetensors"], 3, ("alpha", "finite")),
    "cut off": (["--lora", "{tmp}/cut.safetensors"], 3, ("cut off or damaged",)),
    "a web page": (["--lora", "{tmp}/page.safetensors"], 3, ("web page", "download")),
    "empty": (["--lora", "{tmp}/nothing.safetensors"], 3, ("empty",)),
    "an empty folder": (["--lora", "{tmp}/folder"], 3, ("no weights in", "folder")),
    "the second of two": (
        ["--lora", "{tmp}/good.safetensors", "--lora", "{tmp}/half.safetensors"], 3, ("half.safetensors",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_bad_lora_is_one_clear_sentence(name: str, run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, exit_code, words = CASES[name]

    def no_weights(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were read before the LoRA was checked")

    monkeypatch.setattr(wan_core.loading, "load_model", no_weights)
    before = sorted(files.rglob("*"))
    result = run("generate", "tiny-t2v", *TINY, *(word.format(tmp=files) for word in arguments))
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) <= 4
    for word in words:
        assert word in " ".join(result.output.split()), result.output
    assert sorted(files.rglob("*")) == before


def test_damaged_numbers_end_the_run_and_leave_nothing(run: Run, files: Path) -> None:
    result = run("generate", "tiny-t2v", *TINY, "--lora", files / "nan.safetensors", "--output", files / "v.mp4")
    assert result.exit_code == 3, result.output
    assert "NaN or infinity" in result.output
    assert not list(files.glob("*v.mp4*"))


def test_a_lora_changes_the_video_and_is_recorded(run: Run, files: Path) -> None:
    odd = files / "my=style:2.safetensors"
    odd.rename(files / "my=style:2")
    for name, loras in {
        "plain": [],
        "zero": ["--lora", f"{files / 'good.safetensors'}:0"],
        "with": ["--lora", f"{files / 'good.safetensors'}:0.25", "--lora", f"{files / 'my=style:2'}:-.5"],
        "whole": ["--lora", files / "my=style:2"],
        "forced": ["--lora", files / "i2v.safetensors", "--force-lora"],
        "lokr": ["--lora", f"{files / 'lokr.safetensors'}:0.1"],
    }.items():
        result = run("generate", "tiny-t2v", *TINY, *loras, "--output", f"{name}.mp4")
        assert result.exit_code == 0, result.output
    frames = {name: read_video(files / f"{name}.mp4").frames for name in ("plain", "zero", "with", "whole", "forced")}
    assert torch.equal(frames["plain"], frames["zero"])
    assert not torch.equal(frames["plain"], frames["with"])
    assert not torch.equal(frames["plain"], read_video(files / "lokr.mp4").frames)
    assert torch.equal(frames["whole"], frames["forced"])  # what has a place of the forced one is the same file
    record = read_provenance(files / "with.mp4").record
    assert record["lora"] == ["good.safetensors:0.25", "my=style:2:-0.5"]
    assert "lora" not in read_provenance(files / "plain.mp4").record
    shown = run("show", files / "with.mp4").output
    assert "--lora good.safetensors:0.25 --lora my=style:2:-0.5" in shown
    assert run("show", files / "forced.mp4").output.rstrip().endswith("--lora i2v.safetensors --force-lora")


def test_the_lora_of_the_docs_warms_the_colours(run: Run, tmp_path: Path) -> None:
    words = ["--prompt", "a green circle on a gray background", "--frame-num", 5, "--sample-steps", 4, "--seed", 3]
    warmth = []
    for strength in (0, 0.8):
        lora = f"{DATA / 'tiny_warm.safetensors'}:{strength}"
        result = run("generate", "tiny-t2v", *words, "--lora", lora, "--quiet", "--output", f"{strength}.mp4")
        assert result.exit_code == 0, result.output
        red, _, blue = read_video(tmp_path / f"{strength}.mp4").frames.float().mean(dim=(0, 2, 3)).tolist()
        warmth.append(red - blue)
    assert warmth[1] > warmth[0] + 0.05


@pytest.mark.slow
def test_each_expert_has_its_own(run: Run, files: Path) -> None:
    good = files / "good.safetensors"
    both = ["--lora", f"{good}:0.5"]
    each = ["--lora", f"high={good}:0.5", "--lora", f"low={good}:0.5"]
    high = ["--lora", f"high={good}:0.5"]
    halves = ["--lora", f"{files / 'halves.safetensors'}:0.5"]
    for name, loras in {"both": both, "each": each, "high": high, "halves": halves}.items():
        result = run("generate", "tiny-moe", *TINY, "--sample-steps", 2, *loras, "--output", f"{name}.mp4")
        assert result.exit_code == 0, result.output
    frames = {name: read_video(files / f"{name}.mp4").frames for name in ("both", "each", "high", "halves")}
    assert torch.equal(frames["both"], frames["each"])
    assert torch.equal(frames["both"], frames["halves"])
    assert not torch.equal(frames["both"], frames["high"])
    assert read_provenance(files / "each.mp4").record["lora"] == [
        "high=good.safetensors:0.5",
        "low=good.safetensors:0.5",
    ]


def test_the_bundled_change_is_no_lora_of_the_model_it_changes(run: Run, files: Path) -> None:
    from importlib.resources import files as package_files

    change = Path(str(package_files("wan_core") / "weights" / "tiny" / "i2v" / "model.safetensors"))
    assert "base" in read_weights(change).metadata
    result = run("generate", "tiny-t2v", *TINY, "--lora", change)
    assert result.exit_code == 3
    assert "2 without a place in this model: patch_embedding" in result.output
