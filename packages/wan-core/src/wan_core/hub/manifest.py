"""A folder of weights against its manifest: one SHA-256 and size per file, in a text that ``sha256sum -c`` reads."""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from wan_core.drafts import write_text
from wan_core.errors import CheckpointError
from wan_core.files import hash_file, plain_text, stays_inside

MANIFEST_NAME = "manifest.sha256"

Progress = Callable[[int, int], AbstractContextManager[Callable[[int], object]]]
"""Called with the total and the bytes already done; inside the context, called with the bytes of each step."""

_HEADER = "# SHA-256 of every file here; 'wan verify' and 'sha256sum -c' check it"
_ENTRY = re.compile(r"(?P<sha256>[0-9a-fA-F]{64}) [ *](?P<name>.+)")
_SIZE = re.compile(r"# (?P<size>\d{1,18}) bytes")
_MAX_MANIFEST_BYTES = 64_000_000
# Of other tools, or not whole yet: neither written to a manifest nor called extra.
_TEMPORARY_ENDS = (".part", ".tmp", ".incomplete", ".lock")
_FOREIGN_FOLDERS = frozenset({".cache", ".git", "._____temp", "__pycache__"})
_FOREIGN_FILES = frozenset({MANIFEST_NAME, ".DS_Store", ".msc", ".mv", ".mdl"})


@dataclass(frozen=True)
class ManifestEntry:
    """What a file must be: SHA-256 in lower-case hex, and bytes (None when a foreign manifest does not say)."""

    sha256: str
    size: int | None


@contextmanager
def no_progress(total: int, done: int) -> Iterator[Callable[[int], object]]:
    """Progress that nobody sees."""
    yield lambda count: None


def write_manifest(folder: str | Path, progress: Progress = no_progress) -> dict[str, ManifestEntry]:
    """Hash every file of ``folder`` and write its manifest in one step; returns the entries by name.

    Temporary files and those of git and hub clients are left out. Raises CheckpointError for a folder that is missing
    or empty and for links out of it, MediaError when the disk refuses.
    """
    folder = existing_folder(folder)
    sizes = {name: _size(folder, name) for name in _files(folder)}
    if not sizes:
        raise CheckpointError(f"{plain_text(folder)} holds no files; name the folder of a model")
    odd = [name for name in sizes if not is_inside(name)]
    if odd:
        raise CheckpointError(
            f"{plain_text(folder)} holds {plain_text(odd[0])!r}, a name with odd characters; rename it"
        )
    entries = {}
    with progress(sum(sizes.values()), 0) as advance:
        for name, size in sizes.items():
            entries[name] = ManifestEntry(hash_file(folder / name, advance), size)
    save_manifest(folder, entries)
    return entries


def save_manifest(folder: Path, entries: Mapping[str, ManifestEntry], notes: Iterable[str] = ()) -> None:
    """Write the manifest of known hashes, sorted by name, in one step; ``notes`` become comments at its head.

    Raises MediaError when the disk refuses.
    """
    lines = [_HEADER, *(f"# {plain_text(note)}" for note in notes)]
    for name, entry in sorted(entries.items()):
        if entry.size is not None:
            lines.append(f"# {entry.size} bytes")
        lines.append(f"{entry.sha256}  {name}")
    write_text(folder / MANIFEST_NAME, "\n".join(lines) + "\n")


def read_manifest(folder: Path) -> dict[str, ManifestEntry] | None:
    """The entries of a folder's manifest by name, None when it has none.

    Raises CheckpointError when the manifest is damaged or names files outside the folder.
    """
    path = folder / MANIFEST_NAME
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise CheckpointError(f"{plain_text(path)} has more than {_MAX_MANIFEST_BYTES} bytes; it is no manifest")
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {plain_text(path)} ({plain_text(error)[:80]}); write a new one") from error
    entries: dict[str, ManifestEntry] = {}
    size = None
    for number, line in enumerate(lines, start=1):
        if line.startswith("#") or not line.strip():
            comment = _SIZE.fullmatch(line)
            size = int(comment["size"]) if comment else None
            continue
        match = _ENTRY.fullmatch(line)
        name = match["name"] if match else ""
        if match is None or not is_inside(name) or name in entries:
            raise CheckpointError(
                f"line {number} of {plain_text(path)} names no file of its folder, or one twice: "
                f"{plain_text(line)[:120]!r}; write the manifest again with --write"
            )
        entries[name] = ManifestEntry(match["sha256"].lower(), size)
        size = None
    return entries


