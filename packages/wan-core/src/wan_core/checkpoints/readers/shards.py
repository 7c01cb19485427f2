"""Folders of weights: an index with its shards, numbered shards without one (GGUF too), or a single file."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_core.checkpoints.readers.file_source import file_size, unreadable
from wan_core.checkpoints.readers.megatron import is_megatron, megatron_files, read_megatron
from wan_core.checkpoints.readers.quantized import DESCRIPTIONS, joined_descriptions
from wan_core.checkpoints.readers.sources import JoinedSource, TensorSource
from wan_core.checkpoints.readers.trainer_folders import STATE_FILE, refuse_trainer_folder
from wan_core.errors import CheckpointError
from wan_core.files import WEIGHT_ENDINGS, sample_file, stays_inside, unique_keys

USUAL_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
"""Stems that a folder's weights have in the official and the diffusers layout, preferred over others."""

# A variant may stand before the ending (``.fp16``), and in the name of an index before its last part.
_SHARD = re.compile(
    r"(?P<stem>.+)[-_.](?P<number>\d{1,6})-of-(?P<count>\d{1,6})(?P<end>(?:\.[\w-]+)?\.(?:safetensors|bin|gguf|pth|pt))"
)
_INDEX = re.compile(r".+\.index(?:\.[\w-]+)?\.json")
# What a file name has besides its stem and variant.
_REST = re.compile(
    r"(?:\.(?:safetensors|bin))?\.index(?=\.)|[-_.]\d{1,6}-of-\d{1,6}(?=\.)|\.(?:json|safetensors|bin|pth|pt)$"
)
_VARIANT = re.compile(r"b?f(?:p|loat)?\d+\w*|half|(?:non_)?ema", re.IGNORECASE)
_MAX_JSON_BYTES = 16_000_000
_MAX_SHARDS = 1_000
_LONGEST_NAME = 255  # bytes, of every usual disk


@dataclass(frozen=True)
class WeightFiles:
    """One model's files in a folder. ``path`` is what to read: a file, an index, or the first of unindexed shards."""

    path: Path
    files: tuple[Path, ...]


def weight_files(folder: Path) -> list[WeightFiles]:
    """Every model that lies directly in a folder, by file names alone.

    Raises CheckpointError for a bad index, and for the folder of a trainer's checkpoint that must be put together.
    """
    names = without_variants(_names(folder))
    if is_megatron(folder, names):
        return [WeightFiles(folder, tuple(megatron_files(folder)))]
    refuse_trainer_folder(folder, names)
    groups, taken = [], set[str]()
    for index in (name for name in names if is_index(name)):
        shards = index_shards(folder / index)
        taken.update(shards)
        groups.append(WeightFiles(folder / index, tuple(folder / name for name in shards)))
    rest = [name for name in names if name.endswith(WEIGHT_ENDINGS) and name not in taken]
    sets: dict[object, list[str]] = {}
    for name in rest:
        sets.setdefault(_set_of(name) or name, []).append(name)
    return groups + [WeightFiles(folder / each[0], tuple(folder / name for name in each)) for each in sets.values()]


def shard_files(path: Path) -> tuple[Path, ...]:
    """The files of the model that a file belongs to: all with its name and another number, or the file alone."""
    kind = _set_of(path.name)
    if kind is None or not path.is_file():
        return (path,)
    return tuple(path.parent / name for name in _names(path.parent) if _set_of(name) == kind)


def weights_fingerprint(path: Path) -> str:
    """A short name of the weights in a file, or of the network in a folder, by samples of the files' content.

    A repository that is still to be fetched stands for itself. Raises CheckpointError for a file that cannot be read.
    """
    if not path.exists():
        return str(path)
    files: Sequence[Path] = shard_files(path)
    if is_index(path.name):
        files = [path.parent / name for name in index_shards(path)]
    elif path.is_dir():
        groups = weight_files(path)
        usual = [group for group in groups if group.path.name.startswith(USUAL_NAMES)]
        files = [file for group in usual or groups for file in group.files]
        files = files or sorted(each for each in path.rglob("*") if each.is_file())
    return hashlib.sha256("".join(map(sample_file, files)).encode()).hexdigest()[:16]


