"""What lies in a file or folder: each model's weights, recognised by the names of their tensors; headers are read."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_core.checkpoints.families import OTHER_TITLES, Expert, families, get_family, title_of
from wan_core.checkpoints.layout import TOKENIZER_FILES
from wan_core.checkpoints.lora.names import is_lora
from wan_core.checkpoints.members import FoundNetwork, experts_of, members_of
from wan_core.checkpoints.readers.file_source import unreadable
from wan_core.checkpoints.readers.reader import read_weights
from wan_core.checkpoints.readers.shards import WeightFiles, shard_files, weight_files
from wan_core.checkpoints.readers.sources import DerivedSource, Recipe, TensorSource
from wan_core.checkpoints.readers.trainer_folders import InPiecesError
from wan_core.errors import CheckpointError

_MAX_DEPTH = 3
_MAX_ENTRIES = 5_000


@dataclass(frozen=True)
class Weights:
    """One model's weights. ``name`` is the path below the folder that was asked for (its own name for a file).

    ``family`` is a family of networks, ``lora``, or ``""`` when the names are not known. ``expert`` is known where one
    file holds both.
    """

    path: Path
    name: str
    files: tuple[Path, ...]
    source: TensorSource
    family: str
    expert: Expert | None = None


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

    A file that cannot be read is an error by itself or where a folder has nothing else, and a note in a folder. Raises
    CheckpointError; also when a folder holds neither weights nor a tokenizer, or thousands of entries.
    """
    path = Path(path)
    if not path.is_dir():
        return Contents(path, tuple(_recognised(path, WeightFiles(path, shard_files(path)), path.name, mmap)))
    found: list[Weights] = []
    tokenizers: list[Path] = []
    notes: list[tuple[str, str]] = []
    for folder, groups in _models_in(path, notes):
        if any((folder / name).is_file() for name in TOKENIZER_FILES):
            tokenizers.append(folder)
        for group in groups:
            # A folder with one model is called by its own name.
            name = _below(path, folder if len(groups) == 1 and len(group.files) > 1 else group.path)
            try:
                found += _recognised(path, group, name, mmap)
            except CheckpointError as error:
                notes.append((name, str(error)))
    found.sort(key=lambda weights: _order(weights.family))
    if not found and not tokenizers:
        nothing = f"no weights in {path}: it holds no .safetensors, .pth, .pt, .bin, .ckpt or .gguf file"
        raise CheckpointError(told(notes) if notes else nothing)
    return Contents(path, tuple(found), tuple(tokenizers), tuple(notes))


def _models_in(root: Path, notes: list[tuple[str, str]]) -> Iterator[tuple[Path, list[WeightFiles]]]:
    """A folder and those below it, each with its models by file names; why one cannot be read is added to the notes."""
    pieces: Path | None = None
    for folder in _folders(root):
        groups: list[WeightFiles] = []
        try:
            groups = weight_files(folder)
        except InPiecesError as error:
            if pieces not in folder.parents:  # a trainer's checkpoint is one, with all its folders
                pieces = folder
                notes.append((_below(root, folder) or root.name, str(error)))
        except CheckpointError as error:
            notes.append((_below(root, folder) or root.name, str(error)))
        yield folder, groups


def told(unreadable: Sequence[tuple[str, str]]) -> str:
    """The reasons of what could not be read, for one message."""
    more = [f"and {len(unreadable) - 3} more"] if unreadable[3:] else []
    return "; ".join([*(reason for _, reason in unreadable[:3]), *more])


def _recognised(root: Path, group: WeightFiles, name: str, mmap: bool | None) -> list[Weights]:
    """The weights of a file: one model, each part of a whole model that it holds, each of two experts; a LoRA with what
    was trained along."""
    source = read_weights(group.path, mmap=mmap)
    name = name or root.name
    parts = _by_family(members_of(source))
    beside = _lora_beside(source, parts)
    found = []
    for family, members in sorted(parts.items(), key=lambda item: _order(item[0])):
        experts = experts_of(members)
        for expert in dict.fromkeys(experts.values()) or [None]:
            own = [member for member in members if expert in (None, experts.get(member.prefix))]
            title = f"{title_of(family)}, {expert} noise" if expert else title_of(family)
            is_all = len(parts) == 1 and expert is None and not beside
            part = source if is_all else _part(source, _names_in(own))
            label = name if is_all else f"{name} ({title})"
            found.append(Weights(group.path, label, group.files, part, family, expert))
    if beside:
        label = f"{name} ({title_of('lora')})"
        found.append(Weights(group.path, label, group.files, _part(source, beside), "lora"))
    return found or [Weights(group.path, name, group.files, source, "lora" if is_lora(source) else "")]


def _by_family(members: Sequence[FoundNetwork]) -> dict[str, list[FoundNetwork]]:
    parts: dict[str, list[FoundNetwork]] = {}
    for member in members:
        parts.setdefault(member.families[0], []).append(member)
    return parts


def _lora_beside(source: TensorSource, parts: Mapping[str, Sequence[FoundNetwork]]) -> list[str]:
    """The names of a LoRA whose file also holds small networks of their own names; one beside a model is a note."""
    if not parts or not all(get_family(family).owns for family in parts):
        return []
    inside = {name for members in parts.values() for name in _names_in(members)}
    rest = [own for own in source if own not in inside]
    return rest if is_lora(rest) else []


def _names_in(members: Sequence[FoundNetwork]) -> list[str]:
    return [own for member in members for own in member.names.values()]


def _part(source: TensorSource, names: Iterable[str]) -> TensorSource:
    return DerivedSource(source, {name: Recipe((name,), source.info(name)) for name in names})


def _order(family: str) -> int:
    return [*(each.name for each in families()), *OTHER_TITLES].index(family)


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
