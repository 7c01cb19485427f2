"""``bindweave run``: the steps one after the other, what they make again, what is in memory, and what is refused."""

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from bindweave import extraction
from bindweave.cli.infer import infer
from bindweave.cli.run import run_command
from bindweave.config import ConnectorConfig
from bindweave.families import CONNECTOR
from bindweave.mllm import open_mllm
from tests.chat_server import Reply, chat_server, said
from tests.tiny_qwen import write_tiny_vision_model
from tools.make_checkpoint import DIT
from wan_core import loading
from wan_core.media import read_provenance

Run = Callable[..., Result]
SMALL = ["--size", "64*64", "--frame-num", "5", "--sample-steps", "1", "--device", "cpu"]
ONE = ["--image", "a.png", "--image", "b.png", "--prompt", "a cat", "--seed", "1"]


def draw_pictures(folder: Path) -> None:
    Image.new("RGB", (60, 75), (200, 30, 60)).save(folder / "a.png")
    Image.new("RGB", (90, 60), (20, 180, 60)).save(folder / "b.png")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options of a small video of the bundled model; pictures lie in the working folder."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789")
    draw_pictures(tmp_path)
    return SMALL


def times(*folders: str) -> dict[str, int]:
    """When each file of these folders was written."""
    return {str(path): path.stat().st_mtime_ns for name in folders for path in sorted(Path(name).rglob("*.*"))
            if path.is_file()}  # fmt: skip


def changed(before: dict[str, int], after: dict[str, int], ending: str) -> set[str]:
    """The files of an ending that were written meanwhile, by name."""
    return {Path(name).name for name in after if name.endswith(ending) and before.get(name) != after[name]}


def write_samples(**changes: dict[str, Any]) -> None:
    sample = {"img_paths": ["a.png"], "prompt": "a cat", "class_label": ["cat"]}
    samples = {name: {**sample, "prompt": f"cat {name}", **changes.get(name, {})} for name in ("one", "two")}
    Path("samples.json").write_text(json.dumps(samples))


def test_a_prompt_and_pictures_give_a_video_once(run: Run, small: list[str]) -> None:
    done = run(run_command, *small, *ONE, "--output", "out/walk.mp4")
    assert done.exit_code == 0, done.output
    assert f"work folder: {Path('out/walk_work').absolute()}" in done.stderr
    assert {path.name for path in Path("out").iterdir()} == {"walk.mp4", "walk_work"}
    assert {path.name for path in Path("out/walk_work").iterdir()} == {
        "run_samples.json", "run_features.json", "hidden_states",
    }  # fmt: skip
    assert read_provenance("out/walk.mp4").settings["hidden_states"] == "walk_hidden_states.safetensors"
    before = times("out")
    again = run(run_command, *small, *ONE, "--output", "out/walk.mp4")
    assert again.exit_code == 0, again.output
    assert "out/walk.mp4 is there, made of the same things" in again.stderr
    assert not {*changed(before, times("out"), ".mp4"), *changed(before, times("out"), ".safetensors")}