def is_later_shard(name: str) -> bool:
    """Whether a file name is that of a shard after the first."""
    match = _SHARD.fullmatch(name)
    return match is not None and int(match["number"]) > 1


def refuse_incomplete(folder: Path) -> None:
    """Raises CheckpointError when one of the models in a folder lacks some of its numbered shards."""
    for group in weight_files(folder) if folder.is_dir() else []:
        shards = [match for file in group.files if (match := _SHARD.fullmatch(file.name))]
        if shards and not is_index(group.path.name):
            _complete(folder, shards)


def without_variants(names: Iterable[str]) -> list[str]:
    """File names without those of a variant (``.fp16``) of weights that are there without, and of trainers' state."""
    parts = {name: _variant_of(name) for name in names if not STATE_FILE.fullmatch(name)}
    plain = {stem for name, (stem, variant) in parts.items() if not variant and name.endswith(WEIGHT_ENDINGS)}
    return [name for name, (stem, variant) in parts.items() if not variant or stem not in plain]


def variant_notes(path: Path) -> tuple[str, ...]:
    """What to say where files of a variant are passed over for the weights of a file, an index, or a folder."""
    try:
        names = _names(path if path.is_dir() else path.parent)
    except CheckpointError:
        return ()
    passed = {name: _variant_of(name) for name in sorted(set(names) - set(without_variants(names)))}
    beside = [n for n, (stem, end) in passed.items() if end and (path.is_dir() or (stem, "") == _variant_of(path.name))]
    said = "of weights with a variant ({}) and without, those without are taken"
    return (f"note: {path.name}: {said.format(beside[0])}",) if beside else ()


def _variant_of(name: str) -> tuple[str, str]:
    """The stem and the variant in a file name; whatever follows a usual stem is a variant, but for an expert's name."""
    whole = _REST.sub("", name)
    stem, _, variant = whole.rpartition(".")
    is_usual = stem in USUAL_NAMES and not re.search("high|low", variant)
    is_variant = stem and not name.endswith(".gguf") and (is_usual or _VARIANT.fullmatch(variant))
    return (stem, variant) if is_variant else (whole, "")


def is_index(name: str) -> bool:
    """Whether a file name is that of an index of shards."""
    return _INDEX.fullmatch(name) is not None


def _set_of(name: str) -> tuple[str, str, str] | None:
    match = _SHARD.fullmatch(name)
    return None if match is None else (match["stem"], match["count"], match["end"])


def read_folder(folder: Path, read_file: Callable[[Path], TensorSource]) -> TensorSource:
    """The one model of a folder, its files read by ``read_file``.

    Raises CheckpointError when there is none, several, or parts are missing.
    """
    names = without_variants(_names(folder))
    if is_megatron(folder, names):
        return read_megatron(folder, read_file)
    refuse_trainer_folder(folder, names)
    index = _choose(folder, [name for name in names if is_index(name)], "indexes of shards")
    if index is not None:
        return read_index(folder / index, read_file)
    files = [name for name in names if name.endswith(WEIGHT_ENDINGS)]
    shards = [match for name in files if (match := _SHARD.fullmatch(name))]
    shards = [match for match in shards if match["end"].count(".") == 1] or shards  # those without a variant
    if shards:
        _refuse_both(folder, files, shards[0])
        return _join(folder, _complete(folder, shards), read_file)
    single = _choose(folder, files, "files of weights")
    if single is None:
        raise CheckpointError(
            f"no weights in {folder}: looked for *.index.json and {', '.join('*' + s for s in WEIGHT_ENDINGS)}"
        )
    return read_file(folder / single)


def _refuse_both(folder: Path, files: list[str], shard: re.Match[str]) -> None:
    whole = next((name for name in files if name.rpartition(".")[0] == shard["stem"]), None)
    if whole is not None:
        raise CheckpointError(f"{folder} holds {whole} and shards of that name ({shard[0]}); keep one of the two")


def read_shards(path: Path, read_file: Callable[[Path], TensorSource]) -> TensorSource:
    """The model of a file, with all other shards of a numbered one. Raises CheckpointError when some are missing."""
    shards = [match for file in shard_files(path) if (match := _SHARD.fullmatch(file.name))]
    names = _complete(path.parent, shards) if shards and path.is_file() else []
    return _join(path.parent, names, read_file) if len(names) > 1 else read_file(path)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise unreadable(folder, error) from error


