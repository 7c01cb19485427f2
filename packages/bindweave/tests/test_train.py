"""``bindweave train`` on tiny files in the real layouts: what it learns, writes and refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from safetensors.torch import load_file

from bindweave.cli.infer import infer
from bindweave.cli.train import train

from .conftest import MLLM_DIM
from .subject_clips import write_clips

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("subjects") / "clips", MLLM_DIM)


@pytest.fixture
def words(files: Path, clips: Path) -> list[str | Path]:
    """A command line of a short run that begins with the release."""
    return [
        "--ckpt-dir", files / "wan", "--dit", files / "release", "--data", clips, "--output", "run", "--size", "32*48",
        "--num-frames", "5", "--steps", "2", "--held-out", "0", "--device", "cpu", "--quiet",
    ]  # fmt: skip


def plain(words: list[str | Path]) -> list[str | Path]:
    """The same from Wan's own weights, which have no connector."""
    place = words.index("--dit")
    return [*words[:place], *words[place + 2 :]]


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_all_weights_are_trained_and_infer_reads_them(run: Run, words: list[str | Path], flags: list[str]) -> None:
    done = run(train, *words)
    assert done.exit_code == 0, done.output
    model = Path("run/model")
    assert not (model / "connector.safetensors").exists()
    place = flags.index("--dit")
    own = [*flags[:place], *flags[place + 2 :]]
    own[own.index("--ckpt-dir") + 1] = str(model)
    made = run(infer, *own, "--output", "trained.gif")
    before = run(infer, *flags, "--output", "before.gif")
    assert (made.exit_code, before.exit_code) == (0, 0), made.output
    assert Path("trained.gif").read_bytes() != Path("before.gif").read_bytes()


def test_a_lora_also_changes_the_connector(run: Run, words: list[str | Path], flags: list[str]) -> None:
    done = run(train, *words, "--lora-rank", "2", "--lr", "0.01")
    assert done.exit_code == 0, done.output
    assert not Path("run/connector.safetensors").exists()
    names = load_file("run/lora.safetensors")
    assert any("text_projector.linear_1" in name for name in names)
    made = run(infer, *flags, "--lora", "run/lora.safetensors", "--output", "one.gif")
    before = run(infer, *flags, "--output", "two.gif")
    assert (made.exit_code, before.exit_code) == (0, 0), made.output
    assert Path("one.gif").read_bytes() != Path("two.gif").read_bytes()


def test_plain_wan_gets_a_connector_beside_a_lora(run: Run, words: list[str | Path], flags: list[str]) -> None:
    done = run(train, *plain(words), "--lora-rank", "2", "--lr", "0.01")
    assert done.exit_code == 0, done.output
    connector = load_file("run/connector.safetensors")
    assert {name: list(each.shape)[-1] for name, each in connector.items() if "weight" in name} == {
        "text_projector.linear_1.weight": MLLM_DIM, "text_projector.linear_2.weight": 32,
    }  # fmt: skip
    assert not any("text_projector" in name for name in load_file("run/lora.safetensors"))
    place = flags.index("--dit")
    own = [*flags[:place], *flags[place + 2 :]]
    made = run(infer, *own, "--lora", "run/lora.safetensors", "--connector", "run/connector.safetensors")
    assert made.exit_code == 0, made.output
