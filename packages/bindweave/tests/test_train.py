"""``bindweave train`` on tiny files in the real layouts: what it learns, writes and refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

from bindweave.cli.infer import infer
from bindweave.cli.train import train
from bindweave.dit import TextProjector
from bindweave.presets import BINDWEAVE_14B
from bindweave.subject_training import connector_companion, subject_inputs, uncaptioned
from bindweave.task import SubjectToVideo
from wan_core.loading import RuntimeOptions, load_pipeline

from .conftest import MLLM_DIM
from .subject_clips import square, write_clips, write_states

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_loss_falls_on_one_clip(run: Run, words: list[str | Path], tmp_path: Path) -> None:
    own = [*words]
    own[own.index("--data") + 1] = write_clips(tmp_path / "one", MLLM_DIM, count=1)
    own[own.index("--steps") + 1] = "60"
    done = run(train, *own, "--lr", "0.003", "--log-every", "10", "--loss-weighting", "none", "--no-checkpointing")
    assert done.exit_code == 0, done.output
    found = losses(Path("run"))
    assert found[-1] < 0.7 * found[0]


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.slow
def test_a_run_that_goes_on_ends_where_an_uninterrupted_one_does(kind: str, run: Run, words: list[str | Path]) -> None:
    given = [*plain(words), "--batch-size", "2", "--lr", "0.01", *(["--lora-rank", "2"] if kind == "lora" else [])]
    steps, output = given.index("--steps") + 1, given.index("--output") + 1
    for folder, count in (("whole", "3"), ("parts", "2"), ("parts", "3")):
        given[steps], given[output] = count, folder
        done = run(train, *given)
        assert done.exit_code == 0, done.output
    names = ["lora.safetensors", "connector.safetensors"]
    if kind == "full":
        names = ["model/connector.safetensors", "model/diffusion_pytorch_model.safetensors"]
    for name in names:
        first, second = (load_file(Path(folder) / name) for folder in ("whole", "parts"))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[each], second[each]) for each in first)


@pytest.mark.slow
def test_a_whole_model_with_a_new_connector_is_one_folder(run: Run, words: list[str | Path], flags: list[str]) -> None:
    done = run(train, *plain(words))
    assert done.exit_code == 0, done.output
    place = flags.index("--dit")
    own = [*flags[:place], *flags[place + 2 :]]
    own[own.index("--ckpt-dir") + 1] = "run/model"
    made = run(infer, *own)
    assert made.exit_code == 0, made.output


def test_a_connector_may_be_trained_alone_and_go_on(run: Run, words: list[str | Path]) -> None:
    first = run(train, *plain(words), "--network", "connector", "--lr", "0.01")
    assert first.exit_code == 0, first.output
    words[words.index("--output") + 1] = "again"
    more = [*plain(words), "--network", "connector", "--connector", "run/connector.safetensors", "--lr", "0"]
    refused = run(train, *more)
    assert refused.exit_code == 2  # a rate of 0
    more[-1] = "1e-9"
    done = run(train, *more)
    assert done.exit_code == 0, done.output
    before, after = (load_file(f"{folder}/connector.safetensors") for folder in ("run", "again"))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_a_dry_run_tells_of_the_new_connector_and_writes_nothing(run: Run, words: list[str | Path]) -> None:
    done = run(train, *plain(words), "--lora-rank", "2", "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert plan["trains"] == "a LoRA of rank 2, alpha 2 and the connector"
    assert plan["clip"].endswith(f"{(2 + 4) * 6} tokens")  # two latent frames and four references, of 2 x 3
    assert any(f"a new connector for states of width {MLLM_DIM}" in note for note in plan["notes"])
    assert not Path("run").exists()


@pytest.mark.slow
def test_samples_are_made_at_validations(run: Run, words: list[str | Path], files: Path, tmp_path: Path) -> None:
    sample = {
        "img_paths": ["a.png"], "prompt": "a cat", "hidden_states_path": str(files / "p.safetensors"),
        "hidden_states_path_negative": str(files / "n.pt"),
    }  # fmt: skip
    (tmp_path / "samples.json").write_text(json.dumps({"one": sample}))
    given = [*plain(words), "--lora-rank", "2", "--validation-samples", "samples.json", "--base-img-dir", files]
    given[given.index("--steps") + 1] = "1"
    done = run(train, *given)
    assert done.exit_code == 0, done.output
    assert Path("run/validation/step-00000001.png").is_file()


def evil(data: Path) -> None:
    (data / "1.states.safetensors").unlink()
    torch.save({"x": Path("y")}, data / "1.states.pt")


BAD: dict[str, tuple[Callable[[Path], object], list[str], int, str]] = {
    "no states": (lambda data: (data / "0.states.safetensors").unlink(), [], 2, "0.mp4 has no states"),
    "no references": (lambda data: (data / "0.references.png").unlink(), [], 2, "0.mp4 has no references"),
    "no pictures": (lambda data: [each.unlink() for each in (data / "1.references").iterdir()], [], 2, "no picture of"),
    "a mask of another size": (
        lambda data: square((8, 8), (0, 0, 8, 8)).save(data / "1.references/b.mask.png"), [], 4, "a mask has the same",
    ),
    "states of another width": (
        lambda data: write_states(data / "0.states.safetensors", 3, 50, "subject 0 walks"), [], 3,
        f"of width 50, this network takes {MLLM_DIM}",
    ),
    "empty states of another width": (
        lambda data: write_states(data / "1.states_empty.safetensors", 3, 50, ""), [], 3, "extract both again",
    ),
    "states of another caption": (
        lambda data: (data / "1.txt").write_text("another"), [], 2, "states of another caption",
    ),
    "states that run code": (evil, [], 3, "could run code"),
    "states cut off": (
        lambda data: (data / "1.states.safetensors").write_bytes(b"\x08"), [], 3, "1.states.safetensors",
    ),
    "states that are not finite": (
        lambda data: save_file({"x": torch.full((1, 2, MLLM_DIM), torch.nan)}, data / "1.states.safetensors"), [], 3,
        "not finite",
    ),
    "two kinds of states": (
        lambda data: torch.save(torch.zeros(1, 2, MLLM_DIM), data / "1.states.pt"), [], 2, "two of one name",
    ),
    "a picture that is none": (lambda data: (data / "0.references.png").write_text("x"), [], 4, "no picture that can"),
    "scores that are none": (lambda data: (data / "1.references/scores.json").write_text("x"), [], 2, "scores.json"),
    "another model": (lambda data: None, ["--model", "tiny-t2v"], 2, "no model of BindWeave"),
    "no data": (lambda data: [each.unlink() for each in data.iterdir() if each.is_file()], [], 2, "has no examples"),
    "a folder of pictures alone": (lambda data: None, ["--base-img-dir", "x"], 2, "belongs to --validation-samples"),
    "samples that are not there": (lambda data: None, ["--validation-samples", "gone.json"], 2, "gone.json"),
    "no cache": (lambda data: None, ["--cache", "gone"], 2, "gone"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    kind: str, run: Run, words: list[str | Path], clips: Path, tmp_path: Path
) -> None:
    spoil, more, code, said = BAD[kind]
    spoil(shutil.copytree(clips, tmp_path / "data"))
    given = [*words]
    given[given.index("--data") + 1] = "data"
    done = run(train, *given, *more)
    assert done.exit_code == code, done.output
    assert said in done.output
    assert "Traceback" not in done.output
    assert not Path("run").exists()


def test_a_new_connector_is_drawn_as_torch_draws_layers(files: Path) -> None:
    pipeline = load_pipeline(BINDWEAVE_14B, files / "wan", RuntimeOptions(device="cpu"))
    torch.manual_seed(4)
    (companion,) = connector_companion(pipeline.components, MLLM_DIM).values()
    torch.manual_seed(4)
    wanted = TextProjector(MLLM_DIM, 32)
    made = companion.network.state_dict()
    assert all(torch.equal(made[f"text_projector.{name}"], each) for name, each in wanted.state_dict().items())
    assert all(bool(each.abs().sum() > 0) for each in made.values())
    own = load_pipeline(BINDWEAVE_14B, files / "wan", RuntimeOptions(device="cpu", parts={"dit": files / "release"}))
    assert connector_companion(own.components, MLLM_DIM) == {}


def test_references_stand_in_front_and_states_go_through_the_connector() -> None:
    batch = {"latents": torch.zeros(1, 2, 3, 2, 2), "channels": torch.arange(7.0).view(1, 1, 7, 1, 1),
             "image": torch.ones(1, 4, 5), "states": torch.ones(1, 6, 7)}  # fmt: skip
    inputs = subject_inputs(batch, torch.zeros(1, 2, 3), {"connector": torch.nn.Linear(7, 3)})
    assert inputs.references is not None
    assert inputs.channel_concat is not None
    assert inputs.references.flatten().tolist() == [0, 1, 2, 3]
    assert inputs.channel_concat.flatten().tolist() == [4, 5, 6]
    assert inputs.hidden_states.shape == (1, 6, 3)
    assert torch.equal(subject_inputs(batch, torch.zeros(1, 2, 3), {}).hidden_states, batch["states"])


def test_without_caption_the_states_are_those_of_no_prompt() -> None:
    row = {"states": torch.ones(4, 2), "empty_states": torch.full((3, 2), 5.0)}
    assert torch.equal(uncaptioned(row)["states"], row["empty_states"])
    assert torch.equal(uncaptioned({"states": torch.ones(4, 2)})["states"], torch.zeros(4, 2))
    assert "empty_states" not in SubjectToVideo().unpack_example(row)
