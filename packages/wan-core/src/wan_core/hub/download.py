"""A model from a hub into a folder: what is needed, each file checked by its hash, with a manifest."""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, TypeVar

from wan_core.drafts import alone_in
from wan_core.errors import CheckpointError
from wan_core.files import check_space, file_pieces, plain_text, write_error
from wan_core.hub.hubs import Hub, Listing, PassingTroubleError, RemoteFile, check_repository, wrong_hash
from wan_core.hub.manifest import ManifestEntry, Progress, no_progress, read_manifest, save_manifest

ATTEMPTS = 3
"""Tries of one request before a download gives up; within each the clients repeat and go on by themselves."""
WAIT_SECONDS = 2.0
_STAGE = ".cache/wan-download"
State = Literal["present", "copied", "downloaded"]
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class DownloadPlan:
    """What is to be fetched, and how much of it is there. ``present`` are bytes of whole files of the right size."""

    hub: Hub
    listing: Listing
    folder: Path
    files: tuple[RemoteFile, ...]
    total: int
    present: int


@dataclass(frozen=True)
class FetchedFile:
    """A file that is whole and checked, and whether it was there, in a cache, or on the hub."""

    name: str
    size: int
    sha256: str
    state: State


def plan_download(
    hub: Hub,
    repository: str,
    folder: Path,
    *,
    revision: str | None = None,
    include: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> DownloadPlan:
    """List a repository and choose its files by shell patterns on whole names; all files when there are none.

    Each pattern of ``include`` must name a file, those of ``optional`` need not.

    Raises CheckpointError when the repository, the revision or files for a pattern are missing, or a name is unsafe;
    RequestError for a malformed repository name; MediaError when the files do not fit on the disk.
    """
    check_repository(repository)
    listing = _patiently(hub, lambda: hub.list_files(repository, revision))
    files = _chosen(listing, include, optional, hub.host)
    for name in (_STAGE, *(file.name for file in files)):
        if not (folder / name).parent.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(
                f"{plain_text(folder / name)} would be written through a link out of its folder; refused"
            )
    total, present = sum(file.size for file in files), sum(file.size for file in files if _has_size(folder, file))
    # What an interrupted download left is gone on with, or goes.
    left = sum(path.stat().st_blocks * 512 for path in (folder / _STAGE).rglob("*"))
    check_space(folder, max(0, total - present - left))
    return DownloadPlan(hub, listing, folder, files, total, present)


def download_files(plan: DownloadPlan, progress: Progress = no_progress) -> tuple[FetchedFile, ...]:
    """Fetch the files of a plan, check each, and write the folder's manifest; whole files that are there stay.

    Raises CheckpointError when the hub refuses or stays out of reach, a file does not have the hash that the hub lists,
    or another download writes into the folder; MediaError when the disk does.
    """
    fetched, place = [], plan.folder
    try:
        with _stage(plan.folder) as stage, progress(plan.total, 0) as advance:
            for file in plan.files:
                place = plan.folder / file.name
                fetched.append(_fetched(plan, file, stage, _Position(advance)))
    except OSError as error:
        raise write_error(place, error) from error
    older: dict[str, ManifestEntry] = {}
    with suppress(CheckpointError):  # a damaged one is replaced
        older = read_manifest(plan.folder) or {}
    entries = {name: entry for name, entry in older.items() if (plan.folder / name).is_file()}
    entries |= {file.name: ManifestEntry(file.sha256, file.size) for file in fetched}
    save_manifest(plan.folder, entries, [f"{plan.hub.name}: {plan.listing.repository} at {plan.listing.revision}"])
    return tuple(fetched)


def _fetched(plan: DownloadPlan, file: RemoteFile, stage: Path, position: "_Position") -> FetchedFile:
    """The file: found whole, or copied from a cache or fetched beside, checked, and moved into place."""
    path, staged = plan.folder / file.name, stage / file.name
    state: State = "present"

    def fetch() -> None:
        position.move(0)
        plan.hub.fetch(plan.listing, file, stage, position)

    sha256 = _checked(path, file, position) if _has_size(plan.folder, file) else ""
    if not sha256 and (cached := plan.hub.cached(plan.listing.repository, file)):
        state = "copied"
        staged.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cached, staged)
        sha256 = _checked(staged, file, position)
    if not sha256:
        state = "downloaded"
        _patiently(plan.hub, fetch)
        if not (sha256 := _checked(staged, file, lambda count: None)):
            staged.unlink()
            raise wrong_hash(plan.hub, file.name)
    if state != "present":
        path.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(path)
    position.move(file.size)
    return FetchedFile(file.name, file.size, sha256, state)


class _Position:
    """How far a file is; tells the progress, also when it goes backwards."""

    def __init__(self, advance: Callable[[int], object]) -> None:
        self._advance, self._bytes = advance, 0

    def __call__(self, count: int) -> None:
        self._bytes += count
        self._advance(count)

    def move(self, position: int) -> None:
        self(position - self._bytes)


def _checked(path: Path, file: RemoteFile, advance: Callable[[int], object]) -> str:
    """The SHA-256 of a file, "" when it is not the one that is listed: by SHA-256, or by git's hash of small ones."""
    # Git hashes its own header and the content.
    digests = hashlib.sha256(), hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    for piece in file_pieces(path):
        for digest in digests[: 1 + (len(file.digest) == 40)]:
            digest.update(piece)
        advance(len(piece))
    sha256, git = (digest.hexdigest() for digest in digests)
    return sha256 if path.stat().st_size == file.size and file.digest in {"", sha256, git} else ""


def _has_size(folder: Path, file: RemoteFile) -> bool:
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.size


@contextmanager
def _stage(folder: Path) -> Iterator[Path]:
    """A hidden folder on the same disk for files that are not whole yet, which one process at a time may use."""
    stage = folder / _STAGE
    busy = CheckpointError(f"another download is writing into {plain_text(folder)}; wait for it to end")
    with alone_in(stage, busy):
        yield stage
        shutil.rmtree(stage)


def _chosen(listing: Listing, include: Sequence[str], optional: Sequence[str], host: str) -> tuple[RemoteFile, ...]:
    lost = [pattern for pattern in include if not any(fnmatchcase(file.name, pattern) for file in listing.files)]
    if lost or not listing.files:
        what = f"files like {', '.join(plain_text(pattern) for pattern in lost)}" if lost else "files"
        raise CheckpointError(f"{listing.repository} on {host} has no {what}; check the model and the patterns")
    patterns = (*include, *optional) or ("*",)
    return tuple(file for file in listing.files if any(fnmatchcase(file.name, pattern) for pattern in patterns))


def _patiently(hub: Hub, request: Callable[[], _Answer]) -> _Answer:
    """Repeat a request while its trouble may pass. Raises CheckpointError when it does not."""
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except PassingTroubleError as trouble:
            last = trouble
            if attempt + 1 < ATTEMPTS:
                time.sleep(WAIT_SECONDS * 2**attempt)
    raise CheckpointError(
        f"{hub.host} cannot be reached after {ATTEMPTS} tries: {last}; files that are whole stay: check the network "
        "and run the same command again"
    )
