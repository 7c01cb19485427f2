"""Language models behind an endpoint that speaks OpenAI's chat protocol or DashScope's, text and vision.

Keys come from the environment alone. They are sent in a header and shown nowhere: texts of the server that may repeat
one are cleaned before they become part of a message.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from wan_core.errors import BackendError, ConfigError
from wan_core.files import plain_text
from wan_core.llm.chat import Answer, Message
from wan_core.llm.dialects import DashScopeDialect, Dialect, OpenAIDialect, text_of
from wan_core.llm.transport import NoReply, Reply, check_url, post

DEFAULT_URL = "https://api.openai.com/v1"
DASHSCOPE_URL = "https://dashscope.aliyuncs.com/api/v1"
_COMPATIBLE = "/compatible-mode/v1"
_LONGEST_WAIT = 60.0


class Keys:
    """Keys used in turn, each for one request; what prints it shows how many there are."""

    def __init__(self, keys: Sequence[str]) -> None:
        if any(not key.isascii() or not key.isprintable() for key in keys):
            raise ConfigError("a key holds characters that no key has; set it again")
        self._keys = tuple(keys)
        self._turn = itertools.cycle(self._keys or ("",))

    def __repr__(self) -> str:
        return f"{len(self._keys)} keys"

    def headers(self) -> dict[str, str]:
        """The header with the next key; none without keys."""
        key = next(self._turn)
        return {"Authorization": f"Bearer {key}"} if key else {}

    def cleaned(self, text: str) -> str:
        """The text without any of the keys."""
        for key in self._keys:
            text = text.replace(key, "[key]")
        return text


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long one try may take, in seconds, how many follow it, and how long an answer may be."""

    timeout: float
    retries: int
    max_tokens: int

    def __post_init__(self) -> None:
        if not (self.timeout > 0 and self.retries >= 0 and self.max_tokens > 0):
            raise ConfigError("timeout and max_tokens must be above 0, and retries at least 0")


def open_endpoint(
    model: str,
    base_url: str | None = None,
    *,
    key_variable: str = "OPENAI_API_KEY",
    environ: Mapping[str, str] = os.environ,
    timeout: float = 60.0,
    retries: int = 2,
    max_tokens: int = 2000,
    pause: Callable[[float], object] = time.sleep,
) -> EndpointChat:
    """A model behind an endpoint: ``base_url``, else that of OPENAI_BASE_URL, else OpenAI's.

    The variable named ``key_variable`` holds its key, or several, parted by commas or blanks, which take turns; only a
    ``base_url`` of your own works without. Raises ConfigError for what cannot work: no model, no key, no address.
    """
    address = base_url or environ.get("OPENAI_BASE_URL") or ""
    keys = _keys(environ, key_variable)
    if not keys and not address:
        raise ConfigError(
            f"{key_variable} is not set; put the key there, or name an endpoint that needs none with a base URL"
        )
    limits = Limits(timeout=timeout, retries=retries, max_tokens=max_tokens)
    url = check_url(address or DEFAULT_URL)
    return EndpointChat(model, url, OpenAIDialect(), Keys(keys), key_variable, limits, pause)


def open_dashscope(
    model: str,
    *,
    environ: Mapping[str, str] = os.environ,
    timeout: float = 60.0,
    retries: int = 3,
    max_tokens: int = 2000,
    pause: Callable[[float], object] = time.sleep,
) -> EndpointChat:
    """A model of DashScope: at DASH_API_URL, else in Beijing, with the key of DASH_API_KEY.

    An address that ends in /compatible-mode/v1 is spoken to in OpenAI's protocol. Raises as :func:`open_endpoint`.
    """
    keys = _keys(environ, "DASH_API_KEY")
    if not keys:
        raise ConfigError("DASH_API_KEY is not set; put the key of DashScope there")
    url = check_url(environ.get("DASH_API_URL") or DASHSCOPE_URL, "DASH_API_URL")
    dialect: Dialect = OpenAIDialect() if url.endswith(_COMPATIBLE) else DashScopeDialect()
    limits = Limits(timeout=timeout, retries=retries, max_tokens=max_tokens)
    return EndpointChat(model, url, dialect, Keys(keys), "DASH_API_KEY", limits, pause)


def _keys(environ: Mapping[str, str], variable: str) -> list[str]:
    return environ.get(variable, "").replace(",", " ").split()


