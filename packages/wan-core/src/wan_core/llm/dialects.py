"""How endpoints are spoken to: OpenAI's chat protocol, and that of DashScope (Alibaba Cloud Model Studio).

Both take a POST of JSON with the conversation and answer with choices; paths, names and nesting differ. DashScope's are
those of its "API reference: DashScope": texts go to ``text-generation``, pictures to ``multimodal-generation``.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from wan_core.llm.chat import Message
from wan_core.llm.transport import Reply

if TYPE_CHECKING:
    from PIL.Image import Image

_JPEG_QUALITY = 90
_SEEDS = 2**31  # DashScope's


class Dialect(Protocol):
    """What differs between protocols; an endpoint has one of its own, since it may learn."""

    def url(self, base: str, model: str, messages: Sequence[Message]) -> str:
        """Where a conversation is sent to."""
        ...

    def body(self, model: str, messages: Sequence[Message], seed: int, max_tokens: int) -> dict[str, Any]:
        """What is sent, as JSON data."""
        ...

    def amend(self, reply: Reply) -> bool:
        """Learn from a refusal; whether the same conversation is worth another try, once."""
        ...

    def choice(self, content: Mapping[str, Any]) -> Any:
        """What stands where the first choice is, None where nothing does."""
        ...

    def used(self, content: Mapping[str, Any]) -> Any:
        """What stands where the number of tokens is that the answer has."""
        ...


class OpenAIDialect:
    """OpenAI's chat completions, which most servers speak."""

    path = "/chat/completions"

    def __init__(self) -> None:
        self._limit_name = "max_tokens"

    def url(self, base: str, model: str, messages: Sequence[Message]) -> str:
        return base.removesuffix(self.path) + self.path

    def body(self, model: str, messages: Sequence[Message], seed: int, max_tokens: int) -> dict[str, Any]:
        said = [{"role": each.role, "content": self._content(each)} for each in messages]
        return {"model": model, "messages": said, "seed": seed, self._limit_name: max_tokens}

    def amend(self, reply: Reply) -> bool:
        """Models that think call the limit of tokens otherwise."""
        if reply.status != 400 or b"max_completion_tokens" not in reply.body or self._limit_name != "max_tokens":
            return False
        self._limit_name = "max_completion_tokens"
        return True

    def choice(self, content: Mapping[str, Any]) -> Any:
        return _first(content.get("choices"))

    def used(self, content: Mapping[str, Any]) -> Any:
        return _entry(content.get("usage"), "completion_tokens")

    def _content(self, message: Message) -> str | list[dict[str, Any]]:
        if not message.pictures:
            return _joined(message)
        return [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": data_url(part)}}
            for part in message.parts
        ]


class DashScopeDialect:
    """DashScope's own protocol, below an address such as https://dashscope.aliyuncs.com/api/v1."""

    def __init__(self) -> None:
        self._is_multimodal: bool | None = None  # None: what the conversation and the model's name say

    def url(self, base: str, model: str, messages: Sequence[Message]) -> str:
        return f"{base}/services/aigc/{'multimodal' if self._sees(model, messages) else 'text'}-generation/generation"

    def body(self, model: str, messages: Sequence[Message], seed: int, max_tokens: int) -> dict[str, Any]:
        is_multimodal = self._sees(model, messages)
        said = [{"role": each.role, "content": _parts(each) if is_multimodal else _joined(each)} for each in messages]
        parameters = {"result_format": "message", "seed": seed % _SEEDS, "max_tokens": max_tokens}
        return {"model": model, "input": {"messages": said}, "parameters": parameters}

    def amend(self, reply: Reply) -> bool:
        """Newer models take texts where pictures go, whatever their name is; the server tells ``url error``."""
        if reply.status != 400 or b"url error" not in reply.body or self._is_multimodal is not None:
            return False
        self._is_multimodal = True
        return True

    def choice(self, content: Mapping[str, Any]) -> Any:
        return _first(_entry(content.get("output"), "choices"))

    def used(self, content: Mapping[str, Any]) -> Any:
        return _entry(content.get("usage"), "output_tokens")

    def _sees(self, model: str, messages: Sequence[Message]) -> bool:
        return bool(self._is_multimodal) or "-vl" in model.lower() or any(each.pictures for each in messages)


def data_url(picture: Image) -> str:
    """A picture as JPEG in a ``data:`` address."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def text_of(content: Any) -> str:
    """The text of an answer's content: a string, or the text parts of a list."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    parts = (part.get("text") for part in content if isinstance(part, dict) and part.get("type", "text") == "text")
    return "".join(part for part in parts if isinstance(part, str))


def _joined(message: Message) -> str:
    return "\n".join(str(part) for part in message.parts)


def _parts(message: Message) -> list[dict[str, str]]:
    return [{"text": part} if isinstance(part, str) else {"image": data_url(part)} for part in message.parts]


def _first(values: Any) -> Any:
    return values[0] if isinstance(values, list) and values else None


def _entry(values: Any, name: str) -> Any:
    return values.get(name) if isinstance(values, dict) else None
