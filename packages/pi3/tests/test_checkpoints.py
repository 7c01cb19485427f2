"""Weights: found where they are, read safely, loaded exactly or refused with names."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from pi3 import Pi3, Pi3Config, Pi3X, Pi3XConfig, load_pi3
from pi3.checkpoints import PI3, bundled_weights, find_weights
from wan_core import CheckpointError
from wan_core.checkpoints import native_weights, read_weights
from wan_core.cli import wan


def save(model: Pi3, path: Path) -> Path:
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        path,
        metadata={"config": json.dumps(model.config.to_dict())},
    )
    return path


@pytest.fixture
def folder(model: Pi3, tmp_path: Path) -> Path:
    save(model, tmp_path / "model.safetensors")
    return tmp_path


@torch.no_grad()
def stored_config(path: Path) -> Any:
    """The dims that a file tells."""
    return PI3.read_config(path, native_weights(read_weights(path), PI3))


def test_loaded_weights_compute_the_same(folder: Path, model: Pi3) -> None:
    images = torch.rand(1, 2, 3, 28, 28)
    for source in (folder, folder / "model.safetensors", str(folder)):
        assert torch.equal(load_pi3(source)(images).points, model(images).points)


def test_a_cast_leaves_the_heads_in_float32(folder: Path) -> None:
    loaded = load_pi3(folder, dtype=torch.bfloat16)
    assert loaded.decoder[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert loaded.camera_head.fc_t.weight.dtype == loaded.image_mean.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_pi3x_is_recognised_and_loads_without_its_conditions(model_x: Pi3X, tmp_path: Path) -> None:
    path = save(model_x, tmp_path / "x.safetensors")
    assert isinstance(load_pi3(path), Pi3X)
    lean = load_pi3(tmp_path, multimodal=False)
    assert not hasattr(lean, "depth_encoder")


def test_names_without_config_are_the_published_dims(model: Pi3, tmp_path: Path) -> None:
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors")
    assert stored_config(tmp_path / "model.safetensors") == Pi3Config()
    with pytest.raises(CheckpointError, match=r"missing: .*encoder\.blocks\.1\..*of another shape"):
        load_pi3(tmp_path)


def test_missing_and_unexpected_names_are_counted(model: Pi3, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    state["decoder.9.colour"] = state.pop("encoder.norm.weight")
    save_file(state, tmp_path / "a.safetensors", metadata={"config": json.dumps(model.config.to_dict())})
    with pytest.raises(CheckpointError, match=r"1 missing: encoder.norm.weight; 1 unexpected: decoder.9.colour"):
        load_pi3(tmp_path)


def test_a_pickle_of_tensors_is_read(model: Pi3, tmp_path: Path) -> None:
    torch.save({"state_dict": model.state_dict()}, tmp_path / "a.pt")
    weights = native_weights(read_weights(tmp_path / "a.pt"), PI3)
    assert torch.equal(weights.read("register_token"), model.register_token)


class Payload:
    """Would touch a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(tmp_path / "touched")))
    torch.save({"a": Payload(tmp_path / "touched")}, tmp_path / "zip.pt")
    for name in ("plain.pt", "zip.pt"):
        with pytest.raises(CheckpointError):
            load_pi3(tmp_path / name)
    assert not (tmp_path / "touched").exists()


def test_a_cut_file_is_damaged(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cut off|damaged"):
        load_pi3(folder)


def test_another_network_is_no_pi3(tmp_path: Path) -> None:
    save_file({"blocks.0.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"is no Pi3: it has 1 tensors, the first are blocks\.0\.weight"):
        load_pi3(tmp_path)


def test_a_strange_config_is_named(model: Pi3, tmp_path: Path) -> None:
    save_file(dict(model.state_dict()), tmp_path / "a.safetensors", metadata={"config": '{"decoder_layers": 3}'})
    with pytest.raises(CheckpointError, match="decoder_layers"):
        load_pi3(tmp_path)


@pytest.mark.parametrize(
    ("source", "words"),
    [("nowhere/at/all", "hub id"), ("missing.safetensors", "hub id"), ("plain", "pi3 or pi3x")],
)
def test_a_source_that_is_nothing_is_named(source: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        find_weights(source)


def test_a_folder_of_several_files_is_ambiguous(tmp_path: Path) -> None:
    for name in "ab":
        save_file({"a": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"2 \.safetensors files"):
        find_weights(tmp_path)


def test_short_names_lead_to_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, file: str, **options: Any) -> str:
        asked.append((repository, file, options["revision"]))
        return str(folder / "model.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    find_weights("pi3x", revision="abc")
    find_weights("someone/else")
    assert asked == [("yyfz233/Pi3X", "model.safetensors", "abc"), ("someone/else", "model.safetensors", None)]


def test_config_of_pi3x_is_not_that_of_pi3(model_x: Pi3X, tmp_path: Path) -> None:
    assert isinstance(stored_config(save(model_x, tmp_path / "x.safetensors")), Pi3XConfig)


def test_the_core_knows_its_weights() -> None:
    result = CliRunner().invoke(wan, ["inspect", str(bundled_weights()), "--json"])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["weights"]
    assert (found["family"], found["missing"], found["unexpected"]) == ("pi3", [], [])
