"""Files and folders that users name: how they are shown, checked before anything opens them, and found in a folder."""

import codecs
import errno
import hashlib
import os
import re
import shutil
import stat
import struct
import tempfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from wan_core.errors import CheckpointError, MediaError, RequestError, WanError

# Characters that reorder the text around them on a screen; the joiner that emoji need is not among them.
_DIRECTION_MARKS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_LINE_BREAKS = frozenset("\t\n\v\f\r\x85\u2028\u2029")

# By lower-case ending. A .gif counts as a video.
IMAGE_ENDINGS = (
    ".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".avif", ".jp2", ".heic", ".heif",
)  # fmt: skip
VIDEO_ENDINGS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif")
WEIGHT_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".gguf")

_PROBE_BYTES = 65536
_TEXT_MARKS = (
    (codecs.BOM_UTF8, "UTF-8"), (codecs.BOM_UTF32_LE, "UTF-32-LE"), (codecs.BOM_UTF32_BE, "UTF-32-BE"),
    (codecs.BOM_UTF16_LE, "UTF-16-LE"), (codecs.BOM_UTF16_BE, "UTF-16-BE"),
)  # fmt: skip
_DAMAGED_TEXT = {
    "\0": "it has a zero character, as UTF-16 without its byte order mark has",
    "\ufffd": "it has a replacement character: letters were lost when it was saved",
}

_HALF = "it has half a character, which stands for bytes that are no UTF-8 or is half an escape of JSON"

_LONGEST_QUOTE = 300

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


DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, MemoryError, struct.error,
    zlib.error, RecursionError,
)  # fmt: skip
"""What Pillow and FFmpeg raise for files that nobody writes."""


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


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file as `decode_text` reads it. Raises ``RequestError``, also for what is no regular file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe or a device would not end
            raise RequestError(f"{plain_text(path)} is no regular file")
        data = Path(path).read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read {plain_text(path)}: {plain_text(error.strerror or error)}") from error
    return decode_text(data, path)


