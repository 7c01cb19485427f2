"""Checkpoints of Megatron (MindSpeed-MM): one file a pipeline stage, put together again by their layers.

``latest_checkpointed_iteration.txt`` names the folder below it, ``release`` or ``iter_0000500``; there each stage has
``mp_rank_00`` (one stage) or ``mp_rank_00_000``, ... with ``model_optim_rng.pt``. With virtual stages that holds
``model0``, ``model1``, ...: first come the first ones of all stages. Layers are counted from 0 in each piece.
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path

from wan_core.checkpoints.readers.sources import DerivedSource, JoinedSource, Recipe, TensorSource
from wan_core.checkpoints.readers.trainer_folders import InPiecesError
from wan_core.errors import CheckpointError

TRACKER = "latest_checkpointed_iteration.txt"
STAGE_FILE = "model_optim_rng.pt"
_STAGE = re.compile(r"mp_rank_(\d+)(?:_(\d{3}))?")
_CHUNK = re.compile(r"model(\d*)\.(.+)")
_LAYER = re.compile(r"blocks\.(\d+)\.(.+)")


def is_megatron(folder: Path, names: Collection[str]) -> bool:
    """Whether ``names``, what lies in the folder, are those of such a checkpoint, at any of its levels."""
    has_stage = any(_STAGE.fullmatch(name) and (folder / name / STAGE_FILE).is_file() for name in names)
    return TRACKER in names or STAGE_FILE in names or has_stage


def megatron_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's stages, in order. Raises CheckpointError for stages that are missing."""
    place = _latest(folder)
    if not (place / STAGE_FILE).is_file():
        return _stages(place)
    stage = _STAGE.fullmatch(place.name)
    if stage is not None and stage[2] is not None:
        raise InPiecesError(f"{place} is one pipeline stage of a checkpoint of Megatron; give {place.parent}")
    return [place / STAGE_FILE]


def read_megatron(folder: Path, read_file: Callable[[Path], TensorSource]) -> TensorSource:
    """The network of a checkpoint, its files read by ``read_file``.

    Raises CheckpointError for stages that are missing or do not belong together, InPiecesError for tensors that were
    cut up (tensor parallelism).
    """
    return _joined(folder, [(path, _chunks(path, read_file(path))) for path in megatron_files(folder)])


def _latest(folder: Path) -> Path:
    tracker = folder / TRACKER
    if not tracker.is_file():
        return folder
    try:
        said = tracker.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{tracker} cannot be read ({str(error)[:80]}); fetch it again") from error
    name = said if said == "release" else f"iter_{int(said):07d}" if re.fullmatch(r"\d{1,9}", said) else ""
    if not name:
        raise CheckpointError(f"{tracker} says {said[:40]!r}, not release or the number of an iteration")
    if not (folder / name).is_dir():
        raise CheckpointError(f"{tracker} names {name}, and there is no {folder / name}; fetch it again")
    return folder / name


def _stages(place: Path) -> list[Path]:
    """The files of all stages in order."""
    found = {match[0]: match for path in place.iterdir() if (match := _STAGE.fullmatch(path.name))}
    if len({match[1] for match in found.values()}) > 1:
        raise InPiecesError(
            f"{place} is a checkpoint of Megatron with tensor parallelism, whose tensors are cut up; export it to "
            "diffusers' or the official layout with the trainer that wrote it, and give that"
        )
    numbers = sorted(int(match[2] or 0) for match in found.values())
    if not numbers or numbers != list(range(len(numbers))):
        raise CheckpointError(f"{place} has the pipeline stages {numbers}, not all from 0 on; fetch the others")
    files = [place / name / STAGE_FILE for name in sorted(found)]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise CheckpointError(f"there is no {missing[0]}; fetch it again")
    return files


def _chunks(path: Path, source: TensorSource) -> list[DerivedSource]:
    """The networks in a stage's file, by their numbers, without the level that names them."""
    chunks: dict[int, dict[str, Recipe]] = {}
    for name in source:
        match = _CHUNK.fullmatch(name)
        if match is not None:
            chunks.setdefault(int(match[1] or 0), {})[match[2]] = Recipe((name,), source.info(name))
    if not chunks or sorted(chunks) != list(range(len(chunks))):
        raise CheckpointError(f"{path} has no tensors below 'model', or not below 'model0', 'model1' and so on")
    return [DerivedSource(source, chunks[number]) for number in sorted(chunks)]


def _joined(folder: Path, stages: list[tuple[Path, list[DerivedSource]]]) -> TensorSource:
    if len({len(chunks) for _, chunks in stages}) > 1:
        raise CheckpointError(f"the stages in {folder} have different counts of virtual stages; they do not match")
    pieces: dict[str, TensorSource] = {}
    first = 0
    for number in range(len(stages[0][1])):
        for path, chunks in stages:
            renamed, count = _from_layer(chunks[number], first)
            twice = [name for name in renamed if name in pieces]
            if twice:
                raise CheckpointError(f"{path} has {twice[0]}, and so has an earlier stage; they do not match")
            pieces.update(dict.fromkeys(renamed, renamed))
            first += count
    return JoinedSource(folder, pieces, {})


def _from_layer(piece: DerivedSource, first: int) -> tuple[DerivedSource, int]:
    """A piece with its layers counted from ``first`` on, and how many it has."""
    recipes, last = {}, -1
    for name in piece:
        match = _LAYER.fullmatch(name)
        if match is not None:
            last = max(last, int(match[1]))
        target = name if match is None else f"blocks.{int(match[1]) + first}.{match[2]}"
        recipes[target] = Recipe((name,), piece.info(name))
    return DerivedSource(piece, recipes), last + 1
