"""A model from a hub into a folder: what is needed, resumed where it stopped, checked by hash, with a manifest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from wan_core.errors import CheckpointError
from wan_core.files import check_space, plain_text, write_error
from wan_core.hub.fetch import ATTEMPTS, Fetch, FetchedFile, gave_up, part_of, size_of, wait
from wan_core.hub.http import ConnectionTroubleError
from wan_core.hub.hubs import Hub, Listing, RemoteFile, check_repository
from wan_core.hub.manifest import ManifestEntry, Progress, no_progress, read_manifest, save_manifest


@dataclass(frozen=True)
class DownloadPlan:
    """What is to be fetched, and how much of it is there. ``present`` are bytes of whole files of the right size."""

    hub: Hub
    listing: Listing
    folder: Path
    files: tuple[RemoteFile, ...]
    total: int
    present: int
    partial: int

    @property
    def missing(self) -> int:
        """Bytes that the disk must take."""
        return self.total - self.present - self.partial


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
    files = _chosen(listing, include, optional, hub.client.host)
    present = partial = 0
    for file in files:
        _check_place(folder, file.name)
        size = size_of(folder / file.name)
        if size == file.size:
            present += size
        else:
            partial += min(size_of(part_of(folder, file)) or 0, file.size)
    plan = DownloadPlan(hub, listing, folder, files, sum(file.size for file in files), present, partial)
    check_space(plan.folder, plan.missing)
    return plan


def download_files(plan: DownloadPlan, progress: Progress = no_progress) -> tuple[FetchedFile, ...]:
    """Fetch the files of a plan, check each, and write the folder's manifest.

    An interrupted file stays as a hidden ``*.part`` and is gone on with next time. Raises CheckpointError when the hub
    refuses or stays out of reach, or a file does not have the hash that the hub lists; MediaError when the disk does.
    """
    fetched = []
    with progress(plan.total, 0) as advance:
        for file in plan.files:
            try:
                fetched.append(Fetch(plan.hub, plan.listing, plan.folder, file, advance).run())
            except OSError as error:
                raise write_error(plan.folder / file.name, error) from error
    entries = {name: entry for name, entry in _older_entries(plan.folder).items() if (plan.folder / name).is_file()}
    entries |= {file.name: ManifestEntry(file.sha256, file.size) for file in fetched}
    save_manifest(plan.folder, entries, [f"{plan.hub.name}: {plan.listing.repository} at {plan.listing.revision}"])
    return tuple(fetched)


def _older_entries(folder: Path) -> dict[str, ManifestEntry]:
    try:
        return read_manifest(folder) or {}
    except CheckpointError:  # a damaged one is replaced
        return {}


def _chosen(listing: Listing, include: Sequence[str], optional: Sequence[str], host: str) -> tuple[RemoteFile, ...]:
    lost = [pattern for pattern in include if not any(fnmatchcase(file.name, pattern) for file in listing.files)]
    if lost or not listing.files:
        what = f"files like {', '.join(plain_text(pattern) for pattern in lost)}" if lost else "files"
        raise CheckpointError(f"{listing.repository} on {host} has no {what}; check the model and the patterns")
    patterns = (*include, *optional) or ("*",)
    return tuple(file for file in listing.files if any(fnmatchcase(file.name, pattern) for pattern in patterns))


def _check_place(folder: Path, name: str) -> None:
    """No link below the folder may lead a file out of it."""
    if not (folder / name).parent.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{plain_text(folder / name)} would be written through a link out of its folder; refused")


def _patiently(hub: Hub, request: Callable[[], Listing]) -> Listing:
    """Repeat a small request while its trouble may pass. Raises CheckpointError when it does not."""
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except ConnectionTroubleError as trouble:
            last = trouble
            wait(attempt, trouble)
    raise gave_up(hub, last)
