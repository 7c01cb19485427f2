"""Regular expressions from strangers' files, matched as peft matches them, for two seconds at most."""

import re
import time
from collections.abc import Mapping
from typing import Any

from wan_core.errors import CheckpointError

_MAX_PATTERNS, _MAX_LENGTH = 5_000, 1_000
_SECONDS = 2.0
"""For all matches of a table: a network of 14B with a hundred patterns takes a fraction of it."""


class PatternTable:
    """Values by regular expressions over module names, as in peft's ``alpha_pattern`` and ``rank_pattern``.

    They are matched by the package ``regex``, which can stop: Python's own ``re`` can be kept busy for ever by a few
    characters. Raises CheckpointError naming ``where`` for what is no regular expression or out of proportion.
    """

    def __init__(self, values: Mapping[str, float], where: str) -> None:
        if len(values) > _MAX_PATTERNS:
            raise CheckpointError(f"{where} has {len(values)} patterns, at most {_MAX_PATTERNS} make sense")
        self._where, self._left = where, _SECONDS
        self._values = dict(values)
        self._compiled = {pattern: self._compile(pattern) for pattern in values}

    def get(self, name: str) -> float | None:
        """The value of the first pattern that is ``name`` or what follows one of its dots, as in peft 0.21.

        None where no pattern matches. Raises CheckpointError when the patterns take too long.
        """
        for pattern, compiled in self._compiled.items():
            start = time.monotonic()
            try:
                found = compiled.match(name, timeout=max(self._left, 0.001))
            except (TimeoutError, MemoryError) as error:
                raise CheckpointError(
                    f"{self._where}: its patterns take too long to match, {pattern[:80]!r} among them"
                ) from error
            self._left -= time.monotonic() - start
            if found:
                return self._values[pattern]
        return self._values.get(name)

    def _compile(self, pattern: str) -> Any:
        import regex  # type: ignore[import-untyped]

        if len(pattern) > _MAX_LENGTH:
            raise CheckpointError(
                f"{self._where}: a pattern of {len(pattern)} characters is too long: {pattern[:40]!r}"
            )
        try:
            whole = rf"(.*\.)?({pattern})$"
            re.compile(whole)  # peft's own; the package knows more, which peft would refuse
            return regex.compile(whole, regex.VERSION0)
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise CheckpointError(f"{self._where}: {pattern[:80]!r} is no regular expression: {error}") from error