def read_toml(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """The values of a TOML file; ``what`` begins the message about one that is none. Raises ``RequestError``."""
    import tomllib

    text = read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers without end
        raise RequestError(f"{what} is no TOML: {plain_text(error):.200}") from error


def decode_text(data: bytes, place: object) -> str:
    """Text in UTF-8, or in UTF-16 or UTF-32 when its byte order mark says so, with ``\\n`` between lines.

    Nothing is guessed or replaced: what is no such text raises ``RequestError`` naming ``place`` and the line.
    """
    mark, encoding = next((each for each in _TEXT_MARKS if data.startswith(each[0])), (b"", "UTF-8"))
    body = data[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        line = body[: error.start].decode(encoding).count("\n") + 1
        raise RequestError(
            f"{plain_text(place)}, line {line}: byte 0x{body[error.start]:02x} is no {encoding} text; save it as UTF-8"
        ) from error
    damage = damage_of(text)
    if damage is not None:
        line = text.count("\n", 0, damage[0]) + 1
        raise RequestError(f"{plain_text(place)}, line {line}: {damage[1]}; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def damage_of(text: str) -> tuple[int, str] | None:
    """Where a text shows that letters of it were lost, and what it has there; ``None`` for one that is whole."""
    found = re.search("[\0\ufffd\ud800-\udfff]", text)
    return None if found is None else (found.start(), _DAMAGED_TEXT.get(found[0], _HALF))


def quoted(text: str) -> str:
    """A text in quotes for a message; of a long one the beginning, and how much follows."""
    more = len(text) - _LONGEST_QUOTE
    return repr(text) if more <= 0 else f"{text[:_LONGEST_QUOTE]!r} and {more} more characters"


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An ``object_pairs_hook`` for JSON: ``ValueError`` for a key that stands twice, of which it drops one."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice!r:.60} stands twice in one object")
    return values


def plain_name(name: str) -> str:
    """A file name in the form in which composed (NFC) and decomposed (NFD) spellings are equal."""
    return unicodedata.normalize("NFC", name)


def natural_order(path: Path) -> tuple[list[tuple[str, int]], str]:
    """A sorting key by file name, without regard to case: frame2 before frame10."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", plain_name(path.name).casefold())
    return [(text, int(number or -1)) for text, number in parts], path.name


def folder_files(folder: Path, endings: Collection[str]) -> list[Path]:
    """The files of a folder that have one of the (lower-case) ``endings``, in natural order; hidden ones do not count.

    Raises ``MediaError`` when the folder cannot be read.
    """
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in endings and path.is_file()]
    except OSError as error:
        raise MediaError(
            f"folder {plain_text(folder)} cannot be read: {plain_text(error.strerror or error)}"
        ) from error
    return sorted((path for path in found if not path.name.startswith(".")), key=natural_order)


def check_place(path: str | os.PathLike[str], *, is_folder: bool = False) -> None:
    """Check that a file (or a folder of files) can be written at ``path``, missing parents made; nothing stays made.

    Raises ``MediaError`` with what stands against it: the place is taken by something else, no permission, no space.
    """
    target, shown = Path(os.path.realpath(path)), plain_text(path)
    if not is_folder and os.path.lexists(target):
        if target.is_dir():
            raise MediaError(f"cannot write {shown}: a folder of that name is there; choose another name")
        if not target.is_file():
            raise MediaError(f"output {shown} exists and is no regular file; choose another name")
        if not os.access(target, os.W_OK):
            raise MediaError(f"cannot write {shown}: it is write-protected; choose another name")
    if is_folder and os.path.lexists(target) and not target.is_dir():
        raise MediaError(f"cannot write into {shown}: it is a file; name a folder, there or new")
    near = nearest_folder(target if is_folder else target.parent, shown)
    try:
        with tempfile.TemporaryFile(dir=near) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
    except OSError as error:
        raise write_error(shown, error) from error


def check_space(path: str | os.PathLike[str], needed: int) -> None:
    """Check that the disk of ``path`` has ``needed`` bytes free. Raises ``MediaError``."""
    free = shutil.disk_usage(nearest_folder(Path(os.path.realpath(path)).parent, plain_text(path))).free
    if needed > free:
        raise MediaError(
            f"{plain_text(path)} needs {gigabytes(needed)}, and {gigabytes(free)} are free there; free some space or "
            "choose another disk"
        )


def gigabytes(count: int) -> str:
    """A number of bytes for people: ``12.3 GB``, ``4.5 MB``, ``678 bytes``."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def nearest_folder(folder: Path, shown: str) -> Path:
    """``folder``, or the first above it that exists. Raises ``MediaError`` naming ``shown`` when that is no folder."""
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise MediaError(f"{plain_text(folder)} is no folder, so {shown} cannot lie in it; choose another place")
    return folder


def stays_inside(folder: Path, path: Path) -> bool:
    """Whether ``path``, links followed, is in ``folder``, or in the blob store of the hub cache that has the folder."""
    try:
        base, real = folder.resolve(), path.resolve()
    except (OSError, ValueError):  # a name that no disk takes, a link to itself
        return False
    allowed = [base, *(parent.parent / "blobs" for parent in base.parents if parent.name == "snapshots")]
    return any(real.is_relative_to(root) for root in allowed)


def hash_file(path: Path, advance: Callable[[int], object] = lambda count: None) -> str:
    """The SHA-256 of a file in hex, read in pieces. Raises CheckpointError when it cannot be read."""
    digest = hashlib.sha256()
    for piece in file_pieces(path):
        digest.update(piece)
        advance(len(piece))
    return digest.hexdigest()


def sample_file(path: Path) -> str:
    """A short name of a file's content, cheap for one of many gigabytes: the SHA-256 of its size, of its first MiB,
    where a header is, and of 16 pieces of 64 KiB from its beginning to its end. Raises CheckpointError."""
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            for number in range(16):
                file.seek(max(0, size - 65536) * number // 15)
                digest.update(file.read(65536))
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()[:16]


def file_pieces(path: Path) -> Iterator[memoryview]:
    """The bytes of a file in pieces of at most 4 MiB, each valid until the next. Raises CheckpointError."""
    buffer = memoryview(bytearray(1 << 22))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                yield buffer[:count]
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot read {plain_text(path)}: {plain_text(error.strerror or error)}")
