"""What a run of `wan train` leaves for others, what it goes on over, and by which names it is configured."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file

import wan_core.loading
from tools.tiny.clips import write_clips
from wan_core.errors import MediaError
from wan_core.loading import RuntimeOptions, checkpoint_folder
from wan_core.presets import get_preset
from wan_core.training.export import complete_model

Run = Callable[..., Result]
ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--steps", 1, "--num-frames", 5, "--size", "32*32", "--log-every", 1, "--quiet"]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips."""
    return write_clips(tmp_path_factory.mktemp("few"), 3)


def good(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("names", [("part", "json"), ("parts", "as_json")])
def test_a_config_takes_the_names_of_options_and_of_the_code(
    run: Run, few: Path, tmp_path: Path, names: tuple[str, str]
) -> None:
    vae = checkpoint_folder(get_preset("tiny-t2v"), None) / "vae.safetensors"
    config = tmp_path / "run.toml"
    config.write_text(f'{names[0]} = "vae={vae}"\n{names[1]} = true\n')
    arguments = ["--model", "tiny-t2v", "--data", few, "--output", tmp_path / "out", "--dry-run", *SHORT]
    assert json.loads(good(run("train", "--config", config, *arguments)).stdout)["model"] == "tiny-t2v"
    config.write_text(f'{names[0]} = "vae={tmp_path / "none"}"\n')
    assert "none" in run("train", "--config", config, *arguments).output


@pytest.mark.parametrize("options", [["--lora-rank", 2], []], ids=["lora", "full"])
@pytest.mark.parametrize("given", ["part", "folder"])
def test_a_run_does_not_go_on_over_other_weights(
    run: Run, few: Path, tmp_path: Path, options: list[object], given: str
) -> None:
    arguments = ["--model", "tiny-t2v", "--data", few, "--output", tmp_path / "out", *options, *SHORT, "--steps", 1]
    good(run("train", *arguments))
    other = shutil.copytree(checkpoint_folder(get_preset("tiny-t2v"), None), tmp_path / "other")
    place = ["--part", f"dit={other / 't2v'}"] if given == "part" else ["--ckpt-dir", other]
    good(run("train", *arguments, *place))  # the same weights in another place
    weights = bytearray((other / "t2v/model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "t2v/model.safetensors").write_bytes(weights)
    result = run("train", *arguments, *place, "--steps", 2)
    assert result.exit_code == 2
    assert "base_weights was" in result.output


@pytest.mark.parametrize(
    ("model", "options", "image"),
    [("tiny-poze", ["--network", "dit"], [ROOT / "tests/data/room.png"]), ("tiny-moe", ["--expert", "high"], [])],
)
def test_a_whole_model_works_from_another_place_and_with_its_own_network(
    run: Run, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    model: str, options: list[object], image: list[object],
) -> None:  # fmt: skip
    good(run("train", "--model", model, "--data", few, "--output", tmp_path / "out", *options, *SHORT, "--steps", 1))
    whole = shutil.move(tmp_path / "out/model", tmp_path / "moved")
    opened: list[Path] = []
    read_weights = wan_core.loading.read_weights
    monkeypatch.setattr(
        wan_core.loading, "read_weights", lambda path, **rest: opened.append(path) or read_weights(path, **rest)
    )
    words = ["--prompt", "a circle", *(["--image", *image] if image else []), "--frame-num", 5, "--sample-steps", 1]
    good(run("generate", model, "--ckpt-dir", whole, *words, "--quiet", "--output", tmp_path / "v.mp4"))
    assert tmp_path / "moved" / ("dit" if image else "high") in opened
    assert tmp_path / "moved/vae.safetensors" in opened


@pytest.mark.parametrize("earlier", ["cut", "other expert"])
def test_a_file_that_was_cut_is_put_again_and_a_trained_expert_stays(tmp_path: Path, earlier: str) -> None:
    preset = get_preset("tiny-moe")
    source, target = checkpoint_folder(preset, None), tmp_path / "model"
    (target / "low").mkdir(parents=True)
    low = target / "low/diffusion_pytorch_model.safetensors"
    if earlier == "cut":
        (target / "vae.safetensors").write_bytes((source / "vae.safetensors").read_bytes()[:1000])
        (target / "low/config.json").write_text("{}")
    else:
        save_file({"a": torch.ones(1)}, low, {"training": "{}"})
    complete_model(preset, source, target)
    assert (target / "vae.safetensors").read_bytes() == (source / "vae.safetensors").read_bytes()
    if earlier == "cut":
        assert (target / "low/config.json").read_bytes() == (source / "low/config.json").read_bytes()
    else:
        assert sorted(path.name for path in (target / "low").iterdir()) == [low.name]


@pytest.mark.parametrize("bundled", ["tiny", None])
def test_a_disk_that_fills_in_the_export_leaves_no_file_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundled: str | None
) -> None:
    def full(source: object, place: Path) -> None:
        Path(place).write_bytes(b"cut")
        raise OSError(errno.ENOSPC, "No space left on device")

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "other disk")

    preset = get_preset("tiny-t2v")
    source = checkpoint_folder(preset, None)
    monkeypatch.setattr(shutil, "copy2", full)
    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(MediaError, match=r"cannot write .*the disk is full"):
        complete_model(replace(preset, bundled=bundled), source, tmp_path / "model")
    assert not list(tmp_path.rglob("*.*"))


def test_the_weights_of_a_checkpoint_are_read_with_their_own_dims(run: Run, few: Path, tmp_path: Path) -> None:
    good(run("train", "--model", "tiny-t2v", "--data", few, "--output", tmp_path / "out", *SHORT))
    place = tmp_path / "out/checkpoints/step-00000001/model.safetensors"
    read = wan_core.loading.load_pipeline("tiny-t2v", None, RuntimeOptions(parts={"dit": place}))
    exported = wan_core.loading.load_pipeline("tiny-t2v", tmp_path / "out/model")
    assert read.components.configs["dit"] == exported.components.configs["dit"]
    assert read.components.configs["dit"].num_heads == 4
