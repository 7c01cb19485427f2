"""Prompts that a language model extends, on the command line: endpoints on this machine's loopback, a tiny Qwen."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.chat_server import ChatServer, Reply, chat_server, said
from tests.tiny_qwen import only_letters, write_tiny_text_model
from wan_core.cli import wan
from wan_core.media import read_provenance

Run = Callable[..., Result]
KEY = "sk-secret-0123456789"
EXTENDED = "A red circle moves to the right on a blue background."
ASK = ["--prompt_extend_method", "openai", "--prompt_extend_model", "m", "--prompt_extend_target_lang", "en"]
MAKE = ["generate", "--sample_steps", 1, "--frame_num", 1, "--base_seed", 3, "-o", "out.mp4"]
PICTURE = Path(__file__).resolve().parents[1] / "data" / "red_circle.png"


def serve(monkeypatch: pytest.MonkeyPatch, server: ChatServer) -> None:
    """Let both kinds of endpoints be this server."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("DASH_API_KEY", KEY)
    monkeypatch.setenv("DASH_API_URL", server.url.removesuffix("/v1") + "/api/v1")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "DASH_API_KEY", "DASH_API_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return only_letters(write_tiny_text_model(tmp_path_factory.mktemp("qwen") / "tiny"))


def test_a_video_is_made_of_the_extended_prompt(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(Reply(said(EXTENDED))) as server:
        serve(monkeypatch, server)
        result = run(*MAKE, "--prompt", "a circle", "--use_prompt_extend", *ASK)
    assert result.exit_code == 0, result.output
    assert f"prompt extended by m: {EXTENDED}" in result.stderr
    made = read_provenance(Path("out.mp4"))
    assert made.settings["prompt"] == EXTENDED
    assert made.record["prompt_extend"] == {
        "prompt": "a circle", "method": "openai", "model": "m", "language": "en", "seed": 3, "instruction": "t2v",
        "images": 0,
    }  # fmt: skip
    assert server.asked[0]["seed"] == 3
    assert KEY not in result.output + result.stderr + made.to_json() + Path("out.mp4").read_bytes().decode("latin-1")


def test_the_video_is_that_of_the_extended_prompt_given_as_it_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(Reply(said(EXTENDED))) as server:
        serve(monkeypatch, server)
        run(*MAKE, "--prompt", "a circle", "--use_prompt_extend", *ASK, "--no-metadata")
    extended = Path("out.mp4").read_bytes()
    run(*MAKE, "--prompt", EXTENDED, "--no-metadata")
    assert Path("out.mp4").read_bytes() == extended


def test_a_picture_is_shown_to_a_model_of_dashscope(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"output": {"choices": [{"message": {"content": [{"text": EXTENDED}]}, "finish_reason": "stop"}]}}
    with chat_server(Reply(body)) as server:
        serve(monkeypatch, server)
        result = run(
            *MAKE, "--task", "tiny-ti2v", "--image", PICTURE, "--prompt", "", "--use_prompt_extend",
            "--prompt_extend_method", "dashscope",
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert server.paths == ["/api/v1/services/aigc/multimodal-generation/generation"]
    assert server.asked[0]["model"] == "qwen-vl-max"
    image, words = server.asked[0]["input"]["messages"][1]["content"]
    assert image["image"].startswith("data:image/jpeg;base64,")
    assert words == {"text": "图片如上。"}
    assert read_provenance(Path("out.mp4")).record["prompt_extend"]["instruction"] == "i2v-empty"


def test_a_qwen_here_extends_the_prompt(run: Run, qwen: Path) -> None:
    result = run(*MAKE, "--prompt", "a circle", "--use_prompt_extend", "--prompt_extend_model", qwen, "--json")
    assert result.exit_code == 0, result.output
    made = read_provenance(Path("out.mp4"))
    assert made.settings["prompt"] == json.loads(result.stdout)[0]["prompt"] != "a circle"
    assert made.record["prompt_extend"]["model"] == "tiny"


def test_a_prompt_is_asked_once_for_all_its_videos_and_not_again_when_it_is_kept(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keep = ["--prompt", "a circle", *ASK, "--prompt_extend_keep", "kept.json"]
    with chat_server(Reply(said("one")), Reply(said("two"))) as server:
        serve(monkeypatch, server)
        videos = run(*MAKE, "--num-videos", 2, "--use_prompt_extend", *keep, "--json")
        again = run("extend-prompt", *keep)
    assert [row["prompt"] for row in json.loads(videos.stdout)] == ["one", "one"]
    assert again.stdout == "one\n"
    assert len(server.asked) == 1
    assert KEY not in (tmp_path / "kept.json").read_text()


@pytest.mark.slow
def test_of_several_processes_the_first_one_asks_for_all(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [*MAKE[:-1], "out.mp4", "--num-videos", 2, "--prompt", "a circle", "--use_prompt_extend", *ASK]
    with chat_server(Reply(said(EXTENDED))) as server:
        shared = {**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.url, "OMP_NUM_THREADS": "1"}
        shared |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes = []
        for rank in ("0", "1"):
            (tmp_path / rank).mkdir()
            command = [sys.executable, "-m", "wan_core", *map(str, words)]
            environment = {**shared, "RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, env=environment, cwd=tmp_path / rank))
        assert [process.wait(600) for process in processes] == [0, 0]
    assert len(server.asked) == 1
    made = [list((tmp_path / rank).glob("*.mp4")) for rank in ("0", "1")]
    assert [len(videos) for videos in made] == [1, 1]
    assert [read_provenance(video).settings["prompt"] for (video,) in made] == [EXTENDED, EXTENDED]


def test_a_plan_asks_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server() as server:
        serve(monkeypatch, server)
        result = run(*MAKE, "--prompt", "a circle", "--use_prompt_extend", *ASK, "--dry-run", "--json")
    assert json.loads(result.stdout)[0]["prompt_extend"] == {"method": "openai", "model": "m", "language": "en"}
    assert server.asked == []


def test_with_a_fallback_the_video_is_made_of_the_prompt(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(Reply(b"", 422)) as server:
        serve(monkeypatch, server)
        result = run(*MAKE, "--prompt", "a circle", "--use_prompt_extend", *ASK, "--prompt_extend_fallback")
    assert result.exit_code == 0, result.output
    assert "note: the prompt stays as it is, for it could not be extended" in result.stderr
    made = read_provenance(Path("out.mp4"))
    assert made.settings["prompt"] == "a circle"
    assert "(422)" in made.record["prompt_extend"]["failed"]


REPLIES: dict[str, tuple[Reply, int, str]] = {
    "key refused": (Reply({"error": {"message": f"bad {KEY}"}}, 401), 2, "refuses the key of OPENAI_API_KEY"),
    "no such model": (Reply({}, 404), 2, "has no model m"),
    "malformed": (Reply(b"<html>"), 5, "no JSON"),
    "no answer": (Reply({"choices": []}), 5, "without a message"),
    "empty": (Reply(said("")), 5, "answered with nothing"),
    "thoughts alone": (Reply(said("<think>hm</think>")), 5, "nothing that is a prompt"),
    "cut off": (Reply(said("half a", finish_reason="length")), 5, "cut off at 2000 tokens"),
    "filtered": (Reply(said("", finish_reason="content_filter")), 5, "content filter"),
    "refused": (Reply(said("[refused]")), 2, "refuses to extend this prompt"),
    "hanging": (Reply(hangs=True), 5, "no answer in time"),
}


@pytest.mark.parametrize("case", REPLIES)
def test_a_failure_is_a_sentence_and_leaves_nothing(case: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_core.llm.endpoint._LONGEST_WAIT", 0)
    reply, code, message = REPLIES[case]
    with chat_server(reply) as server:
        serve(monkeypatch, server)
        result = run(*MAKE, "--prompt", "a circle", "--use_prompt_extend", *ASK, "--prompt_extend_timeout", 0.2)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert KEY not in result.stderr
    assert list(Path().iterdir()) == []


def test_an_endpoint_that_is_not_there_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
    monkeypatch.setattr("wan_core.llm.endpoint._LONGEST_WAIT", 0)
    result = run("extend-prompt", "--prompt", "a circle", *ASK)
    assert result.exit_code == 5
    assert f"127.0.0.1:{port} gave no answer after 4 tries" in result.stderr


USE = ["--use_prompt_extend"]
WRONG: dict[str, tuple[list[Any], int, str]] = {
    "no key of openai": ([*USE, *ASK], 2, "OPENAI_API_KEY is not set"),
    "no key of dashscope": ([*USE, "--prompt_extend_method", "dashscope"], 2, "DASH_API_KEY is not set"),
    "no model": ([*USE, "--prompt_extend_method", "openai"], 2, "--prompt-extend-model"),
    "no such model": ([*USE, "--prompt_extend_model", "Qwen3"], 2, "no local language model Qwen3"),
    "no such method": ([*USE, "--prompt_extend_method", "magic"], 2, "'magic' is not one of"),
    "no such language": ([*USE, "--prompt_extend_target_lang", "fr"], 2, "'fr' is not one of"),
    "without use": (ASK, 2, "--prompt-extend-method does nothing without --use-prompt-extend"),
    "fallback without use": (["--prompt_extend_fallback"], 2, "--prompt-extend-fallback does nothing"),
    "no tokens": ([*USE, "--prompt_extend_max_tokens", 0], 2, "x>=1"),
    "empty prompt": ([*USE, *ASK, "--prompt", " "], 2, "prompt is empty; a language model needs an idea"),
    "a kept file of something else": (
        [*USE, "--prompt_extend_model", "me/mine", "--prompt_extend_keep", PICTURE], 2, "UTF-8",
    ),
    "a kept file in no folder": (
        [*USE, "--prompt_extend_model", "me/mine", "--prompt_extend_keep", f"{PICTURE}/kept.json"], 4, "kept.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_told_before_anybody_is_asked(case: str, run: Run) -> None:
    words, code, message = WRONG[case]
    result = run(*MAKE, "--prompt", "a circle", *words)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert list(Path().iterdir()) == []


def test_a_task_of_fixed_prompts_is_refused(run: Run) -> None:
    result = run("generate", "bindweave-14B", "--prompt", "a cat", "--image", PICTURE, *USE)
    assert result.exit_code == 2
    assert "takes its prompts as they are" in result.stderr


def test_extend_prompt_prints_the_result_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(Reply(said(f'"{EXTENDED}"\n'))) as server:
        serve(monkeypatch, server)
        result = run("extend-prompt", "--prompt", "a circle", *ASK)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{EXTENDED}\n", "")


def test_extend_prompt_says_what_was_sent_but_no_key(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(Reply(said(EXTENDED))) as server:
        serve(monkeypatch, server)
        result = run("extend-prompt", "--prompt", "a circle", "--image", PICTURE, "--seed", 7, *ASK, "--json")
    found = json.loads(result.stdout)
    system, user = found.pop("sent")
    assert found == {
        "prompt": EXTENDED, "original": "a circle", "method": "openai", "model": "m", "language": "en", "seed": 7,
        "instruction": "i2v", "images": 1, "url": server.url,
    }  # fmt: skip
    assert server.asked[0]["messages"][0]["content"] == "\n".join(system["content"])
    assert user["content"] == [{"image": [64, 64]}, "a circle"]
    assert KEY not in result.stdout


def test_extend_prompt_extends_a_file_line_by_line(run: Run, qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a circle\n\na square\n")
    words = ["extend-prompt", "--prompt-file", "prompts.txt", "--prompt_extend_model", qwen, "--seed", 1, "--quiet"]
    first, second = (run(*words).stdout for _ in range(2))
    assert first == second
    assert len(first.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a prompt is needed"),
        (["--prompt", "a cat", "--task", "nothing"], "there is no model 'nothing'"),
        (["--prompt", "a cat", "--task", "t2v-A14B", "--image", PICTURE], "t2v-A14B takes no picture"),
        (["--prompt", "a cat", "--task", "i2v-A14B", "--image", PICTURE, "--image", PICTURE], "takes one picture"),
        (["--prompt", "a cat", "--task", "flf2v-14B", "--image", PICTURE], "takes two pictures"),
        (["--prompt", "a cat", "--task", "bindweave-14B"], "takes its prompts as they are"),
        (["--prompt", "", "--task", "i2v-A14B"], "prompt is empty"),
        (["--prompt", "", "--image", PICTURE, "--prompt_extend_model", "Qwen2.5_7B"], "Qwen2.5_7B sees no pictures"),
        (["--prompt", "a cat", "--prompt_extend_model", "QwenVL2.5"], "no local language model QwenVL2.5"),
    ],
)
def test_extend_prompt_refuses_what_cannot_work(words: list[Any], message: str) -> None:
    result = CliRunner().invoke(wan, ["extend-prompt", *map(str, words)])
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_an_image_that_cannot_be_read_is_named(run: Run) -> None:
    result = run("extend-prompt", "--prompt", "a cat", "--image", __file__, "--prompt_extend_model", "me/mine")
    assert result.exit_code == 4
    assert "no picture" in result.stderr
