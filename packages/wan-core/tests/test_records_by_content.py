"""A record names files by content, and tells what decided about an output that is there."""

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from wan_core import cli
from wan_core.cli.generate import build_command, run_generate
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.media import Provenance, read_provenance
from wan_core.presets import get_preset
from wan_core.tasks import TI2VRequest, request
from wan_core.tasks.request import content_hashes

TINY = Path(__file__).resolve().parents[1] / "src/wan_core/weights/tiny"


def of(record: dict[str, object], **settings: object) -> Provenance:
    return Provenance.of(preset="tiny-ti2v", settings={"prompt": "a", "seed": 7, "image": "a.png", **settings},
                         record=record)  # fmt: skip


def test_another_prompt_picture_or_network_is_a_difference() -> None:
    first = of({"dtype": "float32", "inputs": {"image": "1"}, "weights": {"dit": "2", "vae": "3"}})
    changed = of({"dtype": "bfloat16", "inputs": {"image": "x"}, "weights": {"dit": "y", "vae": "3"}}, prompt="b")
    assert first.differences(changed) == ["dtype", "image", "prompt", "weights of dit"]
    assert first.differences(Provenance.from_json(first.to_json())) == []


def test_names_of_files_and_the_machine_are_none() -> None:
    first = of({"device": "cuda", "torch": "1", "checkpoint": "x", "inputs": {"image": "1"}})
    other = of({"device": "cpu", "torch": "2", "attention": "sdpa", "inputs": {"image": "1"}}, image="b.png")
    assert first.differences(other) == []


def test_a_strangers_record_is_compared_without_trust() -> None:
    text = '{"format": "wan-core/1", "preset": "p", "settings": {}, "record": {"inputs": 3, "weights": ["x"]}}'
    assert "preset" in Provenance.from_json(text).differences(of({}))


def test_files_of_a_request_are_named_by_content(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    first, second = (content_hashes(TI2VRequest(prompt="p", image=tmp_path / f"{name}.png")) for name in "ab")
    assert first == second
    assert len(str(first["image"])) == 16
    assert content_hashes(TI2VRequest(prompt="p")) == {}


def test_weights_are_named_by_content(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "copy")
    records = []
    for folder in (TINY, tmp_path / "copy"):
        pipeline = load_pipeline("tiny-t2v", folder, RuntimeOptions(device="cpu"))
        records.append(pipeline.provenance(pipeline.plan(pipeline.preset.task.request_type(prompt="p"))))
    assert set(records[0].record["weights"]) == {"dit", "vae", "text_encoder"}
    assert records[0].differences(records[1]) == []


def test_what_is_there_as_it_would_be_made_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[Path, str]] = []

    def is_made(path: Path, wanted: Provenance) -> bool:
        asked.append((path, str(wanted.settings["prompt"])))
        return path.is_file() and read_provenance(path).differences(wanted) == []

    command = build_command(
        get_preset("tiny-t2v"), run=lambda preset, values: run_generate(preset, values, is_made=is_made)
    )
    words = ["--sample-steps", "1", "--frame-num", "5", "--seed", "1", "--device", "cpu", "-o", "v.gif", "--quiet"]
    times = []
    for prompt in ("one", "one", "two"):
        assert CliRunner().invoke(command, ["--prompt", prompt, *words]).exit_code == 0
        times.append(Path("v.gif").stat().st_mtime_ns)
    assert asked == [(Path("v.gif"), prompt) for prompt in ("one", "one", "two")]
    assert times[0] == times[1] < times[2]


def test_files_of_a_request_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("a.png")
    hashed: list[str] = []
    hash_file = request.hash_file

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(request, "hash_file", counted)
    command = build_command(
        get_preset("tiny-ti2v"),
        run=lambda preset, values: run_generate(preset, values, is_made=lambda path, wanted: "inputs" in values),
    )
    words = ["--image", "a.png", "--prompt", "one", "--sample-steps", "1", "--frame-num", "1", "-o", "v.gif", "--quiet"]
    assert CliRunner().invoke(command, words).exit_code == 0
    assert hashed == ["a.png"]  # to see whether it is made, and for its record


def test_each_process_of_torchrun_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.own_device(None) is None
    torchrun = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (cli.own_device(None), cli.own_device("cpu")) == ("cuda:1", "cpu")
