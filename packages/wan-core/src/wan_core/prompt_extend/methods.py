"""Which language model extends prompts, decided without a network: its name, whether it sees, how it is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wan_core.errors import ConfigError
from wan_core.files import plain_text

if TYPE_CHECKING:
    from wan_core.llm import Chat

METHODS = ("dashscope", "local_qwen", "openai")

LOCAL_MODELS: Mapping[str, str] = {
    "QwenVL2.5_3B": "Qwen/Qwen2.5-VL-3B-Instruct",
    "QwenVL2.5_7B": "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen2.5_3B": "Qwen/Qwen2.5-3B-Instruct",
    "Qwen2.5_7B": "Qwen/Qwen2.5-7B-Instruct",
    "Qwen2.5_14B": "Qwen/Qwen2.5-14B-Instruct",
}
"""The original's short names of local models."""

_DEFAULTS = {"dashscope": ("qwen-plus", "qwen-vl-max"), "local_qwen": ("Qwen2.5_14B", "QwenVL2.5_7B")}
_TEXT_ONLY = {"qwen-plus", "qwen-max", "qwen-turbo", "qwen-long"}
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOCAL_TOKENS, _REMOTE_TOKENS = 512, 2000


@dataclass(frozen=True, kw_only=True)
class ExtendOptions:
    """How prompts are extended.

    ``model`` None is the method's own default; ``language`` that of the result, zh or en; with ``fallback`` a prompt
    whose extension fails stays as it is; ``timeout`` in seconds for one try at an endpoint; ``max_tokens`` the longest
    answer (None: 512 here, 2000 at an endpoint).
    """

    method: str = "local_qwen"
    model: str | None = None
    language: str = "zh"
    fallback: bool = False
    timeout: float = 60.0
    max_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class ChosenModel:
    """A language model that can be opened: ``name`` is what it was called, for records; it holds no secrets.

    ``sees`` is None where only asking tells; ``url`` is that of an endpoint. ``open`` takes the device.
    """

    method: str
    name: str
    sees: bool | None
    open: Callable[[str], Chat] = field(repr=False)
    url: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine, and then on the device of the video model."""
        return self.url is None


def choose_model(options: ExtendOptions, *, has_images: bool, environ: Mapping[str, str] = os.environ) -> ChosenModel:
    """The model that these options and the environment mean. Nothing is sent, no weight is read.

    Raises ConfigError for a missing key, a malformed address, an unknown model; CheckpointError for a folder without a
    language model.
    """
    if options.method not in METHODS:
        raise ConfigError(f"prompts are extended by {', '.join(METHODS)}; got {options.method!r}")
    if options.method == "openai":
        if not (options.model or "").strip():
            raise ConfigError("name the endpoint's model with --prompt-extend-model")
        name = str(options.model)
    else:
        name = options.model or _DEFAULTS[options.method][has_images]
    if options.method == "local_qwen":
        return _local(name, options)
    from wan_core.llm import open_dashscope, open_endpoint

    tokens = options.max_tokens or _REMOTE_TOKENS
    if options.method == "dashscope":
        chat = open_dashscope(name, environ=environ, timeout=options.timeout, max_tokens=tokens)
    else:
        chat = open_endpoint(name, environ=environ, timeout=options.timeout, retries=3, max_tokens=tokens)
    sees = False if options.method == "dashscope" and name in _TEXT_ONLY else None
    return ChosenModel(method=options.method, name=name, sees=sees, open=lambda device: chat, url=chat.url)


def _local(name: str, options: ExtendOptions) -> ChosenModel:
    from wan_core.llm import sees_pictures

    place = LOCAL_MODELS.get(name, name)
    if Path(place).is_dir():
        sees: bool | None = sees_pictures(Path(place))
    elif _REPOSITORY.fullmatch(place):
        sees = "-vl-" in place.lower() if place in LOCAL_MODELS.values() else None
    else:
        raise ConfigError(
            f"there is no local language model {plain_text(name)}; take one of {', '.join(LOCAL_MODELS)}, a repository "
            "such as Qwen/Qwen2.5-7B-Instruct, or a folder"
        )

    def open_local(device: str) -> Chat:
        from wan_core.llm import LocalChat

        return LocalChat(place, device, max_tokens=options.max_tokens or _LOCAL_TOKENS)

    return ChosenModel(method="local_qwen", name=name, sees=sees, open=open_local)
