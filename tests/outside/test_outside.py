"""What docs/extending.md promises: a package of somebody else adds everything that a project may add."""

import json
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from tools.tiny.clips import write_clips
from wan_core.checkpoints import families
from wan_core.cli import wan
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.media import read_video

SOURCE = Path(__file__).with_name("tinted.py")
ENTRY_POINTS = """[wan_core.tasks]
tinted = tinted:TINTED

[wan_core.families]
palette = tinted:PALETTE
tint-dit = tinted:TINT_DIT
"""
REQUEST = ["--prompt", "a red circle", "--frame-num", "5", "--sample-steps", "2", "--base-seed", "1"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package, installed into a temporary folder."""
    site = tmp_path / "site"
    info = site / "tinted-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(SOURCE, site / "tinted.py")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tinted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(site))
    families.cache_clear()
    yield site
    monkeypatch.undo()
    families.cache_clear()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A checkpoint of it: the tiny text-to-video model with the further weight, and a palette."""
    tiny = Path(str(files("wan_core") / "weights" / "tiny"))
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny / "tokenizer", folder / "google" / "umt5-xxl")
    shutil.copy(tiny / "vae.safetensors", folder / "Wan2.2_VAE.safetensors")
    shutil.copy(tiny / "text_encoder.safetensors", folder / "models_t5_umt5-xxl-enc-bf16.safetensors")
    torch.manual_seed(0)
    tensors = load_file(tiny / "t2v" / "model.safetensors")
    tensors |= {"tint_embedding.weight": torch.randn(128, 3), "tint_embedding.bias": torch.zeros(128)}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    shutil.copy(tiny / "t2v" / "config.json", folder)
    save_file({"colours.weight": torch.randn(5, 3)}, folder / "palette.safetensors")
    return folder


@pytest.fixture
def run(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(wan, [str(word) for word in words], catch_exceptions=False)


def test_the_package_is_short() -> None:
    assert len(SOURCE.read_text().splitlines()) <= 150


def test_its_network_and_its_part_are_loaded(package: Path, weights: Path) -> None:
    components = load_pipeline("tinted", weights, RuntimeOptions(device="cpu")).components
    assert type(components.dit.module()).__name__ == "TintDiT"
    assert components.configs["palette"].size == 5
    assert components.configs["dit"].tint_dim == 3


def test_its_task_makes_a_video_and_its_option_matters(run: Callable[..., Result], weights: Path) -> None:
    for number in (0, 1):
        words = ["--ckpt-dir", weights, *REQUEST, "--tint", number, "--output", f"{number}.mp4"]
        assert run("generate", "tinted", *words).exit_code == 0
    assert not torch.equal(read_video("0.mp4").frames, read_video("1.mp4").frames)


def test_a_part_can_come_from_elsewhere(run: Callable[..., Result], weights: Path) -> None:
    (weights / "palette.safetensors").rename(weights.parent / "other.safetensors")
    words = ["generate", "tinted", "--ckpt_dir", weights, *REQUEST, "--output", "v.mp4"]
    lacking = run(*words)
    assert lacking.exit_code == 3
    assert "the palette" in lacking.output
    assert run(*words, "--part", f"palette={weights.parent / 'other.safetensors'}").exit_code == 0
    unknown = run(*words, "--part", "brush=a")
    assert unknown.exit_code == 2
    assert "it has dit, vae" in unknown.output


def test_inspect_knows_its_families(run: Callable[..., Result], weights: Path) -> None:
    found = json.loads(run("inspect", weights, "--json").stdout)
    assert {item["family"] for item in found["weights"]} == {"tint-dit", "vae", "umt5", "palette"}
    assert all(not item["missing"] and not item["unexpected"] for item in found["weights"])


def test_it_is_trained_and_goes_on_from_its_own_weights(run: Callable[..., Result], weights: Path) -> None:
    write_clips(Path("videos"), 2)
    words = ["--model", "tinted", "--ckpt-dir", weights, "--data", "videos", "--num-frames", 5, "--size", "32*32"]
    result = run("train", *words, "--steps", 1, "--validation-prompt", "a red circle", "--output", "full", "--quiet")
    assert result.exit_code == 0, result.output
    network = load_pipeline("tinted", "full/model", RuntimeOptions(device="cpu")).components.dit.module()
    before = load_file(weights / "diffusion_pytorch_model.safetensors")["tint_embedding.weight"]
    assert not torch.equal(network.tint_embedding.weight, before)
    words = ["generate", "tinted", "--ckpt-dir", "full/model", *REQUEST, "--output", "after.mp4"]
    assert run(*words).exit_code == 0


def test_convert_writes_it_whole_and_it_loads_again(run: Callable[..., Result], weights: Path) -> None:
    result = run("convert", weights, "again", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    again = load_pipeline("tinted", "again", RuntimeOptions(device="cpu")).components
    with again.dit.active() as network, again.part("palette").active() as palette:
        assert torch.equal(
            network.tint_embedding.weight,
            load_file(weights / "diffusion_pytorch_model.safetensors")["tint_embedding.weight"],
        )
        assert torch.equal(palette.colours.weight, load_file(weights / "palette.safetensors")["colours.weight"])