def _choose(folder: Path, names: list[str], what: str) -> str | None:
    """The only one, or the one with the usual name; without a variant (``.fp16``) where there are both."""
    if len(names) <= 1:
        return names[0] if names else None
    for stem in USUAL_NAMES:
        usual = [name for name in names if name.split(".")[0] == stem]
        plain = [name for name in usual if name.count(".") == min(each.count(".") for each in usual)]
        if len(plain) == 1:
            return plain[0]
    raise CheckpointError(f"{folder} holds several {what} ({', '.join(names[:5])}); name the one to read")


def _complete(folder: Path, shards: list[re.Match[str]]) -> list[str]:
    kinds = {(match["stem"], match["count"], match["end"]) for match in shards}
    if len(kinds) > 1:
        raise CheckpointError(
            f"{folder} mixes the shards of several models ({shards[0][0]}, {shards[-1][0]}) without an index"
        )
    count = int(shards[0]["count"])
    present = {int(match["number"]) for match in shards}
    if count > _MAX_SHARDS or present != set(range(1, count + 1)):
        missing = sorted(set(range(1, min(count, _MAX_SHARDS) + 1)) - present)
        raise CheckpointError(f"{folder} lacks shards {', '.join(map(str, missing[:5]))} of {count}; fetch them again")
    return [match[0] for match in shards]


def index_shards(index: Path) -> list[str]:
    """The file names that an index of shards gives. Raises CheckpointError when it is damaged or refused."""
    return sorted(set(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index} is damaged: it has no weight_map from tensors to files; fetch it again")
    names = set(weight_map.values())
    if len(names) > _MAX_SHARDS:
        raise CheckpointError(f"{index} names {len(names)} shards, at most {_MAX_SHARDS} make sense")
    for name in sorted(names):
        _check_inside(index.parent, name, index)
    return weight_map


def read_index(index: Path, read_file: Callable[[Path], TensorSource]) -> TensorSource:
    """The model of an index and its shards. Raises CheckpointError when they are missing or do not belong together."""
    weight_map = _weight_map(index)
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise CheckpointError(
            f"{index} names {len(names)} shards and {len(missing)} are missing: {', '.join(missing[:5])}; fetch them"
        )
    source = _join(index.parent, names, read_file)
    absent = [name for name in weight_map if name not in source]
    if absent:
        raise CheckpointError(
            f"the shards in {index.parent} lack {len(absent)} tensors of their index ({', '.join(absent[:5])}); "
            "they belong to different models or are damaged"
        )
    return source


def _check_inside(folder: Path, name: str, index: Path) -> None:
    """An index may only name files beside it; links must stay inside, or in the blob store of a hub cache."""
    is_possible = len(name.encode(errors="replace")) <= _LONGEST_NAME and name not in {"", ".", ".."}
    if not is_possible or Path(name).name != name or "\\" in name or "\0" in name:
        raise CheckpointError(f"{index} names {name[:120]!r}, which is not a file beside it; such an index is refused")
    if not stays_inside(folder, folder / name):
        raise CheckpointError(f"{index} names {name!r}, a link out of its folder; such an index is refused")


def _join(folder: Path, names: list[str], read_file: Callable[[Path], TensorSource]) -> TensorSource:
    parts: dict[str, TensorSource] = {}
    metadata: dict[str, str] = {}
    described: list[str] = []
    for name in names:
        shard = read_file(folder / name)
        twice = [key for key in shard if key in parts]
        if twice:
            raise CheckpointError(
                f"{folder} has {twice[0]!r} in two shards, one of them {name}; they are of different models"
            )
        parts.update(dict.fromkeys(shard.keys(), shard))
        metadata.update(shard.metadata)
        described += [shard.metadata[DESCRIPTIONS]] if DESCRIPTIONS in shard.metadata else []
    if described:
        metadata[DESCRIPTIONS] = joined_descriptions(described)
    return JoinedSource(folder, parts, metadata)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most 16 MB. Raises CheckpointError."""
    if file_size(path) > _MAX_JSON_BYTES:
        raise CheckpointError(f"{path} has {file_size(path)} bytes, at most {_MAX_JSON_BYTES} make sense")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({str(error)[:80]}); fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object; fetch it again")
    return content
