"""How an output was made: kept inside the file, read back, and turned into the command that makes it again.

What a record may hold is decided here, for records that are written and for those that come out of a stranger's file:
file names without folders, no secrets, plain JSON values.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image

from wan_core.errors import MediaError, RequestError
from wan_core.files import DECODE_ERRORS, existing_file, plain_text, read_error
from wan_core.media.tags import read_text

_FORMAT = "wan-core/1"
_SECRET = re.compile(
    r"(^|[_-])(key|token|secret|passwd|password|auth|authorization|credentials?|cookie)$", re.IGNORECASE
)
_FREE_TEXT = frozenset({"prompt", "negative_prompt"})
_MAX_DEPTH = 8
# Of a record: where it was made, and names of what ``weights`` knows by content, how a prompt came about.
_OF_NO_MATTER = frozenset({"torch", "device", "attention", "checkpoint", "parts", "inputs", "weights", "prompt_extend"})


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The record of one output. ``settings`` is the request (by field name), ``record`` what else was in play.

    The record's ``inputs`` and ``weights`` name files by their content: those of settings, and those of parts.
    Both hold plain JSON values; paths are cut to their last part, entries whose name speaks of a secret are dropped,
    prompts stay as they are.
    """

    preset: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    tool_version: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", _clean_mapping(self.settings))
        object.__setattr__(self, "record", _clean_mapping(self.record))

    @classmethod
    def of(cls, *, preset: str, settings: Mapping[str, Any], record: Mapping[str, Any] | None = None) -> "Provenance":
        """A record made now: the versions of wan-core and torch are added."""
        versions = {"torch": _version("torch")}
        return cls(
            preset=preset, settings=settings, record={**versions, **(record or {})}, tool_version=_version("wan-core")
        )

    def to_json(self) -> str:
        """One line of ASCII JSON; the same record always gives the same text."""
        return json.dumps(
            {
                "format": _FORMAT,
                "version": self.tool_version,
                "preset": self.preset,
                "settings": dict(self.settings),
                "record": dict(self.record),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Provenance":
        """The record in ``text``. Raises ``ValueError`` when there is none."""
        try:
            data = json.loads(text)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise ValueError(f"no {_FORMAT} record")
        preset, settings, record = data.get("preset"), data.get("settings"), data.get("record", {})
        if not isinstance(preset, str) or not isinstance(settings, dict) or not isinstance(record, dict):
            raise ValueError(f"a {_FORMAT} record without preset and settings")
        return cls(preset=preset, settings=settings, record=record, tool_version=str(data.get("version", "")))

    def differences(self, wanted: "Provenance") -> list[str]:
        """Names of what decides how an output looks and is not the same in the other record; the machine does not."""
        ours, theirs = self._facts(), wanted._facts()
        return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))

    def fingerprint(self) -> str:
        """A short name of what decides how an output looks."""
        return hashlib.sha256(json.dumps(self._facts(), sort_keys=True).encode()).hexdigest()[:16]

    def _facts(self) -> dict[str, Any]:
        inputs, weights = (_mapping(self.record.get(name)) for name in ("inputs", "weights"))
        return {
            "preset": self.preset,
            **{name: value for name, value in self.record.items() if name not in _OF_NO_MATTER},
            **{f"weights of {name}": value for name, value in weights.items()},
            **self.settings,
            **inputs,  # in the place of files' names
        }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _clean_mapping(values: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    return {
        str(name): value if name in _FREE_TEXT and isinstance(value, str) else _clean(value, depth + 1)
        for name, value in values.items()
        if not _SECRET.search(str(name))
    }


def _clean(value: Any, depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        return None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return _clean_mapping(value, depth)
    if isinstance(value, list | tuple):
        return [_clean(item, depth + 1) for item in value]
    return _without_folders(os.fspath(value) if isinstance(value, os.PathLike) else str(value))


def _without_folders(text: str) -> str:
    """The last part of anything that is or contains an absolute or home path."""
    home = os.path.expanduser("~")  # stays as it is where nobody knows the home
    if PurePosixPath(text).is_absolute() or text.startswith("~"):
        return PurePosixPath(text).name
    if PureWindowsPath(text).is_absolute():
        return PureWindowsPath(text).name
    return text.replace(home, "~") if len(home) > 1 else text


def read_provenance(path: str | os.PathLike[str]) -> Provenance:
    """How a file was made. A ``%04d.png`` pattern stands for its first image.

    Raises ``RequestError`` when there is no such file, ``MediaError`` when it is unreadable or has no record.
    """
    file = _first_of_pattern(path)
    try:
        text = read_text(file)
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise read_error(file, "file", error) from error
    try:
        return Provenance.from_json(text or "")
    except ValueError as error:
        raise MediaError(
            f"{plain_text(file)} does not say how it was made; only files that wan wrote without --no-metadata do"
        ) from error


def _first_of_pattern(path: str | os.PathLike[str]) -> Path:
    name = os.fspath(path)
    if not os.path.exists(name) and re.search(r"%0?[1-9]?d", Path(name).name):
        try:
            name = os.path.join(os.path.dirname(name), Path(name).name % 0)
        except (TypeError, ValueError) as error:
            raise RequestError(f"{plain_text(path)} needs exactly one %d or %04d in the file name") from error
    return existing_file(name, "file")
