"""Language models behind an endpoint, asked over this machine's own loopback."""

import base64
import io
import re
import socket
from typing import Any

import pytest
from PIL import Image

from tests.chat_server import ChatServer, Reply, chat_server, said
from wan_core.errors import BackendError, ConfigError
from wan_core.llm import Message, open_endpoint
from wan_core.llm.chat import Answer
from wan_core.llm.endpoint import EndpointChat

KEY = "sk-secret-0123456789"
HELLO = (Message("user", ("hello",)),)


def chat_of(server: ChatServer, *, keys: str = KEY, waits: list[float] | None = None, **options: Any) -> EndpointChat:
    pause = (waits if waits is not None else []).append
    return open_endpoint("m", server.url, environ={"OPENAI_API_KEY": keys}, pause=pause, **options)


def failure(*replies: Reply, **options: Any) -> str:
    """The message of the BackendError that these replies make."""
    with chat_server(*replies) as server, pytest.raises(BackendError) as caught:
        chat_of(server, **options).complete(HELLO)
    assert KEY not in str(caught.value)
    return str(caught.value)


def test_text_is_sent_as_text_with_model_seed_limit_and_key() -> None:
    with chat_server(Reply(said(" hi \n"))) as server:
        answer = chat_of(server).complete([Message("system", ("be brief",)), *HELLO], seed=5)
    assert answer == Answer("hi", "m", 5)
    assert server.asked == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
            "seed": 5,
            "max_tokens": 2000,
        }
    ]
    assert server.keys == [f"Bearer {KEY}"]
    assert server.paths == ["/v1/chat/completions"]


def test_pictures_are_jpeg_parts_in_their_order() -> None:
    red, blue = Image.new("RGB", (8, 6), "red"), Image.new("RGBA", (4, 4), "blue")
    with chat_server() as server:
        chat_of(server).complete([Message("user", (red, "between", blue))])
    first, text, last = server.asked[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "between"}
    pictures = []
    for part in (first, last):
        head, _, data = part["image_url"]["url"].partition(",")
        assert (part["type"], head) == ("image_url", "data:image/jpeg;base64")
        pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))
    assert [picture.size for picture in pictures] == [(8, 6), (4, 4)]
    reference = io.BytesIO()
    red.save(reference, "JPEG", quality=90)
    assert pictures[0].quantization == Image.open(reference).quantization  # type: ignore[attr-defined]


def test_several_keys_take_turns() -> None:
    with chat_server() as server:
        chat = chat_of(server, keys="one, two\nthree")
        for _ in range(4):
            chat.complete(HELLO)
    assert server.keys == ["Bearer one", "Bearer two", "Bearer three", "Bearer one"]


def test_an_endpoint_of_ones_own_needs_no_key() -> None:
    with chat_server() as server:
        chat_of(server, keys="").complete(HELLO)
    assert server.keys == [None]


def test_the_base_url_may_come_from_the_environment_and_end_anyhow() -> None:
    with chat_server() as server:
        for ending in ("", "/", "/chat/completions"):
            open_endpoint("m", environ={"OPENAI_BASE_URL": server.url + ending}).complete(HELLO)
    assert set(server.paths) == {"/v1/chat/completions"}


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_transient_failures_are_tried_again_with_growing_pauses(status: int) -> None:
    waits: list[float] = []
    with chat_server(Reply(b"", status), Reply(b"", status), Reply()) as server:
        assert chat_of(server, waits=waits).complete(HELLO).text == "fine"
    assert waits == [1, 2]


def test_a_server_says_how_long_to_wait_within_limits() -> None:
    waits: list[float] = []
    asks = [Reply(b"", 429, {"Retry-After": text}) for text in ("7", "100000", "Wed, 21 Oct 2015 07:28:00 GMT")]
    with chat_server(*asks, Reply()) as server:
        chat_of(server, waits=waits, retries=3).complete(HELLO)
    assert waits == [7, 60, 4]


def test_tries_end() -> None:
    waits: list[float] = []
    body = {"error": {"message": "slow down"}}
    assert "is busy or failing (429): slow down" in failure(Reply(body, 429), waits=waits, retries=1)
    assert waits == [1]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_not_sent_again(status: int) -> None:
    waits: list[float] = []
    assert f"({status}): no" in failure(Reply({"error": {"message": "no"}}, status), waits=waits)
    assert waits == []


