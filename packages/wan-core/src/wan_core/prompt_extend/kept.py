"""Extended prompts kept in a file, so that a run that goes on, or comes again, does not ask again."""

import json
from pathlib import Path
from typing import Any

from wan_core.drafts import write_text
from wan_core.errors import RequestError
from wan_core.files import check_place, plain_text, read_text

_FORMAT = "wan-core/extended-prompts/1"


class KeptPrompts:
    """A JSON file of extended prompts, by the digest of what was asked.

    Raises RequestError for a file of something else, and what `wan_core.files.check_place` does.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, dict[str, Any]] = {}
        if path.exists():
            self._entries = _read(path)
        else:
            check_place(path)

    def get(self, key: str) -> str | None:
        """What was answered to this, None where it was not asked."""
        entry = self._entries.get(key)
        return None if entry is None else str(entry["extended"])

    def put(self, key: str, prompt: str, extended: str) -> None:
        """Keep an answer, at once. Raises MediaError where the disk refuses."""
        self._entries[key] = {"prompt": prompt, "extended": extended}
        content = {"format": _FORMAT, "prompts": self._entries}
        write_text(self._path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError):
        content = None
    entries = content.get("prompts") if isinstance(content, dict) and content.get("format") == _FORMAT else None
    if not isinstance(entries, dict) or not all(_is_entry(each) for each in entries.values()):
        raise RequestError(f"{plain_text(path)} is no file of extended prompts; name another one")
    return entries


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("extended"), str) and bool(entry["extended"].strip())
