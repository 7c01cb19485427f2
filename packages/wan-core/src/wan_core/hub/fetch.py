"""One file of a repository: resumed where it stopped, streamed with patience, checked by its hash, moved into place."""

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from io import FileIO
from pathlib import Path
from typing import Literal

from wan_core.errors import CheckpointError
from wan_core.files import plain_text
from wan_core.hub.http import Answer, ConnectionTroubleError, StatusError
from wan_core.hub.hubs import Hub, Listing, RemoteFile, refusal
from wan_core.hub.manifest import file_pieces

ATTEMPTS = 6
"""Tries in a row that may bring nothing before a download gives up."""
BACKOFF_SECONDS = 1.0
"""The first wait between them; each is twice as long as the one before, 30 s at most."""

_MAX_WAIT_SECONDS = 30.0
_PIECE_BYTES = 1 << 20
_RANGE = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<total>\d+|\*)")
_GIT_HASH = re.compile(r"[0-9a-f]{40}")
State = Literal["present", "downloaded", "resumed", "copied"]


@dataclass(frozen=True)
class FetchedFile:
    """A file that is whole and checked; ``received`` are the bytes that came over the network for it."""

    name: str
    size: int
    sha256: str
    state: State
    received: int


def size_of(path: Path) -> int | None:
    """Bytes of a file, None when there is none."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def part_of(folder: Path, file: RemoteFile) -> Path:
    """Named by the hash, so that bytes of another revision are never gone on with."""
    path = folder / file.name
    return path.with_name(f".{path.name[:200]}.{file.digest[:16] or f'{file.size}-bytes'}.part")


def wait(attempt: int, trouble: ConnectionTroubleError) -> None:
    """Sleep before the next try, if there is one."""
    if attempt + 1 < ATTEMPTS:
        time.sleep(min(max(BACKOFF_SECONDS * 2**attempt, trouble.wait), _MAX_WAIT_SECONDS))


def gave_up(hub: Hub, trouble: ConnectionTroubleError) -> CheckpointError:
    """The error when all tries are used up."""
    return CheckpointError(
        f"{hub.client.host} cannot be reached after {ATTEMPTS} tries: {plain_text(trouble)[:120]}; what is there "
        "stays: check the network and run the same command again"
    )


def _write_all(part: FileIO, piece: bytes | memoryview) -> None:
    """Unbuffered files may take a piece in parts."""
    rest = memoryview(piece)
    while rest:
        rest = rest[part.write(rest) or 0 :]


class _Digests:
    """The SHA-256 of a file and, where the hub lists git's hash, that too."""

    def __init__(self, file: RemoteFile) -> None:
        self._expected = file.digest
        self._sha256 = hashlib.sha256()
        # Git hashes its own header and the content; it is what a hub lists for files outside its large-file storage.
        self._git = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
        self._needs_git = len(file.digest) == 40

    def update(self, piece: bytes | memoryview) -> None:
        self._sha256.update(piece)
        if self._needs_git:
            self._git.update(piece)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def fits(self) -> bool:
        return self._expected in {"", self.sha256, self._git.hexdigest()}


