"""The command line that makes an output again, from the record of how it was made."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

from wan_core.media import Provenance, plain_text

# What the machine was, where it changes the numbers; everything else in the record is for people.
_RECORD_OPTIONS = ("checkpoint", "dtype", "noise_device", "cfg", "tea_cache", "vae_dtype", "lora", "force_lora")

# Request fields whose option has another name; width, height and the ones below are put together by hand.
_OPTIONS = {
    "num_frames": "frame-num",
    "num_inference_steps": "sample-steps",
    "flow_shift": "sample-shift",
    "solver": "sample-solver",
    "guidance_scale": "sample-guide-scale",
    "checkpoint": "ckpt-dir",
}

_NEVER_OPTIONS = frozenset({"save_file", "output", "task", "prompt_file", "width", "height"})

_TEXTS = frozenset({"prompt", "negative_prompt"})
_FOLDERS = re.compile(r"^((?:high|low)=)?.*[/\\]")

_OPTION = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")

_REPEATED = frozenset({"--lora"})


def command_line(provenance: Provenance) -> str:
    """The shell command that makes the output again, every value quoted, control characters taken out.

    Files are named without their folders, whatever the record says. Output names are never taken over from it, and a
    name that is no plain option is left out.
    """
    settings = dict(provenance.settings)
    words = ["wan", "generate", plain_text(provenance.preset).lstrip("-")]
    words += _option("prompt", settings.pop("prompt", None))
    width, height = settings.pop("width", None), settings.pop("height", None)
    if isinstance(width, int) and isinstance(height, int):
        words += _option("size", f"{width}*{height}")
    for name, value in settings.items():
        words += _option(name, value)
    for name in _RECORD_OPTIONS:
        words += _option(name, provenance.record.get(name))
    tiled = provenance.record.get("vae_tiling")
    if isinstance(tiled, list) and tiled:
        words += _option("vae_tiling", "on" if len(tiled) > 1 else tiled[0])
    parts = provenance.record.get("parts")
    for name, place in (parts if isinstance(parts, Mapping) else {}).items():
        words += ["--part", plain_text(f"{name}={place}")]
    return shlex.join(words)


def _option(name: str, value: Any) -> list[str]:
    if value is None or value is False or name.replace("-", "_") in _NEVER_OPTIONS or not _OPTION.fullmatch(name):
        return []
    option = f"--{_OPTIONS.get(name, name).replace('_', '-')}"
    if value is True:
        return [option]
    if isinstance(value, Mapping):
        value = [value["low"], value["high"]] if set(value) == {"low", "high"} else []
    if isinstance(value, list):
        return _list_option(option, value)
    text = plain_text(value) if name in _TEXTS else _file_name(value)
    return [f"{option}={text}"] if text.startswith("-") else [option, text]


def _list_option(option: str, values: list[Any]) -> list[str]:
    """Numbers joined by commas, words one by one; nothing for an empty or a nested list."""
    if not values or any(isinstance(value, list | Mapping) for value in values):
        return []
    if all(isinstance(value, int | float) for value in values):
        return [option, ",".join(str(value) for value in values)]
    words = [_not_an_option(_file_name(value)) for value in values]
    return [part for word in words for part in (option, word)] if option in _REPEATED else [option, *words]


def _file_name(value: Any) -> str:
    """A value without the folders of a path: a record may be a stranger's."""
    return _FOLDERS.sub(r"\1", plain_text(value))


def _not_an_option(text: str) -> str:
    return f"./{text}" if text.startswith("-") else text
