"""What lies in a file or folder: each model's weights, recognised by the names of their tensors; headers are read."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wan_core.checkpoints.families import OTHER_TITLES, families, family_of, title_of
from wan_core.checkpoints.layout import TOKENIZER_FILES
from wan_core.checkpoints.readers.file_source import unreadable
from wan_core.checkpoints.readers.reader import read_weights
from wan_core.checkpoints.readers.shards import WeightFiles, weight_files
from wan_core.checkpoints.readers.sources import DerivedSource, Recipe, TensorSource
from wan_core.errors import CheckpointError

_MAX_DEPTH = 3
_MAX_ENTRIES = 5_000


@dataclass(frozen=True)
class Weights:
    """One model's weights. ``name`` is the path below the folder that was asked for (its own name for a file).

    ``family`` is a family of networks, ``lora``, or ``""`` when the names are not known.
    """

    path: Path
    name: str
    files: tuple[Path, ...]
    source: TensorSource
    family: str


@dataclass(frozen=True)
class Contents:
    """All weights of a path, tokenizer folders, and what could not be read as (name, reason)."""

    path: Path
    weights: tuple[Weights, ...]
    tokenizers: tuple[Path, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()

    def of(self, family: str) -> list[Weights]:
        """The weights of one family, in order of name."""
        return [weights for weights in self.weights if weights.family == family]


def find_weights(path: str | Path, *, mmap: bool | None = None) -> Contents:
    """The weights in a file, or in a folder and three levels below it.

    A file that cannot be read is an error by itself, and a note in a folder. Raises CheckpointError; also when a folder
    holds neither weights nor a tokenizer, or thousands of entries.
    """
    path = Path(path)
    if not path.is_dir():
        return Contents(path, tuple(_recognised(path, WeightFiles(path, (path,)), path.name, mmap)))
    found: list[Weights] = []
    tokenizers: list[Path] = []
    notes: list[tuple[str, str]] = []
    for folder in _folders(path):
        if any((folder / name).is_file() for name in TOKENIZER_FILES):
            tokenizers.append(folder)
        try:
            groups = weight_files(folder)
        except CheckpointError as error:
            notes.append((_below(path, folder), str(error)))
            continue
        for group in groups:
            # A folder with one model is called by its own name.
            name = _below(path, folder if len(groups) == 1 and len(group.files) > 1 else group.path)
            try:
                found += _recognised(path, group, name, mmap)
            except CheckpointError as error:
                notes.append((name, str(error)))
    order = [*(family.name for family in families()), *OTHER_TITLES]
    found.sort(key=lambda weights: order.index(weights.family))
    if not found and not tokenizers and not notes:
        raise CheckpointError(f"no weights in {path}: it holds no .safetensors, .pth, .pt, .bin, .ckpt or .gguf file")
    return Contents(path, tuple(found), tuple(tokenizers), tuple(notes))


def _recognised(root: Path, group: WeightFiles, name: str, mmap: bool | None) -> list[Weights]:
    """The weights of a file: one model, or each part of a whole model that it holds."""
    source = read_weights(group.path, mmap=mmap)
    name = name or root.name
    parts = {
        family.name: [key for key in source if key.startswith(family.single_prefixes)]
        for family in families()
        if family.single_prefixes
    }
    parts = {family: keys for family, keys in parts.items() if keys}
    if len(parts) < 2:
        return [Weights(group.path, name, group.files, source, family_of(source.keys()))]
    found = []
    for family, keys in parts.items():
        part = DerivedSource(source, {key: Recipe((key,), source.info(key)) for key in keys})
        if family_of(part.keys()) == family:
            found.append(Weights(group.path, f"{name} ({title_of(family)})", group.files, part, family))
    return found


def _below(root: Path, path: Path) -> str:
    name = path.relative_to(root).as_posix()
    return "" if name == "." else name


def _folders(root: Path) -> Iterator[Path]:
    """The folder and those below it, links to folders left out, in order of name."""
    count = 0

    def failed(error: OSError) -> None:
        raise unreadable(Path(error.filename or root), error)

    for folder, below, files in os.walk(root, onerror=failed):
        count += len(below) + len(files)
        if count > _MAX_ENTRIES:
            raise CheckpointError(f"{root} holds more than {_MAX_ENTRIES} files; name the folder of one model")
        depth = len(Path(folder).relative_to(root).parts)
        below[:] = sorted(name for name in below if not name.startswith(".")) if depth < _MAX_DEPTH else []
        yield Path(folder)