def test_a_server_that_hangs_is_left_in_time() -> None:
    assert "gave no answer after 2 tries: no answer in time" in failure(Reply(hangs=True), timeout=0.1, retries=1)


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    waits: list[float] = []
    chat = open_endpoint("m", f"http://127.0.0.1:{port}", environ={}, pause=waits.append)
    with pytest.raises(BackendError, match=f"127.0.0.1:{port} gave no answer after 3 tries: .*refused"):
        chat.complete(HELLO)
    assert waits == [1, 2]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "no JSON"),
        (b"<html>", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        ([], "without a message"),
        ({}, "without a message"),
        ({"choices": []}, "without a message"),
        ({"choices": [{}]}, "without a message"),
        ({"choices": "x"}, "without a message"),
        ({"error": {"message": f"bad key {KEY}"}}, r"without a message: bad key \[key\]"),
        (said(""), "answered with nothing"),
        (said(None), "answered with nothing"),
        (said(" \n"), "answered with nothing"),
        (said({"a": 1}), "answered with nothing"),
        (said("half a sen", finish_reason="length"), "cut off at 2000 tokens"),
        ({**said("all used"), "usage": {"completion_tokens": 2000}}, "cut off at 2000 tokens"),
        (said("x", finish_reason="content_filter"), "content filter"),
        ({"choices": [{"message": {"content": None, "refusal": "I will not"}}]}, "nothing: I will not"),
    ],
)
def test_answers_that_are_none_are_told_apart(body: Any, message: str) -> None:
    assert re.search(message, failure(Reply(body)))


def test_a_cut_reply_is_no_answer() -> None:
    message = failure(Reply(b'{"choices"', headers={"Content-Length": "500"}), retries=0)
    assert "gave no answer: its answer ends too early" in message


def test_text_in_parts_and_reasoning_are_read() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "other"}, {"type": "text", "text": "b"}]
    body = {"choices": [{"message": {"content": parts, "reasoning_content": "hm"}, "finish_reason": "stop"}]}
    with chat_server(Reply(body)) as server:
        answer = chat_of(server).complete(HELLO)
    assert (answer.text, answer.reasoning) == ("ab", "hm")


def test_models_that_call_the_limit_otherwise_are_asked_in_their_words() -> None:
    refused = Reply({"error": {"message": "Use 'max_completion_tokens' instead of 'max_tokens'."}}, 400)
    with chat_server(refused, Reply()) as server:
        chat = chat_of(server, max_tokens=7)
        chat.complete(HELLO)
        chat.complete(HELLO)
    limits = [{name: value for name, value in asked.items() if name.startswith("max_")} for asked in server.asked]
    assert limits == [{"max_tokens": 7}, {"max_completion_tokens": 7}, {"max_completion_tokens": 7}]


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "refuses the key of OPENAI_API_KEY"), (403, "refuses the key"), (404, "has no model m"), (405, "/v1")],
)
def test_what_no_sample_can_pass_is_a_setting_to_mend(status: int, message: str) -> None:
    body = {"error": {"message": f"about {KEY}"}}
    with chat_server(Reply(body, status)) as server, pytest.raises(ConfigError, match=message) as caught:
        chat_of(server).complete(HELLO)
    assert KEY not in str(caught.value)
    assert "about [key]" in str(caught.value)


def test_a_redirect_does_not_take_the_key_along() -> None:
    with chat_server() as other:
        redirect = Reply(b"", 302, {"Location": other.url})
        with chat_server(redirect) as server, pytest.raises(ConfigError, match="302"):
            chat_of(server).complete(HELLO)
    assert other.keys == []


def test_keys_are_shown_nowhere() -> None:
    with chat_server() as server:
        chat = chat_of(server, keys=f"{KEY},other-key")
        answer = chat.complete(HELLO)
    for shown in (repr(chat), str(chat), repr(answer), repr(vars(chat))):
        assert KEY not in shown
        assert "other-key" not in shown


@pytest.mark.parametrize(
    ("url", "keys", "message"),
    [
        (None, "", "OPENAI_API_KEY is not set"),
        ("ftp://host", KEY, "http:// or https://"),
        ("host/v1", KEY, "http:// or https://"),
        ("https://", KEY, "http:// or https://"),
        ("https://host:99999", KEY, "no address"),
        ("https://user:word@host/v1", KEY, "no user, password"),
        (f"https://host/v1?key={KEY}", KEY, "no user, password or query"),
        ("https://host/v1", "käy", "characters that no key has"),
        ("https://host/v1", "a\x01b", "characters that no key has"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(url: str | None, keys: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_endpoint("m", url, environ={"OPENAI_API_KEY": keys})
    assert KEY not in str(caught.value)
    assert "word" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize("options", [{"timeout": 0}, {"retries": -1}, {"max_tokens": 0}])
def test_limits_must_be_possible(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        open_endpoint("m", "http://host", environ={}, **options)


def test_a_model_must_be_named() -> None:
    with pytest.raises(ConfigError, match="name the endpoint's model"):
        open_endpoint(" ", "http://host", environ={})