class Fetch:
    """One file: found whole, copied from a cache, or streamed into its part and moved into place."""

    def __init__(
        self, hub: Hub, listing: Listing, folder: Path, file: RemoteFile, advance: Callable[[int], object]
    ) -> None:
        self.hub = hub
        self.listing = listing
        self.file = file
        self.path = folder / file.name
        self.part = part_of(folder, file)
        self.advance = advance
        self.counted = 0
        self.received = 0

    def run(self) -> FetchedFile:
        """The file, whole and checked. Raises CheckpointError, OSError of the disk."""
        if size_of(self.path) == self.file.size:
            digests = self._hash(self.path)
            if digests.fits:
                return self._done(digests, "present")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open_part() as part:
            if not self.file.digest:  # nothing tells whether these bytes belong to the file of today
                part.truncate(0)
            had = os.fstat(part.fileno()).st_size
            digests, state = self._filled(part, had)
            os.fsync(part.fileno())
        os.replace(self.part, self.path)
        for stale in self.path.parent.glob(f".{escape(self.path.name[:200])}.{'[0-9a-f]' * 16}.part"):
            stale.unlink(missing_ok=True)
        return self._done(digests, state)

    def _done(self, digests: _Digests, state: State) -> FetchedFile:
        return FetchedFile(self.file.name, self.file.size, digests.sha256, state, self.received)

    def _filled(self, part: FileIO, had: int) -> tuple[_Digests, State]:
        """Fill the part; once more from its beginning when the bytes that were there turn out wrong."""
        cached = None if had else self.hub.cached(self.listing.repository, self.file)
        if cached is not None:
            digests = self._copy(cached, part)
            if digests.fits:
                return digests, "copied"
            part.truncate(0)
            self._count(0)
        for start in (had, 0) if had else (0,):
            digests = self._resume(part) if start else self._restart(part)
            self._stream(part, digests)
            if digests.fits:
                return digests, "resumed" if start else "downloaded"
        self.part.unlink(missing_ok=True)
        raise CheckpointError(
            f"{self.file.name} from {self.hub.client.host} does not have the hash that is listed for it; it was "
            "deleted: run the command again, and if it fails again the copy there or the network is damaged"
        )

    def _count(self, position: int) -> None:
        """Move the progress to ``position`` in this file, also backwards."""
        self.advance(position - self.counted)
        self.counted = position

    def _hash(self, path: Path) -> _Digests:
        digests = _Digests(self.file)
        position = 0
        for piece in file_pieces(path):
            digests.update(piece)
            position += len(piece)
            self._count(position)
        return digests

    def _copy(self, source: Path, part: FileIO) -> _Digests:
        digests = _Digests(self.file)
        for piece in file_pieces(source):
            _write_all(part, piece)
            digests.update(piece)
            self._count(self.counted + len(piece))
        return digests

    def _resume(self, part: FileIO) -> _Digests:
        if os.fstat(part.fileno()).st_size > self.file.size:
            part.truncate(0)
        return self._hash(self.part)

    def _restart(self, part: FileIO) -> _Digests:
        part.truncate(0)
        self._count(0)
        return _Digests(self.file)

    def _stream(self, part: FileIO, digests: _Digests) -> None:
        """Append what is missing, connection after connection, as long as they bring something now and then."""
        idle = 0
        while (start := os.fstat(part.fileno()).st_size) < self.file.size:
            try:
                self._receive(part, digests, start)
            except ConnectionTroubleError as trouble:
                idle = 0 if os.fstat(part.fileno()).st_size > start else idle + 1
                if idle >= ATTEMPTS:
                    raise gave_up(self.hub, trouble) from None
                wait(idle, trouble)
            except StatusError as error:
                raise self._refused(error) from None

    def _refused(self, error: StatusError) -> CheckpointError:
        if error.status == 404:
            return CheckpointError(f"{self.hub.client.host} lists {self.file.name} but does not have it; try later")
        return refusal(self.hub, self.listing.repository, None, error)

    def _receive(self, part: FileIO, digests: _Digests, start: int) -> None:
        path = self.hub.path_of(self.listing, self.file)
        with self.hub.client.open(path, start) as answer:
            self._check_answer(answer, start)
            skip = start if answer.status == 200 else 0  # a server without ranges sends all of it again
            position = start
            while piece := answer.read(_PIECE_BYTES):
                if skip:
                    piece, skip = piece[skip:], max(0, skip - len(piece))
                position += len(piece)
                if position > self.file.size:
                    raise CheckpointError(
                        f"{self.hub.client.host} sends more than the {self.file.size} bytes it lists for "
                        f"{self.file.name}; refused"
                    )
                _write_all(part, piece)
                digests.update(piece)
                self.received += len(piece)
                self._count(position)
        if position < self.file.size:
            raise ConnectionTroubleError("the connection was cut")

    def _check_answer(self, answer: Answer, start: int) -> None:
        """The range that was asked for, of the file that was listed."""
        found = _RANGE.fullmatch(answer.content_range)
        total = found["total"] if found else "*"
        right = found is not None and int(found["start"]) == start and total in {"*", str(self.file.size)}
        if answer.status == 206 and not right:
            raise CheckpointError(
                f"{self.hub.client.host} answers with another part of {self.file.name} than was asked for"
            )
        # Storage servers have tags of their own kinds; only the hub's own, of the listed hash's form, says something.
        tag = answer.linked_etag or (answer.etag if _GIT_HASH.fullmatch(answer.etag) else "")
        if tag and len(tag) == len(self.file.digest) and tag != self.file.digest:
            raise CheckpointError(
                f"{self.hub.client.host} now has another {self.file.name} than it listed; run the command again"
            )

    @contextmanager
    def _open_part(self) -> Iterator[FileIO]:
        """The part, for appending, unbuffered: what was received survives the end of the process."""
        with self.part.open("ab", buffering=0) as part:
            if sys.platform != "win32":
                import fcntl

                try:
                    fcntl.flock(part.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise CheckpointError(
                        f"another download is writing {plain_text(self.path)}; wait for it to end"
                    ) from error
            yield part
