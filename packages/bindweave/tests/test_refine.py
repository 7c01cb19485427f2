"""``bindweave refine`` against an endpoint on this machine and a tiny local model."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from bindweave.cli.refine import refine
from bindweave.ledger import Ledger, Share
from bindweave.prompts import INSTRUCTION
from bindweave.refine import REFINED_FROM
from tests.chat_server import ChatServer, Reply, chat_server, said
from tests.tiny_qwen import write_tiny_vision_model

KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, colour in (("red", "red"), ("blue", "blue")):
        Image.new("RGB", (40, 30), colour).save(f"{name}.png")


def sample(prompt: str = "it walks", *pictures: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "img_paths": list(pictures or ("red.png",)), **more}


def write(content: Any, name: str = "in.json") -> None:
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content))


def run(*options: str, source: str = "in.json", output: str = "out.json") -> Result:
    return CliRunner().invoke(refine, [source, "-o", output, "--quiet", *options])


def ask(server: ChatServer, *options: str, **places: str) -> Result:
    return run("--model", "m", "--base-url", server.url, "--retries", "0", *options, **places)


def written(name: str = "out.json") -> dict[str, Any]:
    """What a file has of each sample, without the name of what its prompt was made of."""
    found: dict[str, Any] = json.loads(Path(name).read_text(encoding="utf-8"))
    return {name: {key: value for key, value in each.items() if key != REFINED_FROM} for name, each in found.items()}


def test_prompts_are_refined_into_a_new_file_with_all_else_kept() -> None:
    write({"b": sample("two", "red.png", "blue.png", class_label=["x"], extra={"ü": 1}), "a": sample("one")})
    before = Path("in.json").read_bytes()
    with chat_server(Reply(said(" Ä first ")), Reply(said("second"))) as server:
        result = ask(server, "--seed", "3")
    assert result.exit_code == 0, result.output
    assert written() == {
        "a": {**sample("Ä first"), "prompt_old": "one"},
        "b": {**sample("second", "red.png", "blue.png"), "class_label": ["x"], "extra": {"ü": 1}, "prompt_old": "two"},
    }
    assert list(written()) == ["a", "b"]
    assert '    "a": {\n        "prompt": "Ä first"' in Path("out.json").read_text(encoding="utf-8")
    assert Path("in.json").read_bytes() == before
    assert {path.name for path in Path().iterdir()} == {"in.json", "out.json", "red.png", "blue.png"}
    content = server.asked[1]["messages"][0]["content"]
    assert [part.get("text", part["type"]) for part in content] == [
        INSTRUCTION, "Picture 1:", "image_url", "Picture 2:", "image_url", "The user's idea: two",
    ]  # fmt: skip
    assert server.asked[1]["seed"] == 3


def test_marks_of_pictures_in_a_prompt_are_plain_text() -> None:
    write({"a": sample("an <image> of <|image_pad|>")})
    with chat_server() as server:
        assert ask(server).exit_code == 0
    assert server.asked[0]["messages"][0]["content"][-1]["text"] == "The user's idea: an <image> of <|image_pad|>"


def test_a_second_run_asks_nothing_and_changes_nothing() -> None:
    write({"a": sample("one"), "b": sample("two")})
    with chat_server() as server:
        ask(server)
        first = Path("out.json").read_bytes()
        assert ask(server).exit_code == 0
        assert len(server.asked) == 2
    assert Path("out.json").read_bytes() == first


def test_refining_again_keeps_the_first_prompt() -> None:
    write({"a": sample("one")})
    with chat_server(Reply(said("two")), Reply(said("three"))) as server:
        ask(server)
        assert ask(server, source="out.json", output="same.json").exit_code == 0
        assert len(server.asked) == 1
        assert ask(server, "--again", source="out.json", output="more.json").exit_code == 0
    assert written("same.json") == written()
    assert written("more.json") == {"a": {**sample("three"), "prompt_old": "one"}}


def test_a_changed_prompt_is_refined_anew() -> None:
    write({"a": sample("one"), "b": sample("two")})
    with chat_server() as server:
        ask(server)
        write({"a": sample("other"), "b": sample("two")})
        ask(server)
        assert len(server.asked) == 3
    assert written()["a"]["prompt_old"] == "other"


def test_a_changed_picture_or_model_is_refined_anew_and_nothing_else() -> None:
    write({"a": sample("one"), "b": sample("two", "blue.png")})
    with chat_server() as server:
        ask(server)
        Image.new("RGB", (40, 30), "green").save("red.png")
        ask(server)
        assert len(server.asked) == 3
        assert run("--model", "other", "--base-url", server.url).exit_code == 0
        assert len(server.asked) == 5
        Path("blue.png").rename("moved.png")
        write({"a": sample("one"), "b": sample("two", "moved.png")})
        assert run("--model", "other", "--base-url", server.url).exit_code == 0
        assert len(server.asked) == 5


def test_failures_are_told_at_the_end_and_tried_again() -> None:
    write({name: sample(name) for name in "abc"})
    with chat_server(Reply(said("A")), Reply(b"", 500), Reply(said("C"))) as server:
        result = ask(server)
        assert result.exit_code == 5
        assert "1 of 3 samples failed" in result.output
        assert "b: 127.0.0.1" in result.output
        assert written()["b"] == sample("b")
        assert written()["c"]["prompt_old"] == "c"
        server.replies[:] = [Reply(said("B"))]
        assert ask(server).exit_code == 0
        assert len(server.asked) == 4
    assert [each["prompt"] for each in written().values()] == ["A", "B", "C"]


def test_a_refused_key_stops_at_once_and_what_is_done_stays() -> None:
    write({name: sample(name) for name in "abc"})
    with chat_server(Reply(said("A")), Reply({"error": {"message": f"bad {KEY}"}}, 401)) as server:
        result = ask(server)
        assert (result.exit_code, len(server.asked)) == (2, 2)
        assert KEY not in result.output
        assert not Path("out.json").exists()
        server.replies[:] = [Reply()]
        assert ask(server).exit_code == 0
        assert len(server.asked) == 4
    assert written()["a"]["prompt"] == "A"


def test_pictures_that_are_not_there_are_left_out() -> None:
    write({"a": sample("one", "lost.png", "blue.png"), "b": sample("two", "lost.png")})
    Path("lost.txt").write_text("x")
    with chat_server() as server:
        result = CliRunner().invoke(refine, ["in.json", "-o", "out.json", "--model", "m", "--base-url", server.url])
        assert len(server.asked) == 1
    assert result.exit_code == 0
    assert "note: a goes without a picture: image lost.png does not exist" in result.output
    assert "note: b has no picture that can be read; its prompt stays" in result.output
    assert written()["b"] == sample("two", "lost.png")


def test_processes_share_the_samples_and_the_last_writes() -> None:
    write({name: sample(name) for name in "abc"})
    with chat_server() as server:
        assert ask(server, "--shard", "2/2").exit_code == 0
        assert not Path("out.json").exists()
        assert len(server.asked) == 1
        assert ask(server, "--shard", "1/2").exit_code == 0
    assert [each["prompt_old"] for each in written().values()] == ["a", "b", "c"]


def test_a_share_is_every_so_manyth_sample() -> None:
    assert Share(1, 2).of(["a", "b", "c", "d"]) == ["b", "d"]


def test_a_local_model_sees_and_writes() -> None:
    write_tiny_vision_model(Path("model"))
    write({"a": sample("one")})
    result = run("--local", "model", "--max-tokens", "60", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert written()["a"]["prompt_old"] == "one"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('{"a": 1, "a": 2}', "stands twice"),
        ([], "must hold an object of samples"),
        ({}, "must hold an object of samples"),
        ({"a": []}, "must be an object with img_paths"),
        ({"a": {"img_paths": ["red.png"]}}, "prompt must be a text"),
        ({"a": sample(" ")}, "prompt must be a text"),
        ({"a": {"prompt": 3, "img_paths": ["red.png"]}}, "prompt must be a text"),
        ({"a": {"prompt": "x"}}, "img_paths must be a list"),
        ({"a": {"prompt": "x", "img_paths": []}}, "img_paths must be a list"),
        ({"a": {"prompt": "x", "img_paths": "red.png"}}, "img_paths must be a list"),
        ({"a": sample("x", "../red.png")}, "paths with .. are refused"),
        ({"a": sample("x", "y\\..\\red.png")}, "paths with .. are refused"),
        ({"a": sample("half \ud83d")}, "has half a character"),
        ({"a/b": sample()}, "an id names a file"),
        ({"..": sample()}, "an id names a file"),
        ({"a": sample(prompt_old=1)}, "prompt_old must be a text"),
    ],
)
def test_sample_files_that_are_none_are_refused(content: Any, message: str) -> None:
    write(content)
    result = run("--model", "m")
    assert result.exit_code in (2, 4)
    assert message in result.output
    assert not Path("out.json").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "name the language model"),
        (["--model", "m", "--local", "x"], 2, "name one language model"),
        (["--model", "m", "--base-url", "nowhere"], 2, "http:// or https://"),
        (["--model", "m", "--key-variable", "NO_KEY"], 2, "NO_KEY is not set"),
        (["--model", "m", "-o", "in.json"], 2, "would take the place of an input"),
        (["--model", "m", "-o", "red.png"], 2, "ends in .json"),
        (["--model", "m", "-o", "red.png/out.json"], 4, "is no folder"),
        (["--model", "m", "--shard", "3/2"], 2, "share of the work is I/N"),
        (["--local", "nowhere/at/all"], 3, "no folder or repository"),
        (["--local", ".", "--device", "tpu"], 2, "device must be"),
    ],
)
def test_options_that_cannot_work_are_refused(options: list[str], code: int, message: str) -> None:
    write({"a": sample()})
    result = run(*options)
    assert (result.exit_code, message in result.output) == (code, True), result.output
    assert KEY not in result.output
    assert not Path("out.json").exists()


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"of": "d", "changes": {}}', '{"of": "d", "error": ""}'])
def test_a_damaged_note_does_not_count(text: str) -> None:
    ledger = Ledger(Path("out.json"), {"a": "d"})
    ledger.note("a", {"prompt": "b"})
    assert ledger.changes("a") == {"prompt": "b"}
    Path(".out.json.samples/a.json").write_text(text)
    assert ledger.changes("a") is None
