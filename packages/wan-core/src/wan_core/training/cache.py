"""What training reads at every step, made once: latents and text states of the examples in safetensors shards.

A cache folder holds ``cache.json`` (settings, finished shards with their SHA-256) and ``shard-00000.safetensors`` ...
with tensors ``<name>.<example>``, and if wanted ``common.safetensors`` with what all examples share. Making one is
restartable: finished shards are kept; several processes may make a part of them each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wan_core.checkpoints import MemorySource, write_file
from wan_core.drafts import alone_in, write_text
from wan_core.errors import CheckpointError, ConfigError, RequestError
from wan_core.files import hash_file, plain_text
from wan_core.training.state import flat_settings

_INDEX = "cache.json"
_COMMON = "common"
_MADE_BY = "made_by"
_SHOWN = 200
_PATIENCE = 60.0  # seconds, for others to write a line into the index
_REMEDY = "remove the folder and make it anew"


def write_cache(
    folder: str | Path,
    count: int,
    encode: Callable[[int], Mapping[str, Tensor]],
    settings: Mapping[str, Any],
    *,
    shard_size: int = 16,
    report: Callable[[int], None] | None = None,
    common: Callable[[], Mapping[str, Tensor]] | None = None,
    part: tuple[int, int] = (0, 1),
) -> Path:
    """Encode examples 0..``count`` - 1 into a cache folder, going on where an earlier run stopped; returns the folder.

    ``encode(number)`` gives an example's tensors by name (no dots in names), ``common()`` those of all together.
    ``settings`` are plain values that determine the result; ``made_by`` among them names the command that makes it.
    ``report`` gets the number of finished examples. Of several processes each makes the shards of its ``part``, (index,
    count); those of all are one cache, the same that one process makes. Raises ConfigError naming the difference when
    the folder was made with other settings, RequestError when another process is making the part, MediaError when it
    cannot be written, and what ``encode`` raises.
    """
    folder = Path(folder)
    if count < 1 or shard_size < 1:
        raise RequestError(f"a cache needs at least one example and shards of at least one, got {count}, {shard_size}")
    index, parts = part
    if not 0 <= index < parts:
        raise RequestError(f"part {index + 1} of {parts} of a cache cannot be; parts are counted from 1")
    busy = RequestError(
        f"another process makes {'' if parts == 1 else f'part {index + 1} of '}the cache {plain_text(folder)}; wait "
        "for its end, or name another folder"
    )
    with alone_in(folder, busy, name=".lock" if parts == 1 else f".lock-{index + 1}-of-{parts}"):
        wanted = _wanted(settings, count, shard_size)
        _enter(folder, wanted)
        if common is not None and index == 0:
            _make(folder, wanted, _COMMON, lambda: {f"{name}.{_COMMON}": each for name, each in common().items()})
        done = 0
        for numbers in shards_of(count, shard_size, part):
            name = _shard_name(numbers[0] // shard_size)
            _make(folder, wanted, name, partial(_encode_shard, encode, numbers))
            done += len(numbers)
            if report is not None:
                report(done)
    return folder


def shards_of(count: int, shard_size: int, part: tuple[int, int] = (0, 1)) -> list[range]:
    """The examples of each shard that a part of the processes makes: every ``part[1]``-th from ``part[0]`` on."""
    index, parts = part
    starts = range(index * shard_size, count, parts * shard_size)
    return [range(start, min(count, start + shard_size)) for start in starts]


def _make(folder: Path, wanted: dict[str, Any], name: str, encode: Callable[[], Mapping[str, Tensor]]) -> None:
    """Write one file of a cache, unless it is there and as the index says."""
    path = folder / f"{name}.safetensors"
    made = _digest(path)
    if made is None or _read_index(folder)["shards"].get(path.name) != made:
        write_file(MemorySource(encode()), path, metadata={})
        _enter(folder, wanted, path)


def _enter(folder: Path, wanted: dict[str, Any], made: Path | None = None) -> None:
    """Begin the index with the settings, or compare them with those in it; then put a file in that was made."""
    busy = RequestError(f"another process keeps {plain_text(folder / _INDEX)} to itself; end it, then go on")
    with alone_in(folder, busy, name=".index.lock", wait=_PATIENCE):
        is_there = (folder / _INDEX).exists()
        index = _read_index(folder) if is_there else {"settings": wanted, "shards": {}}
        _compare(index["settings"], wanted, folder)
        if made is not None:
            index["shards"] = dict(sorted({**index["shards"], made.name: _digest(made)}.items()))
        if made is not None or not is_there:
            write_text(folder / _INDEX, json.dumps(index, indent=1))


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def check_cache(folder: str | Path, count: int, settings: Mapping[str, Any], *, shard_size: int = 16) -> None:
    """Check that a cache, if it was begun, has these settings. Raises ConfigError, CheckpointError."""
    folder = Path(folder)
    if (folder / _INDEX).exists():
        _compare(_read_index(folder)["settings"], _wanted(settings, count, shard_size), folder)


def _wanted(settings: Mapping[str, Any], count: int, shard_size: int) -> dict[str, Any]:
    wanted: dict[str, Any] = json.loads(json.dumps({**settings, "count": count, "shard_size": shard_size}))
    return wanted


class Cache:
    """A finished cache, read shard by shard. Raises RequestError for a folder that is no cache or is not finished,
    CheckpointError for a damaged shard, ConfigError when ``expected`` settings differ."""

    def __init__(self, folder: str | Path, expected: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        if not (self.folder / _INDEX).is_file():
            raise RequestError(f"{self.folder} is no cache; make one with 'wan cache'")
        index = _read_index(self.folder)
        self.settings: dict[str, Any] = index["settings"]
        self.count = int(self.settings["count"])
        _check_per_example(self.settings, self.count, self.folder)
        self._shard_size = int(self.settings["shard_size"])
        if expected is not None:
            known = {name: self.settings.get(name) for name in expected}
            _compare(known, json.loads(json.dumps(dict(expected))), self.folder)
        self._remedy = f"run '{_maker(self.settings)}' again"
        needed = -(-self.count // self._shard_size)
        done = sum(name.startswith("shard-") for name in index["shards"])
        if done < needed:
            raise RequestError(f"the cache {self.folder} is not finished ({done} of {needed} shards); {self._remedy}")
        self._digests: dict[str, str] = index["shards"]
        self._open: dict[str, _Shard] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """The tensors of one example by name. A shard is checked against its SHA-256 when first read."""
        return self._verified(self._shard_of(number)).read(number)

    def common(self) -> dict[str, Tensor]:
        """The tensors that all examples share, by name; none of a cache that was made without. Raises CheckpointError.

        A part of the processes that make a cache makes them, so they may be the last to come.
        """
        if f"{_COMMON}.safetensors" not in self._digests:
            return {}
        return self._verified(self._opened(_COMMON)).read(_COMMON)

    def shape(self, number: int, name: str) -> list[int]:
        """The shape of one tensor of an example, without reading it."""
        return self._shard_of(number).shape(f"{name}.{number}")

    def verify(self) -> None:
        """Check every shard against its SHA-256. Raises CheckpointError naming the first that is damaged."""
        for number in range(0, self.count, self._shard_size):
            self._verified(self._shard_of(number), anew=True)

    def check_headers(self) -> None:
        """Check that every shard is there and as long as it says. Raises CheckpointError."""
        for number in range(0, self.count, self._shard_size):
            self._shard_of(number)

    def _shard_of(self, number: int) -> _Shard:
        if not 0 <= number < self.count:
            raise IndexError(number)
        return self._opened(_shard_name(number // self._shard_size))

    def _opened(self, name: str) -> _Shard:
        if name not in self._open:
            self._open[name] = _Shard(self.folder / f"{name}.safetensors", self._remedy)
        return self._open[name]

    def _verified(self, shard: _Shard, *, anew: bool = False) -> _Shard:
        if anew or not shard.is_verified:
            if _digest(shard.path) != self._digests.get(shard.path.name):
                raise CheckpointError(f"{shard.path} is damaged; {self._remedy} to make it anew")
            shard.is_verified = True
        return shard


class _Shard:
    """One mapped file: tensors are read when asked for."""

    def __init__(self, path: Path, remedy: str) -> None:
        self.path = path
        self.is_verified = False
        self._remedy = remedy
        try:
            file: Any = safe_open(path, framework="pt")
            names: list[str] = list(file.keys())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is damaged or missing: {error}; {remedy}") from error
        self._file = file
        self._names: dict[str, list[str]] = {}
        for name in names:
            self._names.setdefault(name.rpartition(".")[2], []).append(name)

    def read(self, number: int | str) -> dict[str, Tensor]:
        tensors = {name.rpartition(".")[0]: self._file.get_tensor(name) for name in self._names.get(str(number), ())}
        if not tensors:
            raise CheckpointError(f"{self.path} has nothing of example {number}; {self._remedy}")
        return tensors

    def shape(self, name: str) -> list[int]:
        try:
            return list(self._file.get_slice(name).get_shape())
        except SafetensorError as error:
            raise CheckpointError(f"{self.path} has no {name}; {self._remedy}") from error


class ShuffledBatches:
    """Seeded batches of examples of one bucket each: the same for a step in every run.

    ``buckets[i]`` is anything that examples must share to be stacked, such as the shape of their latents. Every epoch
    shows each example once, but for the remainder of a bucket, which is filled up from its start.
    """

    def __init__(self, buckets: Sequence[object], batch: int, seed: int) -> None:
        if batch < 1 or not buckets:
            raise ConfigError(f"batches need examples and a size of at least 1, got {len(buckets)} and {batch}")
        groups: dict[object, list[int]] = {}
        for number, bucket in enumerate(buckets):
            groups.setdefault(bucket, []).append(number)
        self._groups = list(groups.values())
        self._batch = batch
        self._seed = seed
        self._epoch = -1
        self._order: list[list[int]] = []
        self.steps_per_epoch = sum(-(-len(group) // batch) for group in self._groups)

    def __getitem__(self, step: int) -> list[int]:
        """The example numbers of a step (from 0, without end)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order, self._epoch = self._shuffle(epoch), epoch
        return self._order[position]

    def _shuffle(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        batches: list[list[int]] = []
        for group in self._groups:
            order = [group[i] for i in torch.randperm(len(group), generator=generator).tolist()]
            whole = -(-len(order) // self._batch) * self._batch
            filled = (order * (whole // len(order) + 1))[:whole]
            batches.extend(filled[start : start + self._batch] for start in range(0, whole, self._batch))
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _encode_shard(encode: Callable[[int], Mapping[str, Tensor]], numbers: range) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for number in numbers:
        for name, tensor in encode(number).items():
            tensors[f"{name}.{number}"] = tensor.contiguous()
    return tensors


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((folder / _INDEX).read_bytes())
        settings, shards = index["settings"], index["shards"]
        counts = settings["count"], settings["shard_size"]
        is_whole = all(type(n) is int and n >= 1 for n in counts) and all(map(_is_digest, shards.values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{folder / _INDEX} is damaged ({reason:.200}); {_REMEDY}") from error
    if not is_whole:
        raise CheckpointError(f"{folder / _INDEX} is damaged; {_REMEDY}")
    return index


def _check_per_example(settings: Mapping[str, Any], count: int, folder: Path) -> None:
    """How often each example comes, and which are of one video. Raises CheckpointError when they are no such lists."""
    for name in ("repeats", "sources"):
        values = settings.get(name)
        if values is not None and not (
            isinstance(values, list) and len(values) == count and all(type(n) is int and n >= 0 for n in values)
        ):
            raise CheckpointError(f"{folder / _INDEX} is damaged: {name} are not {count} numbers; {_REMEDY}")


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64


def _compare(stored: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    made, wanted = flat_settings(stored), flat_settings(asked)
    names = sorted(set(made) | set(wanted))
    changed = [
        f"{name} was {made.get(name)!r:.{_SHOWN}}, is {wanted.get(name)!r:.{_SHOWN}}"
        for name in names
        if made.get(name) != wanted.get(name)
    ]
    if changed:
        raise ConfigError(
            f"the cache {folder} was made with other settings: {'; '.join(changed[:5])}; name another folder, "
            f"or make it anew with '{_maker(asked)}'"
        )


def _maker(settings: Mapping[str, Any]) -> str:
    """The command that makes a cache."""
    return str(settings.get(_MADE_BY, "wan cache"))


def _digest(path: Path) -> str | None:
    return hash_file(path) if path.is_file() else None
