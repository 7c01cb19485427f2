"""The sample JSON that every step reads and writes: ids of samples to their prompt and pictures.

It is the original's: UTF-8, one object, sorted keys, four blanks. Keys that a step does not know stay.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from wan_core import RequestError
from wan_core.drafts import write_text
from wan_core.files import damage_of, existing_file, plain_text, read_text, unique_keys

_MAX_NAME = 150


@dataclass(frozen=True)
class Sample:
    """One sample: its id and all its ``values``, checked where they are used."""

    name: str
    values: Mapping[str, Any]

    @property
    def prompt(self) -> str:
        """What the video shows, the refined prompt where there is one."""
        prompt: str = self.values["prompt"]
        return prompt

    def pictures_in(self, folder: Path) -> list[Path]:
        """Its pictures, which lie below ``folder``, in their order; they need not be there."""
        return [folder / name for name in self.values["img_paths"]]


def read_samples(path: Path) -> dict[str, Sample]:
    """The samples of a file by id, in sorted order.

    Raises RequestError naming the sample for what is no such file: an id that is no file name, a prompt that is no
    text, pictures that are no list of paths below the pictures' folder.
    """
    existing_file(path, "sample file")
    try:
        content = json.loads(read_text(path), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{plain_text(path)} is no JSON: {plain_text(error)[:120]}") from error
    if not isinstance(content, dict) or not content:
        raise RequestError(
            f'{plain_text(path)} must be an object of samples: {{"id": {{"prompt": ..., "img_paths": []}}}}'
        )
    return {name: _checked(path, name, content[name]) for name in sorted(content)}


def _checked(path: Path, name: str, values: Any) -> Sample:
    fault = _fault_of_name(name) or _fault_of(values)
    if fault:
        raise RequestError(f"{plain_text(path)}, sample {plain_text(name)[:60]!r}: {fault}")
    return Sample(name, values)


def _fault_of_name(name: str) -> str:
    is_file = name not in ("", ".", "..") and not set("/\\") & set(name)
    if is_file and plain_text(name) == name and len(name) <= _MAX_NAME:
        return ""
    return "its id names files and cannot be one; take letters, digits and _"


def _fault_of(values: Any) -> str:
    """What is wrong with the values of a sample, or ""."""
    if not isinstance(values, dict):
        return "it must be an object with prompt and img_paths"
    prompt, paths = values.get("prompt"), values.get("img_paths")
    if not isinstance(prompt, str) or not prompt.strip() or damage_of(prompt):
        return "its prompt must be a text"
    if not isinstance(paths, list) or not paths or not all(isinstance(each, str) and each for each in paths):
        return "its img_paths must be a list of one or more file names"
    outside = next((each for each in paths if _leads_out(each)), None)
    if outside is not None:
        return f"{plain_text(outside)} leads out of the folder of pictures; give a path below it"
    return "" if isinstance(values.get("prompt_old", ""), str) else "its prompt_old must be a text"


def _leads_out(path: str) -> bool:
    return ".." in PurePosixPath(path).parts or path.startswith(("/", "\\")) or "\0" in path


def write_samples(path: Path, samples: Mapping[str, Mapping[str, Any]]) -> None:
    """Write samples, sorted, whole or not at all. Raises MediaError when the disk refuses."""
    write_text(path, json.dumps(dict(sorted(samples.items())), indent=4, ensure_ascii=False) + "\n")


def check_new_file(output: Path, *inputs: Path) -> None:
    """Raises RequestError where a result would be written over what it is made of."""
    for given in inputs:
        if os.path.realpath(output) == os.path.realpath(given):
            raise RequestError(f"{plain_text(output)} is the input; write the result into another file")
