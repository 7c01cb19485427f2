"""What refinement and extraction share: pictures of a sample, one sample after the other, failures at the end."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bindweave.hidden_states import MAX_PICTURES
from bindweave.ledger import Ledger, Share
from bindweave.samples import Sample
from wan_core import BackendError, CheckpointError, MediaError, RequestError, WanError
from wan_core.files import check_place, folder_files, hash_file, plain_text, sample_file

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

ThingT = TypeVar("ThingT")
Progress = Callable[[Iterable[Any], str], Iterable[Any]]
_SHOWN = 10


def digest_of(*things: Any) -> str:
    """A name of plain values: the SHA-256 of their JSON."""
    return hashlib.sha256(json.dumps(things, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class UnusableError(Exception):
    """What every sample needs cannot be opened: ``reason`` is the error that the user gets, once."""

    def __init__(self, reason: WanError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def opened_once(open_it: Callable[[], ThingT]) -> Callable[[], ThingT]:
    """What ``open_it`` opens, at the first call; raises UnusableError where that is a WanError."""

    @cache
    def get() -> ThingT:
        try:
            return open_it()
        except WanError as error:
            raise UnusableError(error) from error

    return get


def leave_memory(device: torch.device) -> None:
    """Free what nothing refers to any more, here and on a device, before the next step's network comes."""
    from wan_core.runtime import release_cached_memory

    gc.collect()
    release_cached_memory(device)


def model_digest(place: str | Path) -> str:
    """A name of a language model: the content of its folder, or the repository that it will be fetched from.

    Raises CheckpointError for a file that cannot be read.
    """
    folder = Path(place)
    files = folder_files(folder, (".safetensors", ".json", ".txt")) if folder.is_dir() else []
    return digest_of([sample_file(path) for path in files]) if files else str(place)


def picture_hashes(sample: Sample, folder: Path) -> list[str]:
    """The SHA-256 of each of a sample's first four pictures, "" for one that is not there."""
    return [_hash(folder / path) for path in sample.images[:MAX_PICTURES]]


def _hash(path: Path) -> str:
    try:
        return hash_file(path)
    except CheckpointError:
        return ""


def load_pictures(sample: Sample, folder: Path, log: Callable[[str], None]) -> list[Image]:
    """The first four pictures of a sample that can be read; a note for each other, and for a fifth."""
    from wan_core.media import load_image

    paths = [folder / image for image in sample.images]
    if len(paths) > MAX_PICTURES:
        log(f"note: {sample.name} has {len(paths)} pictures; the first {MAX_PICTURES} are used")
    found = []
    for path in paths[:MAX_PICTURES]:
        try:
            found.append(load_image(path))
        except (RequestError, MediaError) as error:
            log(f"note: {sample.name} goes without a picture: {error}")
    return found


@dataclass(frozen=True)
class Outcome:
    """What a step made: whether the output is written, and the error that sums up the samples that ``failed``."""

    is_written: bool
    failed: tuple[str, ...] = ()
    error: WanError | None = None

    def conclude(self) -> None:
        """Raises the error, if there is one."""
        if self.error is not None:
            raise self.error


def work_through(
    samples: Mapping[str, Sample],
    ledger: Ledger,
    share: Share,
    make: Callable[[Sample], Mapping[str, Any]],
    *,
    title: str,
    progress: Progress,
    log: Callable[[str], None],
    keep_failed: bool = True,
) -> Outcome:
    """Make what is not done of the own share, note it, and write the output when all shares are done.

    A sample that fails does not stop the others; the outcome's error is of the kind of the first and has all of them in
    its message. The output has such samples as they were, or without ``keep_failed`` not at all. Raises ConfigError,
    MediaError of the output and what cannot be opened at once.
    """
    check_place(ledger.output)
    waiting = [name for name in share.of(list(samples)) if ledger.changes(name) is None]
    kind: type[WanError] | None = None
    for name in progress(waiting, title):
        try:
            ledger.note(name, make(samples[name]))
        except UnusableError as error:
            raise error.reason from error.reason.__cause__
        except (BackendError, RequestError, CheckpointError) as error:
            kind = kind or type(error)
            ledger.note(name, {}, error=str(error))
            log(f"{name} failed: {error}")
    is_written, errors = ledger.close(samples, keep_failed=keep_failed)
    if not errors:
        log(f"{ledger.output}: {len(samples)} samples" if is_written else "done; other processes are still at work")
        return Outcome(is_written)
    listed = "; ".join(f"{name}: {plain_text(reason)}" for name, reason in list(errors.items())[:_SHOWN])
    more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
    state = f"{ledger.output} has them as they were; " if is_written and keep_failed else ""
    text = f"{len(errors)} of {len(samples)} samples failed; {state}the same command tries them again. {listed}{more}"
    return Outcome(is_written, tuple(errors), (kind or BackendError)(text))
