"""Files and folders that appear whole or not at all.

What is written goes into a draft first: a hidden neighbour of its target, ``.NAME.MACHINE-PID-RANDOM.part``. A draft
of a process that was killed is removed by the next write into the same folder; that of a living one is left alone, and
that of another machine (every container is one, and the same one after a restart) as long as it was changed within a
day. An ending ``.set`` is that of finished files on their way into a folder, which the next write there completes.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from wan_core.errors import RequestError, WanError
from wan_core.files import plain_text, write_error

_DRAFT = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}\.(?P<kind>part|old|set)")
_MAX_NAME_BYTES = 200  # of a target in the name of its draft: file systems take 255 in all
_ABANDONED_SECONDS = 24 * 3600.0
_own_drafts: set[str] = set()


class Draft:
    """The hidden place of a file or folder that is being written: takes its name by :meth:`commit`, or goes.

    A context manager; leaving it without a commit, for whatever reason, removes everything that it created, missing
    parent folders included. ``path`` is where to write: a name that is free, or with ``is_folder`` an empty folder.
    An old file or folder stays whole until the commit, and so does a set of files: with ``merge`` the files of the
    folder come into one that is there already, all at once, replacing those of their names. (Where the folder cannot be
    exchanged, the root of a disk, the working folder, one of another user, a disk without links, the old ones go first
    and the new ones come one by one; after a kill there, the next write into the folder brings the rest.) What lies
    below the names in ``owned`` belongs to the set, and goes with the old one. A folder that is a link is written
    where the link leads. Raises ``MediaError`` when the disk refuses.
    """

    def __init__(
        self, target: Path, *, is_folder: bool = False, merge: bool = False, owned: Collection[str] = ()
    ) -> None:
        self._is_folder, self._merge = is_folder or merge, merge
        self.target = target = Path(os.path.realpath(target)) if self._is_folder else target
        self._owned = frozenset(owned)
        self._created: list[Path] = []
        self._folder = target if merge and target.is_dir() and not _can_be_exchanged(target) else target.parent
        self.path = _draft_path(self._folder, target.name)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as on_failure, self.errors():
            on_failure.callback(self.discard)
            self._make_folders()
            remove_abandoned(self._folder)
            if self._merge and self.target.is_dir():
                remove_abandoned(self.target)
            _own_drafts.add(self.path.name)
            if self._is_folder:
                self.path.mkdir()
            on_failure.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the system's errors into a ``MediaError`` that names the target and the remedy."""
        try:
            yield
        except OSError as error:
            raise write_error(self.target, error) from error

    def commit(self) -> None:
        """Give the finished draft its name. Raises ``MediaError``."""
        with self.errors():
            for path in [*self.path.rglob("*")] if self._is_folder else []:
                _sync(path)
            _await(lambda: _sync(self.path))
            if self._merge and self.target.is_dir():
                self._merge_folders()
            elif self._is_folder and self.target.is_dir():
                self._swap_folders()
            else:
                _await(lambda: os.replace(self.path, self.target))
            _sync(self._folder)
        self._created.clear()

    def discard(self) -> None:
        """Remove what was created and not committed; harmless after a commit."""
        _remove(self.path)
        _own_drafts.discard(self.path.name)
        while self._created:
            with contextlib.suppress(OSError):
                self._created.pop().rmdir()

    def _make_folders(self) -> None:
        missing, folder = [], self._folder
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another process was first
                new.mkdir()
                self._created.append(new)

    def _merge_folders(self) -> None:
        ours = set(_files_in(self.path))
        if self._folder != self.target and self._took_the_rest():
            self._swap_folders(ours)
            return
        taken = [name for name in sorted(ours) if (self.target / name).is_dir()]
        if taken:
            raise IsADirectoryError(errno.EISDIR, f"{taken[0]} is a folder there")
        for name in set(_files_in(self.path)) - ours:  # links of the others
            (self.path / name).unlink()
        finished = _draft_path(self.target, self.target.name, "set")
        _own_drafts.add(finished.name)
        try:
            os.replace(self.path, finished)
            _move_in(finished, self.target, self._owned)
        finally:
            _own_drafts.discard(finished.name)  # the rest, if there is one, is for the next write

    def _took_the_rest(self) -> bool:
        """Link all other files of the target into the draft, so that the two can be exchanged; whether that worked."""
        try:
            for entry in sorted(self.target.rglob("*")):
                name = entry.relative_to(self.target)
                place = self.path / name
                if name.parts[0] in self._owned:
                    continue
                with contextlib.suppress(FileNotFoundError):  # it is gone meanwhile
                    if entry.is_dir() and not entry.is_symlink():
                        place.mkdir(exist_ok=True)
                    elif not os.path.lexists(place):
                        os.link(entry, place, follow_symlinks=False)
            status = self.target.stat()
            os.chown(self.path, status.st_uid, status.st_gid)
            shutil.copystat(self.target, self.path)
        except OSError:
            return False
        return True

    def _swap_folders(self, ours: Collection[Path] | None = None) -> None:
        """Exchange the two; else put the old one aside under a name from which it comes back after a kill here.

        With the names of a set's own files, what came into the old folder since it was looked at is brought along.
        """
        if _exchange(self.path, self.target):
            if ours is not None:
                self._bring_late(self.path, ours)
            return
        old = _draft_path(self._folder, self.target.name, "old")
        _own_drafts.add(old.name)
        os.replace(self.target, old)
        try:
            os.replace(self.path, self.target)
        finally:
            if not os.path.lexists(self.target):
                os.replace(old, self.target)
            elif ours is not None:
                self._bring_late(old, ours)
            _remove(old)
            _own_drafts.discard(old.name)

    def _bring_late(self, old: Path, ours: Collection[Path]) -> None:
        """Move files that others wrote into the ``old`` folder while it was being replaced to the new one."""
        for name in _files_in(old):
            place = self.target / name
            if name in ours or name.parts[0] in self._owned:
                continue
            with contextlib.suppress(FileNotFoundError):  # its writer was faster
                if not (os.path.lexists(place) and os.path.samestat(os.lstat(old / name), os.lstat(place))):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(old / name, place)


