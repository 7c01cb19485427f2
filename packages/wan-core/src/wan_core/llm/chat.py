"""What is said to a language model and what it answers, wherever it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: texts and pictures (RGB), in the order in which they are read."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Image, ...]

    @property
    def pictures(self) -> tuple[Image, ...]:
        """The pictures among the parts."""
        return tuple(part for part in self.parts if not isinstance(part, str))


@dataclass(frozen=True)
class Answer:
    """What a model answered: never empty, never cut off.

    ``model`` is the name under which it was asked, ``reasoning`` what it thought before, where it tells.
    """

    text: str
    model: str
    seed: int
    reasoning: str = ""


class Chat(Protocol):
    """A language model that can be asked. ``name`` is what records call it; it holds no secrets."""

    @property
    def name(self) -> str: ...

    def complete(self, messages: Sequence[Message], *, seed: int = 0) -> Answer:
        """The model's next turn; one ``seed`` gives one answer, as far as the model keeps its promise.

        Raises BackendError when this conversation got no whole answer, ConfigError when none will get one.
        """
        ...
