"""Files: names that are safe to show, checks before work, and the one way of writing: whole or not at all.

A draft lies beside its target under a hidden name that tells the target, this machine and this process. It takes the
target's name when it is whole and goes when anything fails. What a killed process left is removed by the next one that
writes to the same place on the same machine; a draft of a live process, or of another machine, is never touched.
"""

import errno
import os
import platform
import re
import shutil
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import BinaryIO

from wan_core.errors import MediaError, RequestError, WanError

# Characters that reorder the text around them on a screen; the joiner that emoji need is not among them.
_DIRECTION_MARKS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_LINE_BREAKS = frozenset("\t\n\v\f\r\x85\u2028\u2029")

_WRITE_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
    errno.EFBIG: "the file would grow beyond the size allowed here; choose another place or a smaller video",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EPERM: "permission denied; choose a folder that you may write to",
    errno.EROFS: "the disk is read-only; choose another place",
    errno.EIO: "the disk reports an input/output error",
}


def plain_text(text: object) -> str:
    """``text`` on one line, safe to print: breaks become spaces; control, direction and broken characters go."""
    kept = []
    for character in str(text):
        if character in _LINE_BREAKS:
            kept.append(" ")
        elif character not in _DIRECTION_MARKS and unicodedata.category(character) not in {"Cc", "Cs"}:
            kept.append(character)
    return "".join(kept)


def existing_file(path: str | os.PathLike[str], what: str) -> Path:
    """The path of a regular, non-empty file; ``what`` names its role in messages (``image``, ``video``).

    Raises ``RequestError`` when the name leads to no file, ``MediaError`` when the file is empty or out of reach.
    """
    name = os.fspath(path)
    if not name:
        raise RequestError(f"the name of the {what} is empty; give a file")
    shown = plain_text(name)
    try:
        status = os.stat(name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RequestError(f"{what} {shown} does not exist; check the name and the folder") from error
    except PermissionError as error:
        raise MediaError(f"{what} {shown} cannot be read: permission denied") from error
    except (OSError, ValueError) as error:
        raise RequestError(f"{what} {shown[:80]} is no valid file name") from error
    if stat.S_ISDIR(status.st_mode):
        raise RequestError(f"{what} {shown} is a folder; name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise RequestError(f"{what} {shown} is no regular file; save it to one first")
    if status.st_size == 0:
        raise MediaError(f"{what} {shown} is empty (0 bytes); its copy or download has failed")
    return Path(name)


def read_error(path: str | os.PathLike[str], what: str, error: BaseException) -> MediaError:
    """The error of a file that exists but cannot be read or decoded."""
    shown = plain_text(path)
    if isinstance(error, PermissionError):
        return MediaError(f"{what} {shown} cannot be read: permission denied")
    reason = getattr(error, "strerror", None) or error
    return MediaError(f"{what} {shown} is damaged or cut off ({plain_text(reason)[:120]}); save or download it again")


def write_error(path: str | os.PathLike[str], error: OSError) -> WanError:
    """The error of a file that cannot be written; the number of the system's error gives the reason."""
    reason = _WRITE_REASONS.get(error.errno or 0) or plain_text(error.strerror or error)
    return MediaError(f"cannot write {plain_text(path)}: {reason}")


_HOST = re.sub(r"[^A-Za-z0-9]", "", platform.node())[:32] or "host"


def draft_of(path: Path) -> Path:
    """The hidden name beside ``path`` under which this process writes it; drafts that dead ones left there go."""
    stem = f".{path.name[:150]}.{_HOST}-"
    for left in path.parent.glob(f"{escape(stem)}*.part"):
        number = left.name.removeprefix(stem).removesuffix(".part")
        if number.isdigit() and int(number) != os.getpid() and not _is_alive(int(number)):
            _remove(left)
    return path.with_name(f"{stem}{os.getpid()}.part")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _remove(path: Path) -> None:
    with suppress(OSError):  # where the folder is a file there is no draft either
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A draft to write, which takes the place of ``path`` on success; missing folders are made.

    Raises MediaError when the disk refuses.
    """
    path = Path(path)
    draft = draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        os.replace(draft, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        _remove(draft)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """As :func:`replaced_file`, the draft open for writing and on the disk before it is renamed."""
    with replaced_file(path) as draft, draft.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a small text file in one step. Raises MediaError when the disk refuses."""
    with replacing(path) as draft:
        draft.write(text.encode("utf-8"))


@contextmanager
def whole_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, which becomes ``path`` when everything is there and vanishes when anything fails.

    ``overwrite`` takes the place of a folder with content, which stays as it is until then. Raises RequestError when
    ``path`` exists and is not an empty folder, MediaError when the disk refuses.
    """
    is_taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if is_taken and not (overwrite and path.is_dir()):
        raise RequestError(f"{path} exists already; name a new or an empty folder")
    draft = draft_of(path)
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        yield draft
        if is_taken:
            os.replace(path, old)
        os.replace(draft, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        _remove(old)
        _remove(draft)


@contextmanager
def filled_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A draft folder whose files move into ``path`` on success, replacing those of the same name there.

    Raises MediaError when the disk refuses.
    """
    path = Path(path)
    draft = draft_of(path)
    try:
        draft.mkdir(parents=True)
        yield draft
        path.mkdir(exist_ok=True)
        for entry in sorted(draft.rglob("*")):
            place = path / entry.relative_to(draft)
            if entry.is_dir():
                place.mkdir(exist_ok=True)
            else:
                os.replace(entry, place)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        _remove(draft)


def check_place(path: str | os.PathLike[str]) -> None:
    """Check that something could be written at ``path``, or below it; nothing is made. Raises MediaError."""
    path = Path(path)
    near = path if path.is_dir() and not path.suffix else path.parent
    while not near.exists() and near != near.parent:
        near = near.parent
    if not near.is_dir():
        raise MediaError(f"cannot write {plain_text(path)}: {plain_text(near)} is a file; choose another place")
    if not os.access(near, os.W_OK | os.X_OK):
        raise MediaError(f"cannot write to {plain_text(near)}: permission denied; choose another place")
    if path.suffix and path.is_dir():
        raise MediaError(f"cannot write {plain_text(path)}: a folder of that name is there; choose another name")


def free_bytes(path: Path) -> int:
    """Bytes free on the disk where ``path`` is or will be."""
    return shutil.disk_usage(
        next(place for place in (path.absolute(), *path.absolute().parents) if place.is_dir())
    ).free
