"""Parts of a model: taken from elsewhere, read by another library, recorded."""

import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from wan_core.checkpoints import Family, Part
from wan_core.cli import wan
from wan_core.cli.command_line import command_line
from wan_core.errors import CheckpointError, RequestError
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.media import read_provenance
from wan_core.presets import get_preset
from wan_core.tasks import Components, GenerationRequest, TaskInputs, TextToVideo

TINY = Path(str(files("wan_core") / "weights" / "tiny"))
FAST = ["--prompt", "a red circle", "--frame-num", "5", "--sample-steps", "1", "--base-seed", "1"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(wan, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tiny weights without tokenizer and VAE, which lie elsewhere."""
    target = tmp_path / "checkpoint"
    shutil.copytree(TINY, target)
    (target / "tokenizer").rename(tmp_path / "words")
    (target / "vae.safetensors").rename(tmp_path / "other.safetensors")
    return target


def test_every_part_can_come_from_elsewhere_and_the_record_says_so(
    run: Callable[..., Result], folder: Path, tmp_path: Path
) -> None:
    parts = ["--part", f"tokenizer={tmp_path / 'words'}", "--part", f"vae={tmp_path / 'other.safetensors'}"]
    result = run("generate", "tiny-t2v", "--ckpt-dir", folder, *FAST, *parts, "--output", "v.mp4")
    assert result.exit_code == 0, result.output
    provenance = read_provenance(tmp_path / "v.mp4")
    assert provenance.record["parts"] == {"tokenizer": "words", "vae": "other.safetensors"}
    words = shlex.split(command_line(provenance))
    assert words[-4:] == ["--part", "tokenizer=words", "--part", "vae=other.safetensors"]


@pytest.mark.parametrize(
    ("task", "part", "code", "words"),
    [
        ("tiny-t2v", "vae=none.safetensors", 3, "none.safetensors does not exist"),
        ("tiny-t2v", "brush=a", 2, "it has dit, vae, text_encoder, tokenizer"),
        ("tiny-moe", "dit=a", 2, "two networks"),
        ("tiny-t2v", "vae", 2, "NAME=PATH"),
        ("tiny-poze", "pi3=none.safetensors", 3, "none.safetensors"),
    ],
)
def test_a_part_that_cannot_be_is_refused(
    run: Callable[..., Result], tmp_path: Path, task: str, part: str, code: int, words: str
) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    image = ["--image", "a.png"] if task == "tiny-poze" else []
    result = run("generate", task, *image, *FAST, "--part", part, "--output", "v.mp4")
    assert result.exit_code == code, result.output
    assert words in " ".join(result.output.split())
    assert not (tmp_path / "v.mp4").exists()


def test_a_part_that_another_library_reads_is_placed_like_the_others(tmp_path: Path) -> None:
    (tmp_path / "numbers.txt").write_text("1 2 3")
    opened: list[tuple[Path, torch.dtype, torch.device]] = []

    def read(path: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
        opened.append((path, dtype, device))
        numbers = [float(word) for word in path.read_text().split()]
        module = nn.Module()
        module.register_buffer("numbers", torch.tensor(numbers, dtype=dtype, device=device))
        return module

    family = Family(name="numbers", title="the numbers", load=read, half_dtype="float32")
    part = Part(name="numbers", family=family, file=str(tmp_path / "numbers.txt"))
    preset = get_preset("tiny-t2v")
    preset = replace(preset, parts=(*preset.parts, part))
    components = load_pipeline(preset, options=RuntimeOptions(device="cpu", dtype="bfloat16")).components
    assert opened == []  # read when it is first used
    with components.part("numbers").active() as module:
        assert module.numbers.tolist() == [1, 2, 3]
    assert opened == [(tmp_path / "numbers.txt", torch.float32, torch.device("cpu"))]
    lost = replace(preset, parts=(*preset.parts[:-1], replace(part, file=str(tmp_path / "none.txt"))))
    with pytest.raises(CheckpointError, match="lacks the numbers"):
        load_pipeline(lost, options=RuntimeOptions(device="cpu"))
    with pytest.raises(RequestError, match="no part 'brush'"):
        load_pipeline(preset, options=RuntimeOptions(device="cpu", parts={"brush": "a"}))


class NeedsTwoVAEs(TextToVideo[Any]):
    """A task that needs the optional part for requests with a negative prompt."""

    def check(self, inputs: TaskInputs[Any], components: Components) -> TaskInputs[Any]:
        if inputs.settings.negative_prompt and "second" not in components.parts:
            raise RequestError("a negative prompt needs the second part")
        return inputs


def test_an_optional_part_may_be_absent_until_a_request_needs_it() -> None:
    plain = get_preset("tiny-t2v")
    second = replace(plain.part("vae"), name="second", file="nowhere.safetensors", is_optional=True)
    preset = replace(plain, task=NeedsTwoVAEs(), parts=(*plain.parts, second))
    pipeline = load_pipeline(preset)
    assert "second" not in pipeline.components.parts
    request = GenerationRequest(prompt="a red circle")
    pipeline.check(pipeline.plan(request))
    with pytest.raises(RequestError, match="needs the second part"):
        next(pipeline.stream(pipeline.plan(replace(request, negative_prompt="blue"))))
    given = load_pipeline(preset, options=RuntimeOptions(parts={"second": TINY / "vae.safetensors"}))
    given.check(given.plan(replace(request, negative_prompt="blue")))
    assert given.components.configs["second"] == plain.vae
    with pytest.raises(CheckpointError, match="vae"):
        load_pipeline(
            replace(preset, parts=(*plain.parts[:1], replace(plain.part("vae"), file="nowhere"), *plain.parts[2:]))
        )


def test_what_a_part_made_is_kept_for_the_same_key_only() -> None:
    components = load_pipeline("tiny-t2v", options=RuntimeOptions(device="cpu")).components
    made: list[str] = []

    def make(name: str) -> str:
        made.append(name)
        return name

    found = [components.once("part", key, lambda key=key: make(key)) for key in ("a", "a", "b", "a")]
    assert found == ["a", "a", "b", "a"]
    assert made == ["a", "b", "a"]
    other = components.with_part("vae", components.vae)
    assert other.once("part", "a", lambda: make("new")) == "new"
