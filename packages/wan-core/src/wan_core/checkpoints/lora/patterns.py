"""Regular expressions from strangers' files, matched as peft matches them, in a bounded number of steps.

Python's matcher tries one way after the other, and a few characters can keep it busy for ever. Here every part of an
expression takes the set of all places where the text before it can end to the set of places where it can end itself.
"""

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from wan_core.errors import CheckpointError

_MAX_PATTERNS, _MAX_LENGTH, _MAX_STEPS = 5_000, 1_000, 5_000_000
# Without these there is one way at most to match a pattern, and Python's own matcher is quick.
_CHOICES = re.compile(r"[*+?{|]")
_PARSER = import_module("re._parser")
_CHARACTERS = {"LITERAL", "NOT_LITERAL", "ANY", "IN"}


class PatternTable:
    """Values by regular expressions over module names, as in peft's ``alpha_pattern`` and ``rank_pattern``.

    Raises CheckpointError naming ``where`` for what is no regular expression, has a construct whose cost has no bound
    (backreferences, looking behind, flags), or is out of proportion.
    """

    def __init__(self, values: Mapping[str, float], where: str) -> None:
        if len(values) > _MAX_PATTERNS:
            raise CheckpointError(f"{where} has {len(values)} patterns, at most {_MAX_PATTERNS} make sense")
        self._where = where
        self._steps = 0
        self._values = dict(values)
        self._compiled = {pattern: self._compile(pattern) for pattern in values}

    def get(self, name: str) -> float | None:
        """The value of the first pattern that is ``name`` or what follows one of its dots, as in peft 0.21.

        None where no pattern matches. Raises CheckpointError when the patterns take too many steps.
        """
        for pattern, compiled in self._compiled.items():
            self._spend(2, pattern)
            if isinstance(compiled, re.Pattern):
                found = compiled.match(name) is not None
            else:
                starts = {0} | {place + 1 for place, letter in enumerate(name) if letter == "."}
                found = bool(self._ends(compiled, name, starts, pattern))
            if found:
                return self._values[pattern]
        return self._values.get(name)

    def _compile(self, pattern: str) -> Any:
        if len(pattern) > _MAX_LENGTH:
            raise CheckpointError(
                f"{self._where}: a pattern of {len(pattern)} characters is too long: {pattern[:40]!r}"
            )
        try:
            re.compile(pattern)
            if _CHOICES.search(pattern) is None:
                return re.compile(rf"(.*\.)?({pattern})$")
            return _PARSER.parse(rf"()({pattern})$").data  # as many groups as above
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckpointError(f"{self._where}: {pattern[:80]!r} is no regular expression: {error}") from error

    def _ends(self, parts: Any, text: str, places: set[int], pattern: str) -> set[int]:
        """Where ``parts`` can end when they begin at any of ``places``."""
        for op, argument in parts:
            self._spend(len(places) + 1, pattern)
            if not places:
                break
            if op.name in _CHARACTERS:
                places = {at + 1 for at in places if at < len(text) and _is_one(op.name, argument, text[at])}
            elif op.name == "AT":
                places = {at for at in places if _is_at(argument.name, text, at)}
            else:
                places = self._inner_ends(op.name, argument, text, places, pattern)
        return places

    def _inner_ends(self, kind: str, argument: Any, text: str, places: set[int], pattern: str) -> set[int]:
        """The same for a part that has parts."""
        if kind in ("MAX_REPEAT", "MIN_REPEAT"):
            return self._repeated(argument, text, places, pattern)
        if kind == "BRANCH":
            return set().union(*(self._ends(branch, text, places, pattern) for branch in argument[1]))
        if kind == "SUBPATTERN" and not (argument[1] or argument[2]):  # which would be flags
            return self._ends(argument[-1], text, places, pattern)
        if kind in ("ASSERT", "ASSERT_NOT") and argument[0] == 1:  # 1 is ahead, -1 behind
            wanted = kind == "ASSERT"
            return {at for at in places if bool(self._ends(argument[1], text, {at}, pattern)) == wanted}
        named = kind.lower().replace("_", " ")
        raise CheckpointError(f"{self._where}: {pattern[:80]!r} uses {named}, which is not read here")

    def _repeated(self, argument: Any, text: str, places: set[int], pattern: str) -> set[int]:
        least, most, parts = argument
        for _ in range(least):
            before, places = places, self._ends(parts, text, places, pattern)
            if places == before:
                break
        found, new, count = set(places), places, least
        while new and count < most:
            new = self._ends(parts, text, new, pattern) - found
            found |= new
            count += 1
        return found

    def _spend(self, steps: int, pattern: str) -> None:
        self._steps += steps
        if self._steps > _MAX_STEPS:
            raise CheckpointError(f"{self._where}: its patterns take too long to match, {pattern[:80]!r} among them")


def _is_one(kind: str, argument: Any, letter: str) -> bool:
    if kind == "ANY":
        return letter != "\n"
    if kind == "IN":
        negated = argument[0][0].name == "NEGATE"
        return bool(negated != any(_is_in(op.name, value, letter) for op, value in argument[negated:]))
    return bool(ord(letter) == argument) == (kind == "LITERAL")


def _is_in(kind: str, argument: Any, letter: str) -> bool:
    if kind == "RANGE":
        return bool(argument[0] <= ord(letter) <= argument[1])
    if kind == "CATEGORY":
        negated = "NOT_" in argument.name
        return bool(negated != _CATEGORIES[argument.name.replace("NOT_", "")](letter))
    return bool(ord(letter) == argument)


def _is_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"


_CATEGORIES = {"CATEGORY_DIGIT": str.isdecimal, "CATEGORY_SPACE": str.isspace, "CATEGORY_WORD": _is_word}


def _is_at(kind: str, text: str, place: int) -> bool:
    if kind == "AT_END":
        return text[place:] in ("", "\n")
    if kind == "AT_END_STRING":
        return place == len(text)
    if kind in ("AT_BOUNDARY", "AT_NON_BOUNDARY"):
        beside = [_is_word(letter) for letter in text[max(0, place - 1) : place + 1]]
        edges = beside if 0 < place < len(text) else [*beside, False]
        return (len(set(edges)) == 2) == (kind == "AT_BOUNDARY")
    return place == 0
