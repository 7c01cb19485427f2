"""DashScope's own protocol, asked over this machine's loopback."""

import base64
import io
from typing import Any

import pytest
from PIL import Image

from tests.chat_server import ChatServer, Reply, chat_server, said
from wan_core.errors import BackendError, ConfigError
from wan_core.llm import Message, open_dashscope
from wan_core.llm.chat import Answer
from wan_core.llm.endpoint import EndpointChat

KEY = "sk-secret-0123456789"
HELLO = (Message("system", ("be brief",)), Message("user", ("hello",)))
RED = Image.new("RGB", (8, 6), "red")


def answer(content: Any, **more: Any) -> dict[str, Any]:
    """The body of a whole answer."""
    choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": content}, **more}
    return {"output": {"choices": [choice]}, "usage": {"output_tokens": 3}, "request_id": "r"}


def chat_of(server: ChatServer, model: str = "qwen-plus", path: str = "/api/v1", **options: Any) -> EndpointChat:
    url = server.url.removesuffix("/v1") + path
    environ = {"DASH_API_KEY": KEY, "DASH_API_URL": url}
    return open_dashscope(model, environ=environ, pause=options.pop("pause", lambda seconds: None), **options)


def test_text_is_sent_to_text_generation() -> None:
    with chat_server(Reply(answer("hi\nthere"))) as server:
        found = chat_of(server).complete(HELLO, seed=2**31 + 5)
    assert found == Answer("hi\nthere", "qwen-plus", 2**31 + 5)
    assert server.paths == ["/api/v1/services/aigc/text-generation/generation"]
    assert server.keys == [f"Bearer {KEY}"]
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    assert server.asked == [
        {
            "model": "qwen-plus",
            "input": {"messages": messages},
            "parameters": {"result_format": "message", "seed": 5, "max_tokens": 2000},
        }
    ]


def test_pictures_are_sent_to_multimodal_generation() -> None:
    with chat_server(Reply(answer([{"text": "a red"}, {"text": " field"}]))) as server:
        found = chat_of(server, "qwen-vl-max").complete([HELLO[0], Message("user", (RED, "hello"))])
    assert found.text == "a red field"
    assert server.paths == ["/api/v1/services/aigc/multimodal-generation/generation"]
    system, user = server.asked[0]["input"]["messages"]
    assert system["content"] == [{"text": "be brief"}]
    assert user["content"][1] == {"text": "hello"}
    head, _, data = user["content"][0]["image"].partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (8, 6)


def test_a_model_that_sees_is_asked_there_without_pictures_too() -> None:
    with chat_server(Reply(answer("fine"))) as server:
        chat_of(server, "qwen3-vl-plus").complete(HELLO)
    assert server.paths[0].endswith("multimodal-generation/generation")


def test_a_model_whose_name_does_not_tell_is_found_by_the_servers_answer() -> None:
    wrong = Reply({"code": "InvalidParameter", "message": "url error, please check url!"}, 400)
    with chat_server(wrong, Reply(answer("fine"))) as server:
        chat = chat_of(server, "qwen9-plus")
        assert [chat.complete(HELLO).text for _ in range(2)] == ["fine", "fine"]
    assert ["multimodal" in path for path in server.paths] == [False, True, True]


def test_an_address_of_compatible_mode_is_spoken_to_as_openai() -> None:
    with chat_server(Reply(said("fine"))) as server:
        assert chat_of(server, path="/compatible-mode/v1").complete(HELLO).text == "fine"
    assert server.paths == ["/compatible-mode/v1/chat/completions"]


def test_a_busy_server_is_asked_four_times_with_growing_pauses() -> None:
    waits: list[float] = []
    busy = Reply({"code": "Throttling", "message": "slow down"}, 429)
    with chat_server(busy) as server, pytest.raises(BackendError, match=r"busy or failing \(429\): slow down"):
        chat_of(server, pause=waits.append).complete(HELLO)
    assert len(server.asked) == 4
    assert waits == [1, 2, 4]


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (
            Reply({"code": "InvalidApiKey", "message": f"no {KEY}"}, 401),
            ConfigError,
            r"key of DASH_API_KEY .*no \[key\]",
        ),
        (Reply({"code": "ModelNotFound", "message": "no model"}, 404), ConfigError, "has no model qwen-plus"),
        (Reply({"code": "DataInspectionFailed", "message": "unfit"}, 400), BackendError, r"refuses .*\(400\): unfit"),
        (Reply({}), BackendError, "without a message"),
        (Reply({"output": []}), BackendError, "without a message"),
        (Reply({"output": {"choices": [{"message": 1}]}}), BackendError, "without a message"),
        (Reply(answer("")), BackendError, "answered with nothing"),
        (Reply(answer([{"image": "x"}])), BackendError, "answered with nothing"),
        (Reply(answer("half", finish_reason="length")), BackendError, "cut off at 2000 tokens"),
        (Reply(b"<html>"), BackendError, "no JSON"),
    ],
)
def test_failures_are_told_apart(reply: Reply, kind: type[Exception], message: str) -> None:
    with chat_server(reply) as server, pytest.raises(kind, match=message) as caught:
        chat_of(server).complete(HELLO)
    assert KEY not in str(caught.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "DASH_API_KEY is not set"),
        ({"DASH_API_KEY": " , "}, "DASH_API_KEY is not set"),
        ({"DASH_API_KEY": KEY, "DASH_API_URL": "dashscope"}, "DASH_API_URL is http"),
        ({"DASH_API_KEY": KEY, "DASH_API_URL": "https://a:b@host"}, "DASH_API_URL must hold no user"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_dashscope("qwen-plus", environ=environ)


def test_without_an_address_it_is_dashscopes_own() -> None:
    assert open_dashscope("m", environ={"DASH_API_KEY": KEY}).url == "https://dashscope.aliyuncs.com/api/v1"