def _await(action: Callable[[], object]) -> object:
    """Try again while a draft is not there: another process just replaces its folder, and brings it along."""
    for _ in range(20):
        with contextlib.suppress(FileNotFoundError):
            return action()
        time.sleep(0.05)
    return action()


def _files_in(folder: Path) -> list[Path]:
    """The places of all files below a folder, from there on; a link is one."""
    return [each.relative_to(folder) for each in sorted(folder.rglob("*")) if each.is_symlink() or not each.is_dir()]


def _move_in(finished: Path, target: Path, owned: Collection[str] = ()) -> None:
    """Move a finished set into a folder: the old files of its names go first, so that old and new are never mixed."""
    for old in (target / name for name in owned):
        if os.path.lexists(old):
            aside = _draft_path(target, old.name)
            os.replace(old, aside)
            _remove(aside)
    names = _files_in(finished)
    for name in names:
        (target / name).unlink(missing_ok=True)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(finished / name, target / name)
    _remove(finished)


@contextlib.contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A draft of the file ``path`` to write, which takes its place when the block ends well. Raises as `Draft`."""
    with Draft(Path(path)) as draft, draft.errors():
        yield draft.path
        draft.commit()


@contextlib.contextmanager
def merged_folder(path: str | os.PathLike[str], *, owned: Collection[str] = ()) -> Iterator[Path]:
    """A draft folder to fill, whose files come into ``path`` when the block ends well; see `Draft`."""
    with Draft(Path(path), merge=True, owned=owned) as draft, draft.errors():
        yield draft.path
        draft.commit()


@contextlib.contextmanager
def whole_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A draft folder to fill, which becomes ``path`` when the block ends well; ``overwrite`` replaces one with content.

    Raises ``RequestError`` when ``path`` exists and is not an empty folder, and as `Draft` does.
    """
    is_taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if is_taken and not (overwrite and path.is_dir()):
        raise RequestError(f"{plain_text(path)} exists already; name a new or an empty folder")
    with Draft(path, is_folder=True) as draft, draft.errors():
        yield draft.path
        draft.commit()