def verify_folder(folder: str | Path, progress: Progress = no_progress) -> dict[str, ManifestEntry]:
    """Compare ``folder`` with its manifest; returns the manifest's entries when all is as it says.

    Raises one CheckpointError that names every missing, extra, short and changed file; also for links out of the
    folder, and when there is no manifest.
    """
    folder = existing_folder(folder)
    entries = read_manifest(folder)
    if entries is None:
        raise CheckpointError(
            f"{plain_text(folder)} has no {MANIFEST_NAME}; if its files are known to be good, write one with "
            f"'wan verify {plain_text(folder)} --write'"
        )
    differing = [
        f"{len(names)} {kind} ({', '.join(plain_text(name) for name in sorted(names))})"
        for kind, names in _differences(folder, entries, progress).items()
        if names
    ]
    if differing:
        raise CheckpointError(
            f"{plain_text(folder)} differs from its {MANIFEST_NAME}: {'; '.join(differing)}. "
            "Fetch missing, short and changed files again; move extra ones away"
        )
    return entries


def _differences(folder: Path, entries: Mapping[str, ManifestEntry], progress: Progress) -> dict[str, list[str]]:
    sizes = {name: _size(folder, name) for name in entries if os.path.lexists(folder / name)}
    found: dict[str, list[str]] = {"missing": [name for name in entries if name not in sizes]}
    found |= {"extra": [name for name in _files(folder) if name not in entries], "short": [], "changed": []}
    to_hash = []  # files of another size need not be read
    for name, size in sizes.items():
        if entries[name].size in {None, size}:
            to_hash.append(name)
        else:
            found["short" if size < (entries[name].size or 0) else "changed"].append(name)
    with progress(sum(sizes[name] for name in to_hash), 0) as advance:
        found["changed"] += [name for name in to_hash if hash_file(folder / name, advance) != entries[name].sha256]
    return found


def is_inside(name: str) -> bool:
    """Whether a name from a manifest or a server is a plain relative path that stays in its folder.

    Refused: absolute paths and drives, ``.``, ``..`` and empty parts, backslashes, control characters.
    """
    parts = name.split("/")
    return (
        bool(name)
        and all(part not in {"", ".", ".."} for part in parts)
        and not PurePosixPath(name).is_absolute()
        and "\\" not in name
        and ":" not in parts[0]
        and plain_text(name) == name
    )


def existing_folder(folder: str | Path) -> Path:
    """``folder`` as a path. Raises CheckpointError when it is none."""
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise CheckpointError(f"the folder {plain_text(folder)} {what}")
    return folder


def _files(folder: Path) -> list[str]:
    """Names of the files that belong to a manifest, sorted, ``/`` between folders."""
    found = []
    for root, folders, files in os.walk(folder):
        inside = Path(root).relative_to(folder)
        for name in (*folders, *files):
            if (Path(root) / name).is_symlink():
                _check_link(folder, (inside / name).as_posix())
        folders[:] = [name for name in folders if name not in _FOREIGN_FOLDERS]
        found += [
            (inside / name).as_posix()
            for name in files
            if name not in _FOREIGN_FILES and not name.endswith(_TEMPORARY_ENDS)
        ]
    return sorted(found)


def _size(folder: Path, name: str) -> int:
    """Bytes of a regular file. Raises CheckpointError for anything else and for links out of the folder."""
    _check_link(folder, name)
    try:
        status = (folder / name).stat()
    except OSError as error:
        reason = plain_text(error.strerror or error)
        raise CheckpointError(f"cannot read {plain_text(folder / name)}: {reason}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{plain_text(folder / name)} is no regular file; move it away")
    return status.st_size


def _check_link(folder: Path, name: str) -> None:
    """Links must stay inside the folder, or in the blob store of the hub cache that the folder belongs to."""
    path = folder / name
    if not stays_inside(folder, path):
        raise CheckpointError(
            f"{plain_text(path)} is a link out of its folder, to {plain_text(path.resolve())}; such a folder is refused"
        )