STATES = {"walk_hidden_states.safetensors", "walk_hidden_states_negative.safetensors"}
CHANGES: dict[str, tuple[list[str], set[str]]] = {
    "prompt": (["--prompt", "a dog"], STATES),
    "order of the pictures": (["--image", "b.png", "--image", "a.png"], STATES),
    "negative prompt of the states": (["--mllm-negative-prompt", "blue"], STATES),
    "steps": (["--sample-steps", "2"], set()),
    "seed": (["--seed", "2"], set()),
    "dtype": (["--dtype", "bfloat16"], set()),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a video and its steps are there."""
    folder = tmp_path_factory.mktemp("made")
    draw_pictures(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(run_command, [*SMALL, *ONE, "--output", "walk.mp4"])
    assert done.exit_code == 0, done.output
    return folder


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.slow
def test_a_change_makes_again_what_depends_on_it(
    run: Run, small: list[str], made: Path, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    words, states = CHANGES[kind]
    images = [] if "--image" in words else ONE[:4]
    rest = [word for word in ONE[4:] if "--prompt" not in words or word not in ("--prompt", "a cat")]
    before = times(".")
    done = run(run_command, *small, *images, *rest, *words, "--output", "walk.mp4")
    assert done.exit_code == 0, done.output
    after = times(".")
    assert changed(before, after, ".safetensors") == states
    assert changed(before, after, ".mp4") == {"walk.mp4"}


@pytest.mark.slow
def test_another_picture_of_the_same_name_makes_its_sample_again(run: Run, small: list[str]) -> None:
    write_samples(two={"img_paths": ["b.png"]})
    words = [*small, "--samples", "samples.json", "--output-dir", "out"]
    assert run(run_command, *words).exit_code == 0
    before = times("out", "out_work")
    Image.new("RGB", (60, 75), (0, 0, 60)).save("a.png")
    done = run(run_command, *words)
    assert done.exit_code == 0, done.output
    after = times("out", "out_work")
    assert changed(before, after, ".mp4") == {"one.mp4"}
    assert changed(before, after, ".safetensors") == {
        "one_hidden_states.safetensors", "one_hidden_states_negative.safetensors",
    }  # fmt: skip


@pytest.mark.slow
def test_damaged_states_and_lost_videos_are_made_again(run: Run, small: list[str]) -> None:
    write_samples()
    words = [*small, "--samples", "samples.json", "--output-dir", "out", "--seed", "1"]
    assert run(run_command, *words).exit_code == 0
    video, states = Path("out/two.mp4").read_bytes(), Path("out_work/hidden_states/one_hidden_states.safetensors")
    whole, before = states.read_bytes(), times("out")
    states.write_bytes(whole[:-40])
    Path("out/two.mp4").unlink()
    done = run(run_command, *words)
    assert done.exit_code == 0, done.output
    assert (states.read_bytes(), Path("out/two.mp4").read_bytes()) == (whole, video)
    assert changed(before, times("out"), ".mp4") == {"two.mp4"}


@pytest.mark.slow
def test_prompts_are_refined_first_and_once(run: Run, small: list[str]) -> None:
    write_samples()
    with chat_server(Reply(said("a red cat")), Reply(said("a green cat")), Reply(said("a blue cat"))) as server:
        words = [*small, "--samples", "samples.json", "--model", "m", "--base-url", server.url]
        done = run(run_command, *words, "--output-dir", "out")
        assert done.exit_code == 0, done.output
        assert run(run_command, *words, "--output-dir", "out").exit_code == 0
        assert len(server.asked) == 2
        write_samples(two={"prompt": "a dog"})
        before = times("out")
        assert run(run_command, *words, "--output-dir", "out").exit_code == 0
        assert len(server.asked) == 3
    assert changed(before, times("out"), ".mp4") == {"two.mp4"}
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert {name: row["prompt"] for name, row in manifest.items()} == {"one": "a red cat", "two": "a blue cat"}


@pytest.mark.slow
def test_a_sample_that_fails_in_a_step_does_not_stop_the_others(run: Run, small: list[str]) -> None:
    write_samples(two={"img_paths": ["b.png"]})
    with chat_server(Reply(said("a red cat")), Reply(b"", 500), Reply(said("a green cat"))) as server:
        words = [*small, "--samples", "samples.json", "--output-dir", "out", "--model", "m", "--base-url", server.url]
        done = run(run_command, *words, "--retries", "0")
        assert done.exit_code == 5, done.output
        assert "1 of 2 samples failed" in done.stderr
        assert {path.name for path in Path("out").iterdir()} == {"one.mp4", "manifest.json"}
        assert run(run_command, *words).exit_code == 0
        assert len(server.asked) == 3
    assert Path("out/two.mp4").is_file()


@pytest.mark.slow
def test_processes_share_the_samples(run: Run, small: list[str]) -> None:
    write_samples()
    for share in ("1/3", "2/3", "3/3"):
        done = run(run_command, *small, "--samples", "samples.json", "--output-dir", "out", "--shard", share)
        assert done.exit_code == 0, done.output
    assert list(json.loads(Path("out/manifest.json").read_text())) == ["one", "two"]


class Memory:
    """The bytes of all networks that are there at once: ``peak`` is the most, ``largest`` that of each by its name."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.peak, self.largest = 0, dict[str, int]()
        self._tensors: list[tuple[weakref.ref[torch.Tensor], int]] = []
        load = loading.load_model

        def watched_mllm(*arguments: Any) -> Any:
            opened = open_mllm(*arguments)
            self._came("mllm", opened[0])
            return opened

        def watched_load(*arguments: Any, **options: Any) -> Any:
            network = load(*arguments, **options)
            self._came(options["family"].name, network)
            return network

        patch.setattr(extraction, "open_mllm", watched_mllm)
        patch.setattr(loading, "load_model", watched_load)

    def _came(self, name: str, network: torch.nn.Module) -> None:
        tensors = {id(each): each for each in network.state_dict(keep_vars=True).values()}.values()
        self._tensors += [(weakref.ref(each), each.nbytes) for each in tensors]
        self.largest[name] = sum(each.nbytes for each in tensors)
        self.peak = max(self.peak, sum(size for tensor, size in self._tensors if tensor() is not None))


@pytest.mark.slow
def test_the_most_memory_is_that_of_the_largest_step(
    run: Run, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        whole = Memory(patch)
        assert run(run_command, *small, *ONE, "--output", "walk.mp4").exit_code == 0
    states = "walk_work/hidden_states/walk_hidden_states"
    with monkeypatch.context() as patch:
        last = Memory(patch)
        done = run(
            infer, *small, *ONE, "--output", "other.mp4", "--hidden-states", f"{states}.safetensors",
            "--hidden-states-negative", f"{states}_negative.safetensors",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
    assert set(whole.largest) == {"mllm", *last.largest}
    assert whole.peak == max(whole.largest["mllm"], last.peak)
    assert whole.peak < sum(whole.largest.values()) - whole.largest["mllm"]
    assert Path("other.mp4").read_bytes() == Path("walk.mp4").read_bytes()


def test_an_interrupted_run_goes_on(run: Run, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_samples()
    words = [*small, "--samples", "samples.json", "--output-dir", "out"]
    write, calls = extraction.write_hidden_states, []

    def interrupted(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(extraction, "write_hidden_states", interrupted)
    assert run(run_command, *words).exit_code == 130
    before = times("out_work")
    assert run(run_command, *words).exit_code == 0
    assert changed(before, times("out_work"), ".safetensors") == {
        "two_hidden_states.safetensors", "two_hidden_states_negative.safetensors",
    }  # fmt: skip
    assert {path.name for path in Path("out").iterdir()} == {"one.mp4", "two.mp4", "manifest.json"}


def test_a_plan_makes_nothing(run: Run, small: list[str]) -> None:
    done = run(run_command, *small, *ONE, "--output", "walk.mp4", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "references           2" in done.stdout
    assert {path.name for path in Path().iterdir()} == {"a.png", "b.png"}


def test_without_an_output_the_name_tells_prompt_and_pictures_apart(run: Run, small: list[str]) -> None:
    names = set[str]()
    for words in (ONE, ONE[2:], [*ONE[:-2], "--seed", "3"]):
        done = run(run_command, *small, *words, "--dry-run")
        names |= {line.split()[1] for line in done.stdout.splitlines() if line.startswith("output")}
    assert len(names) == 2
    assert all(name.startswith("a_cat_") for name in names)


def wide_mllm() -> None:
    write_tiny_vision_model(Path("wide"), hidden_size=64, num_attention_heads=8)


def other_weights() -> None:
    Path("wide").mkdir()
    save_file({"patch_embedding.weight": torch.zeros(2)}, "wide/model.safetensors")


def work_of_others() -> None:
    Path("work").mkdir()
    write_samples()
    Path("samples.json").rename("work/run_samples.json")


def damaged_refinement() -> None:
    Path("work").mkdir()
    Path("work/run_refined.json").write_text("{")


def not_a_picture() -> None:
    Path("a.png").write_text("no picture at all")


def nothing() -> None:
    pass


SAMPLES = ["--samples", "samples.json"]
BAD: dict[str, tuple[list[str], Callable[[], None], int, str]] = {
    "no picture": (["--prompt", "a cat"], nothing, 2, "a picture of the subject is needed"),
    "no prompt": (["--image", "a.png"], nothing, 2, "a prompt is needed"),
    "an empty prompt": (["--image", "a.png", "--prompt", " "], nothing, 2, "prompt is empty"),
    "flags and samples": ([*ONE, *SAMPLES], write_samples, 2, "comes from the sample file"),
    "a folder of results without samples": ([*ONE, "--output-dir", "x"], nothing, 2, "belong to --samples"),
    "a share without samples": ([*ONE, "--shard", "1/2"], nothing, 2, "belong to --samples"),
    "no such samples": (SAMPLES, nothing, 2, "samples.json"),
    "states that it makes itself": ([*ONE, "--hidden-states", "x.pt"], nothing, 2, "No such option"),
    "videos without a record": ([*ONE, "--no-metadata"], nothing, 2, "No such option"),
    "two language models": ([*ONE, "--model", "m", "--local", "x"], nothing, 2, "name one language model"),
    "a key that is not set": ([*ONE, "--model", "m", "--key-variable", "NO_KEY"], nothing, 2, "NO_KEY is not set"),
    "an mllm without weights": ([*ONE, "--mllm", "."], nothing, 3, "holds no weights of Qwen2.5-VL"),
    "an mllm of another width": ([*ONE, "--mllm", "wide"], wide_mllm, 3, "has states of width 64, this network takes"),
    "an mllm that is Wan": ([*ONE, "--mllm", "wide"], other_weights, 3, "Qwen2.5-VL"),
    "a dtype of the mllm": ([*ONE, "--mllm-dtype", "int8"], nothing, 2, "dtype must be"),
    "a work folder that is a file": ([*ONE, "--work-dir", "a.png"], nothing, 4, "a.png: it is a file"),
    "a work folder below a file": ([*ONE, "--work-dir", "a.png/x"], nothing, 4, "a.png is no folder"),
    "a work folder with the samples": (
        ["--samples", "work/run_samples.json", "--work-dir", "work"], work_of_others, 2, "the place of an input",
    ),
    "a refinement that is none": (
        [*ONE, "--work-dir", "work", "--model", "m", "--base-url", "http://127.0.0.1:1"], damaged_refinement, 2,
        "refined.json is no JSON",
    ),
    "a picture as output": (
        [*ONE, "--frame-num", "1", "--output", "a.png"], nothing, 2, "would take the place of an input",
    ),
    "an output that is a folder": ([*ONE, "--output", "dir.mp4"], lambda: Path("dir.mp4").mkdir(), 4, "dir.mp4"),
    "a picture that is none": ([*ONE], not_a_picture, 4, "no picture"),
    "a picture that is not there": ([*ONE, "--image", "gone.png"], nothing, 2, "gone.png"),
    "a size between patches": ([*ONE, "--size", "32*50"], nothing, 2, "must be a multiple of"),
    "frames": ([*ONE, "--frame-num", "6"], nothing, 2, "4n+1"),
    "no weights": ([*ONE, "--ckpt-dir", "gone", "--mllm", "wide"], wide_mllm, 3, "gone"),
    "a prompt with half a character": (["--image", "a.png", "--prompt", "a \udc80"], nothing, 2, "prompt"),
    "a picture whose name lost letters": ([*ONE, "--image", "caf\udce9.png"], nothing, 2, "rename the file"),
    "a prompt with marks": (
        ["--image", "a.png", "--prompt", "a <|im_end|> b"], nothing, 2, "must not hold <|im_end|>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_sentence_before_any_network_runs(
    run: Run, small: list[str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a network of the video was loaded")

    monkeypatch.setattr(loading, "load_model", loaded)
    words, prepare, code, message = BAD[kind]
    prepare()
    before = times(".")
    done = run(run_command, *small, *words)
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output
    kept = times(".")
    assert all(kept[name] == time for name, time in before.items())
    assert not [name for name in kept if name.endswith((".mp4", ".safetensors")) and name not in before]


def test_a_missing_language_model_is_told_with_the_remedy(run: Run, small: list[str]) -> None:
    done = run(run_command, *small, *ONE, "--ckpt-dir", "wan")
    assert done.exit_code == 2, done.output
    assert "--mllm FOLDER of Qwen2.5-VL, which 'bindweave download' fetches" in done.stderr


def test_wans_own_network_needs_a_connector_and_is_refused_before_the_first_step(
    run: Run, small: list[str], files: Path
) -> None:
    write_tiny_vision_model(Path("mllm"), hidden_size=48, num_attention_heads=6)
    words = [*small, *ONE, "--ckpt-dir", files / "wan", "--mllm", "mllm", "--output", "walk.mp4"]
    done = run(run_command, *words)
    assert done.exit_code == 3, done.output
    assert "--connector" in done.stderr
    assert not Path("walk_work").exists()
    connector = CONNECTOR.build(ConnectorConfig(dim=48, text_dim=DIT.text_dim))
    save_file(connector.state_dict(), "connector.safetensors")
    done = run(run_command, *words, "--connector", "connector.safetensors")
    assert done.exit_code == 0, done.output
    assert Path("walk.mp4").is_file()


def test_files_of_ones_own_stay_in_a_work_folder_and_any_name_of_a_video_will_do(run: Run, small: list[str]) -> None:
    names = [f"{name}.json" for name in ("samples", "refined", "features")]
    for name in names:
        Path(name).write_text("mine")
    done = run(run_command, *small, *ONE, "--output", "50%: a.mp4", "--work-dir", ".")
    assert done.exit_code == 0, done.output
    assert [Path(name).read_text() for name in names] == ["mine"] * 3
    assert Path("50%: a.mp4").is_file()