def remove_folder(path: Path) -> None:
    """Remove a folder such that no part of it is ever seen under its name, should the process be killed here."""
    draft = _draft_path(path.parent, path.name)
    _own_drafts.add(draft.name)
    with contextlib.suppress(OSError):
        os.replace(path, draft)
    _remove(draft)
    _own_drafts.discard(draft.name)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a small file in one step. Raises ``MediaError`` when the disk refuses."""
    with replaced_file(path) as draft:
        draft.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a small UTF-8 file in one step. Raises ``MediaError`` when the disk refuses."""
    write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def alone_in(folder: Path, refusal: WanError, *, name: str = ".lock", wait: float = 0) -> Iterator[None]:
    """Hold ``name`` in ``folder`` (made if missing) for one process, among all machines where the disk can tell.

    Raises ``refusal`` when another process holds it after ``wait`` seconds, ``MediaError`` when the disk refuses.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait)
    except Timeout:
        raise refusal from None
    except NotImplementedError:
        pass  # a disk that has no locks
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def is_writing() -> bool:
    """Whether this process has drafts at the moment."""
    return bool(_own_drafts)


@cache
def _machine() -> str:
    """Eight hex digits for where process numbers mean the same: a host since its start, and a container on it.

    A host's name does not tell: many have the same one, and the first space of process numbers is called alike on all.
    """
    place = os.uname().nodename
    with contextlib.suppress(OSError):
        place += Path("/proc/sys/kernel/random/boot_id").read_text()
    with contextlib.suppress(OSError):
        place += os.readlink("/proc/self/ns/pid")
    return f"{zlib.crc32(place.encode()):08x}"


def _draft_path(folder: Path, name: str, kind: str = "part") -> Path:
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        name = f"{zlib.crc32(os.fsencode(name)):08x}"
    return folder / f".{name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.{kind}"


def abandoned_drafts(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Drafts in ``folder`` that nobody writes any more, and the targets that they were for."""
    for name in sorted(os.listdir(folder)):
        found = _DRAFT.fullmatch(name)
        if found is None:
            continue
        is_ours = found["machine"] == _machine()
        if not (_is_written(name, int(found["pid"])) if is_ours else _is_recent(folder / name)):
            yield folder / name, folder / found["name"]


def remove_abandoned(folder: Path) -> None:
    """Remove what processes that are no more left here; a folder put aside gets its name back, a set comes in."""
    for draft, target in abandoned_drafts(folder):
        if draft.suffix == ".set":
            with contextlib.suppress(OSError):
                _move_in(draft, folder)
        elif draft.suffix == ".old" and not os.path.lexists(target):
            os.replace(draft, target)
        else:
            _remove(draft)


def _is_recent(draft: Path) -> bool:
    """Whether a draft of another machine, whose processes cannot be seen from here, may still be written."""
    with contextlib.suppress(OSError):
        paths: list[Path] = [draft, *(draft.rglob("*") if draft.is_dir() else ())]
        return max(path.stat().st_mtime for path in paths) > time.time() - _ABANDONED_SECONDS
    return True


def _is_written(name: str, process: int) -> bool:
    if process == os.getpid():
        return name in _own_drafts  # otherwise of an earlier process that had this number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # of another user: alive
    return True


def _can_be_exchanged(folder: Path) -> bool:
    """Whether another folder may take the place of this one: not of a disk's root, nor of the working folder, nor of
    one whose owner we cannot make the owner of ours."""
    real = folder.resolve()
    with contextlib.suppress(OSError):
        here = Path.cwd()
        is_ours = os.geteuid() in (0, real.stat().st_uid)
        is_free = real != here and real not in here.parents and not real.is_mount()
        return is_ours and is_free and os.access(real.parent, os.W_OK)
    return False


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders take each other's names in one step; whether the system and the disk can do that."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "renameat2"):  # Linux, glibc 2.28
        here, exchange = -100, 2
        return bool(library.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
    if hasattr(library, "renamex_np"):  # macOS
        swap = 2
        return bool(library.renamex_np(os.fsencode(one), os.fsencode(other), swap) == 0)
    return False


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Make the disk confirm the data, so that a full disk is noticed before the old file is replaced."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
