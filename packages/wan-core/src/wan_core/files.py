"""Files that users name: checked before anything opens them, and shown so that no name can disturb a terminal."""

import errno
import os
import stat
import unicodedata
from pathlib import Path

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
