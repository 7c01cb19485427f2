"""The release's weights as MindSpeed-MM keeps them, and back: other names, and one file a pipeline stage.

Tensors go from file to file one at a time, unchanged; what is read and written is counted, and nothing is lost unsaid.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindweave.config import BindWeaveConfig
from bindweave.families import BINDWEAVE, MM, no_connector
from wan_core import CheckpointError, RequestError
from wan_core.checkpoints import (
    DerivedSource,
    Recipe,
    TensorSource,
    check_network,
    in_format,
    native_weights,
    read_json,
    read_weights,
    write_file,
    write_json,
    write_shards,
    write_torch_file,
)
from wan_core.drafts import whole_folder, write_text
from wan_core.files import check_space, plain_text

STAGE_FILE = "model_optim_rng.pt"
_LAYER = re.compile(r"blocks\.(\d+)\.(.+)")
_VERSION = {"checkpoint_version": 3.0}
# What the network of a first and a last frame has besides; the converter passes it on.
_PASSED_ON = ("img_emb.emb_pos",)
_UNUSED = re.compile(r"\.norm_added_q\.weight$")
_CONFIG = "config.json"
_INDEX = "diffusion_pytorch_model.safetensors.index.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".index.json")


@dataclass(frozen=True)
class Converted:
    """What was written: the folder, its files, and how many tensors were read, written and ``dropped`` on purpose."""

    folder: Path
    files: tuple[str, ...]
    read: int
    written: int
    dropped: int

    def __str__(self) -> str:
        """For people."""
        left = f", {self.dropped} that no network uses left out" if self.dropped else ""
        return f"{plain_text(self.folder)}: {len(self.files)} files, {self.written} of {self.read} tensors{left}"


@dataclass(frozen=True)
class StageLayers:
    """How layers are spread: ``layers[v][s]`` of them in virtual stage v of stage s, in the order of the network.

    Without any there is one stage. ``is_virtual``: a stage's file holds several networks.
    """

    layers: tuple[tuple[int, ...], ...] = ()
    is_virtual: bool = False

    @classmethod
    def parse(cls, text: str | None) -> StageLayers:
        """Read ``[10,10,10,10]`` or ``[[5,5],[5,5]]``. Raises RequestError."""
        if not text:
            return cls()
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        nested = isinstance(value, list) and bool(value) and all(isinstance(each, list) for each in value)
        rows = value if nested else [value]
        if not all(map(_is_row, rows)):
            raise RequestError(f"layers are a JSON list such as [10,10,10,10] or [[5,5],[5,5]], got {text[:60]!r}")
        if len({len(row) for row in rows}) > 1:
            raise RequestError(f"every virtual stage has one number for each stage, got {text[:60]!r}")
        return cls(tuple(tuple(row) for row in rows), nested)

    def check(self, num_layers: int) -> None:
        """Raises RequestError where the layers are not all of the network's."""
        total = sum(map(sum, self.layers))
        if self.layers and total != num_layers:
            raise RequestError(f"the layers of all stages must add up to {num_layers}, got {total}")

    def named(self, names: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
        """The folder of each stage, and its tensors' names there (with level) to those of the whole network."""
        if not self.layers:
            yield "mp_rank_00", {f"model.{name}": name for name in names}
            return
        count, last = len(self.layers[0]), (len(self.layers) - 1, len(self.layers[0]) - 1)
        for stage in range(count):
            held: dict[str, str] = {}
            for chunk, row in enumerate(self.layers):
                first = sum(map(sum, self.layers[:chunk])) + sum(row[:stage])
                level = f"model{chunk}" if self.is_virtual else "model"
                for name in names:
                    own = _own_name(name, first, row[stage], (chunk, stage) == (0, 0), (chunk, stage) == last)
                    if own is not None:
                        held[f"{level}.{own}"] = name
            yield f"mp_rank_00_{stage:03d}", held

    @property
    def levels(self) -> tuple[str, ...]:
        """The dicts in a stage's file."""
        return tuple(f"model{chunk}" for chunk in range(len(self.layers))) if self.is_virtual else ("model",)


def _is_row(value: Any) -> bool:
    """Whether this is a list of whole numbers above 0."""
    return isinstance(value, list) and bool(value) and all(type(count) is int and count > 0 for count in value)


def _own_name(name: str, first: int, count: int, is_first: bool, is_last: bool) -> str | None:
    """A tensor's name in the piece that begins with layer ``first``, or None where it is in another."""
    match = _LAYER.fullmatch(name)
    if match is not None:
        layer = int(match[1]) - first
        return f"blocks.{layer}.{match[2]}" if 0 <= layer < count else None
    return name if (is_last if name.startswith("head.") else is_first) else None


def native_of(source_path: Path) -> tuple[TensorSource, TensorSource]:
    """The weights as their files have them, and under native names, checked to be one whole network.

    Those in fewer bits with scales beside them are brought to the numbers that they stand for.

    Raises CheckpointError for what is missing, unexpected or of another shape.
    """
    native = native_weights(read_weights(source_path), BINDWEAVE)
    kept = {name: Recipe((name,), native.info(name)) for name in native if name not in _PASSED_ON}
    # Heads change no shape: where nothing says how many there are, one stands for them.
    heads = json.dumps({"num_heads": 1})
    network = DerivedSource(native, kept, metadata={"config": heads, **native.metadata})
    config = BINDWEAVE.read_config(source_path, network)
    if config.mllm_dim is None:
        raise no_connector(source_path)
    check_network(config, network, BINDWEAVE)
    return native.base, native


def fresh_target(source_path: Path, target_path: Path, mode: str) -> Path:
    """Where to write: a folder of its own below where source and target are one. Raises RequestError for a full one."""
    same = source_path.resolve() == target_path.resolve()
    target = target_path / ("mm" if mode == "convert_to_mm" else "hf") if same else target_path
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RequestError(f"{plain_text(target)} exists already; name a new folder with --target_path")
    return target


def convert_to_mm(source_path: Path, target: Path, stages: StageLayers | None = None) -> Converted:
    """Write a network in any naming as MindSpeed-MM keeps it. Raises RequestError, CheckpointError and MediaError."""
    stages = stages or StageLayers()
    source, native = native_of(source_path)
    stages.check(1 + max(int(match[1]) for name in native if (match := _LAYER.fullmatch(name))))
    check_space(target, native.nbytes)
    mm = in_format(native, BINDWEAVE, MM.name)
    files, written = ["latest_checkpointed_iteration.txt"], 0
    with whole_folder(target) as folder:
        for stage, names in stages.named(mm.keys()):
            part = DerivedSource(mm, {own: Recipe((name,), mm.info(name)) for own, name in names.items()}, metadata={})
            file = f"release/{stage}/{STAGE_FILE}"
            (folder / file).parent.mkdir(parents=True)
            values = _VERSION if stages.is_virtual else {}
            write_torch_file(part, folder / file, levels=stages.levels, values=values)
            files.append(file)
            written += len(names)
        files += _copied(source_path, folder, (_CONFIG,))
        files += _missing_config(source_path, native, folder, BINDWEAVE.official_config)
        write_text(folder / files[0], "release")
        return _counted(target, files, source, written)


def convert_to_hf(source_path: Path, target: Path, like: Path | None = None) -> Converted:
    """Write a network in any naming under the release's names: in shards, those of the folder ``like`` if it is given.

    Its other files are copied then. Raises RequestError, CheckpointError and MediaError.
    """
    source, native = native_of(source_path)
    check_space(target, native.nbytes)
    release = in_format(native, BINDWEAVE, "diffusers")
    shards = None if like is None else _shards_like(like, release)
    with whole_folder(target) as folder:
        if shards is None or like is None:
            files = write_shards(release, folder, metadata={})
            files += _copied(source_path, folder, (_CONFIG,))
            files += _missing_config(source_path, native, folder, BINDWEAVE.diffusers_config)
        else:
            for name, keys in shards.items():
                part = DerivedSource(release, {key: Recipe((key,), release.info(key)) for key in keys}, metadata={})
                write_file(part, folder / name)
            files = [*shards, *_copied(like, folder, sorted(path.name for path in like.iterdir()))]
            weight_map = {key: name for name, keys in shards.items() for key in keys}
            write_json(folder / _INDEX, {"metadata": {"total_size": release.nbytes}, "weight_map": weight_map})
            files.append(_INDEX)
        return _counted(target, files, source, len(release))


def _shards_like(folder: Path, release: TensorSource) -> dict[str, list[str]]:
    """The tensors of each file that the index of a folder names. Raises CheckpointError where they are not the same."""
    weight_map = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(weight_map, Mapping) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{folder / _INDEX} has no weight_map from tensors to files; fetch it again")
    absent = [key for key in weight_map if key not in release and not _UNUSED.search(key)]
    unknown = [key for key in release if key not in weight_map]
    for what, names in (("names", absent), ("lacks", unknown)):
        if names:
            raise CheckpointError(
                f"{folder / _INDEX} {what} {', '.join(names[:5])} ({len(names)} in all), unlike the weights; it "
                "belongs to another model"
            )
    shards: dict[str, list[str]] = {}
    for key, name in weight_map.items():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{folder / _INDEX} names {name[:80]!r}, which is no file beside it; it is refused")
        if key in release:
            shards.setdefault(name, []).append(key)
    return shards


def _copied(source: Path, folder: Path, names: Sequence[str]) -> list[str]:
    """Copy those files of a folder that are no weights."""
    found = [name for name in names if (source / name).is_file() and not name.endswith(_WEIGHTS)]
    for name in found:
        shutil.copyfile(source / name, folder / name)
    return found


def _missing_config(
    source: Path, native: TensorSource, folder: Path, write: Callable[[BindWeaveConfig], Mapping[str, Any]] | None
) -> list[str]:
    """Write the config.json that a folder needs to be read, where dims of the source are told by it alone."""
    if (folder / _CONFIG).exists():
        return []
    said = _config_of(source, native)
    bare = DerivedSource(native, {name: Recipe((name,), native.info(name)) for name in native}, metadata={})
    if said is None or write is None or said == _config_of(folder, bare):
        return []
    write_json(folder / _CONFIG, dict(write(said)))
    return [_CONFIG]


def _config_of(path: Path, native: TensorSource) -> BindWeaveConfig | None:
    """The dims that tensors and what stands beside them tell; None where nothing does."""
    try:
        config: BindWeaveConfig = BINDWEAVE.read_config(path, native)
    except CheckpointError:
        return None
    return config


def _counted(target: Path, files: Sequence[str], source: Any, written: int) -> Converted:
    """The account of a conversion. Raises CheckpointError where a tensor was neither written nor of no use."""
    names = source.keys()
    dropped = sum(bool(_UNUSED.search(name)) for name in names)
    used = [name for name in names if not _UNUSED.search(name)]
    if written != len(used):
        raise CheckpointError(f"{source.path} has {len(used)} tensors of a network, and {written} were written")
    return Converted(target, tuple(files), len(names), written, dropped)
