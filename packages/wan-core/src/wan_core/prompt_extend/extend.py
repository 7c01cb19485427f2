"""Asking for the extended prompt: what is sent, what is taken of the answer, and what is told of it afterwards."""

from __future__ import annotations

import gc
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core.errors import BackendError, ConfigError, RequestError, WanError
from wan_core.files import damage_of, plain_text
from wan_core.llm import Chat, Message
from wan_core.prompt_extend.instructions import INSTRUCTIONS, REFUSED, instruction_for
from wan_core.prompt_extend.kept import KeptPrompts
from wan_core.prompt_extend.methods import ChosenModel, ExtendOptions

if TYPE_CHECKING:
    from PIL.Image import Image

_MAX_AREA = 512 * 512
_SEEDS = 2**31
_THOUGHT = "<think>", "</think>"
_QUOTES = {'"': '"', "\u201c": "\u201d", "\u300c": "\u300d"}
_SHOWN = {"en": "Here is the picture.", "zh": "图片如上。"}
TO_COME = "(a prompt that a language model writes)"
"""What stands for a prompt in the plan of a video whose prompt is empty."""


class _RefusedError(RequestError):
    """The language model will not extend this prompt; no fallback helps."""


@dataclass(frozen=True, kw_only=True)
class Idea:
    """A prompt to extend: ``kind`` is its task's (`Task.prompt_kind`), ``images`` what the video shows, in order.

    ``seed`` is that of the answer. Raises RequestError as :func:`instruction_for`.
    """

    prompt: str
    kind: str
    images: tuple[Path | Image, ...] = ()
    seed: int = 0
    instruction: str = field(init=False)

    def __post_init__(self) -> None:
        is_empty = not self.prompt.strip()
        found = instruction_for(self.kind, has_images=bool(self.images), is_empty=is_empty)
        object.__setattr__(self, "instruction", found)

    @cached_property
    def pictures(self) -> tuple[Image, ...]:
        """The images, read. Raises MediaError."""
        from wan_core.media import load_image

        return tuple(load_image(each) if isinstance(each, Path) else each.convert("RGB") for each in self.images)


@dataclass(frozen=True, kw_only=True)
class Extension:
    """What became of a prompt: ``prompt`` is the one to use, ``error`` why it is still the ``original``."""

    original: str
    prompt: str
    facts: Mapping[str, Any]
    error: str | None = None

    def record(self) -> dict[str, Any]:
        """What is kept with a video: the original, and by what it was extended; no secrets."""
        failed = {} if self.error is None else {"failed": self.error}
        return {"prompt": self.original, **self.facts, **failed}


def reduced_size(width: int, height: int, max_area: int = _MAX_AREA) -> tuple[int, int]:
    """(width, height) of about the same shape with at most about ``max_area`` pixels; small ones stay."""
    area = min(width * height, max_area)
    return max(1, round(math.sqrt(area * width / height))), max(1, round(math.sqrt(area * height / width)))


class Extender:
    """Extends prompts by one language model, which is opened at the first and leaves memory after the last.

    ``kept`` is what earlier runs were answered.
    """

    def __init__(
        self,
        chosen: ChosenModel,
        options: ExtendOptions,
        *,
        kept: KeptPrompts | None = None,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.chosen = chosen
        self._options = options
        self._kept = kept
        self._log = log

    @property
    def facts(self) -> dict[str, Any]:
        """Method, model and language, for records and plans."""
        chosen, options = self.chosen, self._options
        return {"method": options.method, "model": chosen.name, "language": options.language}

    def check(self, idea: Idea) -> None:
        """Raises ConfigError for an idea without words where the model sees no pictures."""
        if idea.instruction == "i2v-empty" and self.chosen.sees is False:
            raise ConfigError(
                f"{self.chosen.name} sees no pictures, and the prompt is empty; write one, or take a model that sees, "
                "such as QwenVL2.5_7B of local_qwen"
            )

    def messages(self, idea: Idea) -> list[Message]:
        """What is sent: the instruction, then the pictures, as small as an endpoint needs them, and the prompt."""
        language = self._options.language
        pictures: tuple[Image, ...] = () if self.chosen.sees is False else idea.pictures
        if not self.chosen.is_local:
            pictures = tuple(_reduced(each) for each in pictures)
        words = idea.prompt.strip() or _SHOWN[language]
        return [
            Message("system", (INSTRUCTIONS[idea.instruction, language],)),
            Message("user", (*pictures, words)),
        ]

    def extend(self, ideas: Sequence[Idea], device: str = "cpu") -> list[Extension]:
        """Each idea's extension; equal ones are asked once, with the seed of the first. A local model is on ``device``.

        Raises BackendError, CheckpointError or ConfigError where the model gave no answer and there is no fallback;
        RequestError where it refuses.
        """
        opened = cache(lambda: self.chosen.open(device))
        made: dict[str, Extension] = {}
        results = []
        try:
            for idea in ideas:
                messages = self.messages(idea)
                key = self._key(messages)
                if key not in made:
                    made[key] = self._extended(idea, messages, key, opened)
                results.append(made[key])
        finally:
            opened.cache_clear()
            if self.chosen.is_local:
                _release(device)
        return results

    def _extended(self, idea: Idea, messages: Sequence[Message], key: str, opened: Callable[[], Chat]) -> Extension:
        seed = idea.seed % _SEEDS
        images = len(messages[-1].pictures)
        facts = {**self.facts, "seed": seed, "instruction": idea.instruction, "images": images}
        kept = None if self._kept is None else self._kept.get(key)
        if kept is not None:
            return Extension(original=idea.prompt, prompt=kept, facts=facts)
        try:
            text = _cleaned(opened().complete(messages, seed=seed).text, self.chosen.name)
        except WanError as error:
            if isinstance(error, _RefusedError) or not self._options.fallback or not idea.prompt.strip():
                raise
            self._log(f"note: the prompt stays as it is, for it could not be extended: {error}")
            return Extension(original=idea.prompt, prompt=idea.prompt, facts=facts, error=str(error))
        if self._kept is not None:
            self._kept.put(key, idea.prompt, text)
        return Extension(original=idea.prompt, prompt=text, facts=facts)

    def _key(self, messages: Sequence[Message]) -> str:
        """What is asked, and whom, as a digest; not the seed, for any answer to it will do."""
        said = [
            [part if isinstance(part, str) else [part.size, hashlib.sha256(part.tobytes()).hexdigest()]]
            for message in messages
            for part in message.parts
        ]
        asked = [self._options.method, self.chosen.name, self.chosen.url, said]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _reduced(image: Image) -> Image:
    size = reduced_size(*image.size)
    return image if size == image.size else image.resize(size)


def _cleaned(answer: str, model: str) -> str:
    """An answer as a prompt: one line, without thoughts and the quotation marks around all of it.

    Raises BackendError where nothing is left, RequestError for a refusal.
    """
    begins, ends = _THOUGHT
    # Many chat templates begin the thought themselves: the answer then only ends it. One that does not end is cut off.
    text = " ".join(answer.rpartition(ends)[2].partition(begins)[0].split())
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    if not text or damage_of(text) is not None:
        raise BackendError(f"{plain_text(model)} answered with nothing that is a prompt")
    if text.lower().strip(".\u3002") == REFUSED:
        raise _RefusedError(f"{plain_text(model)} refuses to extend this prompt; change it")
    return text


def _release(device: str) -> None:
    """Give back what a local model had on the device."""
    import torch

    from wan_core.runtime import release_cached_memory

    gc.collect()
    release_cached_memory(torch.device(device))
