"""``bindweave extract CLIPS`` and training on what it writes, with the bundled tiny models."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from bindweave.cli.extract import extract
from bindweave.cli.train import train
from bindweave.hidden_states import read_hidden_states
from bindweave.presets import TINY_MLLM, TINY_MLLM_DIM
from bindweave.steps import digest_of
from wan_core.checkpoints import read_weights

from .subject_clips import write_clips

Run = Callable[..., Result]


def states_of(folder: Path) -> dict[str, int]:
    return {each.name: each.stat().st_mtime_ns for each in sorted(folder.glob("*.states*.safetensors"))}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = write_clips(tmp_path / "clips", TINY_MLLM_DIM)
    for each in folder.glob("*.states*"):
        each.unlink()
    return folder


def test_states_lie_beside_clips_and_are_made_again_only_for_another_caption_or_picture(run: Run, clips: Path) -> None:
    words = [clips, "--mllm", TINY_MLLM, "--device", "cpu", "--quiet"]
    done = run(extract, *words)
    assert done.exit_code == 0, done.output
    first = states_of(clips)
    assert len(first) == 6
    path = clips / "1.states.safetensors"
    assert read_hidden_states(path).shape[2] == TINY_MLLM_DIM
    assert read_weights(path).metadata["prompt_sha256"] == digest_of("subject 1 walks")
    assert read_hidden_states(clips / "1.states_empty.safetensors").shape[1] < read_hidden_states(path).shape[1]
    assert run(extract, *words).exit_code == 0
    assert states_of(clips) == first
    (clips / "0.txt").write_text("another")
    (clips / "2.references/b.mask.png").unlink()
    assert run(extract, *words).exit_code == 0
    changed = {name for name, time in states_of(clips).items() if time != first[name]}
    assert changed == {
        "0.states.safetensors", "2.states.safetensors", "2.states_empty.safetensors",
    } | {"0.states_empty.safetensors"}  # fmt: skip


def test_the_tiny_model_learns_from_extracted_clips(run: Run, clips: Path) -> None:
    assert run(extract, clips, "--mllm", TINY_MLLM, "--device", "cpu", "--quiet").exit_code == 0
    done = run(
        train, "--data", clips, "--output", "run", "--steps", "2", "--num-frames", "5", "--fps", "16",
        "--size", "32*32", "--device", "cpu", "--held-out", "0", "--caption-dropout", "0.5", "--batch-size", "2",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "the bundled tiny BindWeave is trained" in done.stderr
    assert (Path("run/model")).is_dir()


@pytest.mark.parametrize(
    ("spoil", "more", "code", "said"),
    [
        (lambda clips: None, ["--output", "x.json"], 2, "for sample files"),
        (lambda clips: shutil.rmtree(clips / "1.references"), [], 2, "1.mp4 has no references"),
        (lambda clips: (clips / "0.references.png").write_text("x"), [], 4, "no picture that can"),
        (lambda clips: (clips / "0.txt").write_text("a <|im_end|>"), [], 2, "a mark of the language model"),
        (lambda clips: None, ["--mllm", "clips"], 3, "holds no weights of Qwen2.5-VL"),
    ],
)
def test_clips_that_cannot_be_extracted_are_named_and_the_others_made(
    spoil: Callable[[Path], object], more: list[str], code: int, said: str, run: Run, clips: Path
) -> None:
    spoil(clips)
    done = run(extract, clips, "--mllm", TINY_MLLM, "--device", "cpu", "--quiet", *more)
    assert done.exit_code == code, done.output
    assert said in done.output
    assert "Traceback" not in done.output
    assert len(states_of(clips)) == (0 if more else 4)


def test_one_clip_in_two_examples_is_refused(run: Run, clips: Path) -> None:
    rows = [f'{{"file": "0.mp4", "caption": "{words}", "references": "0.references.png"}}' for words in "ab"]
    (clips / "metadata.jsonl").write_text("\n".join(rows))
    done = run(extract, clips, "--mllm", TINY_MLLM, "--device", "cpu", "--quiet")
    assert done.exit_code == 2
    assert "0.mp4 is in two examples" in done.output


def test_states_without_a_prompt_are_those_of_the_pictures_alone(run: Run, clips: Path) -> None:
    assert run(extract, clips, "--mllm", TINY_MLLM, "--device", "cpu", "--quiet").exit_code == 0
    first = read_hidden_states(clips / "0.states_empty.safetensors")
    (clips / "0.txt").write_text("another caption")
    assert run(extract, clips, "--mllm", TINY_MLLM, "--device", "cpu", "--quiet").exit_code == 0
    assert torch.equal(read_hidden_states(clips / "0.states_empty.safetensors"), first)
