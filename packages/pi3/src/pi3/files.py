"""Files that appear whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pi3.errors import MediaError


def _reason(error: OSError) -> str:
    return (error.strerror or str(error) or "the system gives no reason").lower()


def check_place(path: str | os.PathLike[str]) -> None:
    """Raise MediaError when nothing could be written at ``path``; nothing is created."""
    target = Path(path)
    folder = target.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise MediaError(f"cannot write {target}: {folder} is no folder that can be written; choose another place")
    if target.suffix and target.is_dir():
        raise MediaError(f"cannot write {target}: a folder of that name is there; choose another name")


@contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path``; on success it takes that name, otherwise it goes.

    Missing folders are created. Raises MediaError when the disk refuses.
    """
    target = Path(path)
    temporary = target.with_name(f".pi3-{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise MediaError(f"cannot write {target}: {_reason(error)}; choose another place") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside ``path``; on success its files move into ``path``, otherwise it goes.

    Files of the same name in an existing folder are replaced. Raises MediaError when the disk refuses.
    """
    target = Path(path)
    temporary = target.with_name(f".pi3-{secrets.token_hex(4)}.part")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        target.mkdir(exist_ok=True)
        for entry in sorted(temporary.rglob("*")):
            place = target / entry.relative_to(temporary)
            if entry.is_dir():
                place.mkdir(exist_ok=True)
            else:
                os.replace(entry, place)
    except OSError as error:
        raise MediaError(f"cannot write {target}: {_reason(error)}; choose another place") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