class EndpointChat:
    """A :class:`~wan_core.llm.Chat` over HTTP; made by :func:`open_endpoint` or :func:`open_dashscope`.

    What a server cannot do just now (busy, restarting, no connection) is tried again after 1, 2, 4, ... seconds, or
    after as many as it asks for.
    """

    def __init__(
        self,
        model: str,
        url: str,
        dialect: Dialect,
        keys: Keys,
        key_variable: str,
        limits: Limits,
        pause: Callable[[float], object],
    ) -> None:
        if not model.strip():
            raise ConfigError("name the endpoint's model")
        self.name = model
        self.url = url
        self._dialect = dialect
        self._keys = keys
        self._key_variable = key_variable
        self._limits = limits
        self._pause = pause

    @property
    def host(self) -> str:
        """Where it is, for messages."""
        return urlsplit(self.url).netloc

    def complete(self, messages: Sequence[Message], *, seed: int = 0) -> Answer:
        """The model's next turn. Raises BackendError (this conversation failed) or ConfigError (all will)."""
        reply = self._sent(messages, seed)
        if self._dialect.amend(reply):
            reply = self._sent(messages, seed)
        if reply.status != 200:
            raise self._refusal(reply)
        return self._answer(reply.body, seed)

    def _sent(self, messages: Sequence[Message], seed: int) -> Reply:
        url = self._dialect.url(self.url, self.name, messages)
        body = json.dumps(self._dialect.body(self.name, messages, seed, self._limits.max_tokens)).encode()
        for attempt in itertools.count():
            wait = None
            try:
                reply = post(
                    url, body, {"Content-Type": "application/json", **self._keys.headers()}, self._limits.timeout
                )
            except NoReply as failure:
                if attempt >= self._limits.retries or not failure.is_transient:
                    tries = f" after {attempt + 1} tries" if attempt else ""
                    reason = self._keys.cleaned(plain_text(failure))
                    raise BackendError(f"{self.host} gave no answer{tries}: {reason[:200]}") from failure
            else:
                if attempt >= self._limits.retries or not reply.is_transient:
                    return reply
                wait = reply.wait
            self._pause(min(2.0**attempt if wait is None else wait, _LONGEST_WAIT))
        raise AssertionError("the loop returns or raises")

    def _refusal(self, reply: Reply) -> BackendError | ConfigError:
        reason = self._reason(reply.body)
        if reply.status in (401, 403):
            return ConfigError(f"{self.host} refuses the key of {self._key_variable} ({reply.status}){reason}")
        if reply.status in (404, 405) or 300 <= reply.status < 400:
            return ConfigError(
                f"{self.host} has no model {plain_text(self.name)} at {self.url} ({reply.status}){reason}; "
                "check the model's name and the base URL, which mostly ends in /v1"
            )
        if reply.status == 413:
            return BackendError(f"the pictures are too large for {self.host} (413){reason}; give smaller ones")
        failed = "is busy or failing" if reply.is_transient else "refuses the request"
        return BackendError(f"{self.host} {failed} ({reply.status}){reason}")

    def _reason(self, body: bytes) -> str:
        """What the server says, cleaned, with a colon before it; a page is not shown."""
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            return ""
        error = content.get("error", content) if isinstance(content, dict) else None
        said = error.get("message") if isinstance(error, dict) else error
        return f": {self._keys.cleaned(plain_text(said))[:200]}" if isinstance(said, str) and said else ""

    def _answer(self, body: bytes, seed: int) -> Answer:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BackendError(f"{self.host} answered with something that is no JSON; check the base URL") from error
        choice = self._dialect.choice(content) if isinstance(content, dict) else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            reason = self._reason(body) if isinstance(content, dict) and "error" in content else ""
            raise BackendError(f"{self.host} answered without a message{reason}")
        self._check_end(choice, self._dialect.used(content))
        text = text_of(message.get("content")).strip()
        if not text:
            refusal = message.get("refusal")
            said = f": {self._keys.cleaned(plain_text(refusal))[:200]}" if isinstance(refusal, str) and refusal else ""
            raise BackendError(f"{plain_text(self.name)} answered with nothing{said}")
        reasoning = message.get("reasoning_content")
        return Answer(text, self.name, seed, reasoning if isinstance(reasoning, str) else "")

    def _check_end(self, choice: Mapping[str, Any], used: Any) -> None:
        most = self._limits.max_tokens
        if choice.get("finish_reason") == "length" or (isinstance(used, int) and used >= most):
            raise BackendError(
                f"the answer of {plain_text(self.name)} was cut off at {most} tokens; allow more of them"
            )
        if choice.get("finish_reason") == "content_filter":
            raise BackendError(
                f"the content filter of {self.host} stopped the answer; change the prompt or the picture"
            )
