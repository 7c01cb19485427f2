"""The sample JSON, which every step of the chain reads and writes: sample ids to pictures, prompts and states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from wan_core import RequestError
from wan_core.drafts import write_text
from wan_core.files import damage_of, existing_file, plain_text, read_text, unique_keys

_MAX_ID_BYTES = 200
"""File systems take 255 for a name, and an id gets an ending, such as that of its states."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One video: its id, pictures relative to the picture folder, prompt, and files of states as they are written.

    ``values`` are all keys of its object, so that what is not read here is kept.
    """

    name: str
    images: tuple[str, ...]
    prompt: str
    hidden_states: str | None = None
    hidden_states_negative: str | None = None
    values: Mapping[str, Any]


def read_samples(path: Path) -> dict[str, Sample]:
    """The samples of a file in the order of their ids, which is that in which they are made.

    Raises RequestError for a file that is no such JSON, naming the sample and the key.
    """
    content = read_object(path, "samples by their ids")
    return {name: sample_of(plain_text(path), name, content[name]) for name in sorted(content)}


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object, which is not empty, of a file; ``what`` says of what it is.

    Raises RequestError, also for half characters and numbers that are not finite: no file could hold them again.
    """
    try:
        content = json.loads(read_text(path), object_pairs_hook=unique_keys)
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise RequestError(f"{plain_text(path)} has half a character, {half}; write that text anew") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{plain_text(path)} is no JSON: {str(error)[:80]}") from error
    if not isinstance(content, dict) or not content:
        raise RequestError(f"{plain_text(path)} must hold an object of {what}")
    return content


def write_samples(path: Path, samples: Mapping[str, Mapping[str, Any]]) -> None:
    """Write samples as the original does, in one step. Raises MediaError when the disk refuses."""
    write_text(path, json.dumps(samples, indent=4, ensure_ascii=False) + "\n")


def read_inputs(source: Path, pictures: Path, output: Path) -> dict[str, Sample]:
    """The samples of a file, whose pictures are in a folder, before ``output`` is made of them.

    Raises RequestError as `read_samples`, and where the output would be written over what it is made of.
    """
    from wan_core.media import check_own_files

    samples = read_samples(existing_file(source, "sample file"))
    if output.suffix.lower() != ".json":
        raise RequestError(f"--output is a sample file and ends in .json, got {plain_text(output)}")
    check_own_files([output], [source, *(pictures / image for each in samples.values() for image in each.images)])
    return samples


def safe_path(text: str, what: str) -> Path:
    """A path from a file of somebody else: without a step out of its folder. Raises RequestError."""
    if ".." in (*PurePosixPath(text).parts, *PureWindowsPath(text).parts):
        raise RequestError(f"{what} is {plain_text(text)[:200]!r}; paths with .. are refused")
    if damage_of(text):
        raise RequestError(f"{what} is {ascii(text)[:200]}, of which letters are lost; rename the file")
    return Path(text)


def sample_of(shown: str, name: str, value: Any, *, pictures: str = "img_paths") -> Sample:
    """A sample of the file that is ``shown`` as such; ``pictures`` is the key of its pictures. Raises RequestError."""
    where = f"{shown}, sample {plain_text(name)[:80]!r}"
    _check_id(where, name)
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be an object with {pictures} and prompt")
    images, prompt = value.get(pictures), value.get("prompt")
    states = [_state_path(where, value, key) for key in ("hidden_states_path", "hidden_states_path_negative")]
    if not isinstance(images, list) or not images or not all(isinstance(image, str) and image for image in images):
        raise RequestError(f"{where}: {pictures} must be a list of one path or more")
    if not isinstance(prompt, str) or not prompt.strip() or damage_of(prompt):
        raise RequestError(f"{where}: prompt must be a text that is not empty")
    if not isinstance(value.get("prompt_old", ""), str):
        raise RequestError(f"{where}: prompt_old must be a text")
    for image in images:
        safe_path(image, f"{where}: a path")
    return Sample(
        name=name,
        images=tuple(images),
        prompt=prompt,
        hidden_states=states[0],
        hidden_states_negative=states[1],
        values=value,
    )


def _check_id(where: str, name: str) -> None:
    if name in ("", ".", "..") or {PurePosixPath(name).name, PureWindowsPath(name).name} != {name}:
        raise RequestError(f"{where}: an id names a file, so it has no slashes and is not empty")
    if plain_text(name) != name or damage_of(name) or len(name.encode()) > _MAX_ID_BYTES:
        raise RequestError(f"{where}: an id names a file, so it is one line of at most {_MAX_ID_BYTES} bytes")


def _state_path(where: str, value: Mapping[str, Any], key: str) -> str | None:
    """A file of states; "" and null are none."""
    path = value.get(key) or None
    if path is not None and not isinstance(path, str):
        raise RequestError(f"{where}: {key} must be a path")
    return path and str(safe_path(path, f"{where}: a path"))
