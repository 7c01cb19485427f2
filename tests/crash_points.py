"""Let work die before each of its file operations, and look at what lies there."""

import gc
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

_EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.")
MOST = 400
DIED = 77

Content = dict[str, bytes]


def content(folder: Path) -> Content:
    """All files that have a name of their own, by their places."""
    found = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(root).relative_to(folder)
        found |= {(inside / name).as_posix(): (Path(root) / name).read_bytes() for name in files if name[0] != "."}
    return found


def _is_writing(arguments: tuple[object, ...]) -> bool:
    """Whether the event ``open`` (path, mode, flags) is of a file that may be written."""
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def dies_at(work: Callable[[], object], number: int) -> bool:
    """Do ``work`` in a child that is gone before its writing file operation ``number``; whether it came to that."""
    child = os.fork()
    if child == 0:
        gc.freeze()  # what the parent holds, such as a network with threads, is not this process's to take apart
        count = [0]

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            if event.startswith(_EVENTS) or (event == "open" and _is_writing(arguments)):
                count[0] += 1
                if count[0] > number:
                    os._exit(DIED)

        sys.addaudithook(watch)
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, DIED), f"the child ended otherwise ({code})"
    return code == DIED


def crash_everywhere(tmp_path: Path, prepare: Callable[[Path], object], work: Callable[[Path], object]) -> int:
    """Let ``work`` on what ``prepare`` made die at every point; how many points there were."""
    whole = tmp_path / "whole"
    whole.mkdir()
    prepare(whole)
    old = content(whole)
    work(whole)
    new = content(whole)
    assert old != new
    for number in range(MOST):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        prepare(folder)
        died = dies_at(lambda folder=folder: work(folder), number)
        assert content(folder) in (old, new), f"mixed at {number}"
        if not died:
            return number
        work(folder)  # the next run is not disturbed, and sweeps
        assert content(folder) == new
        assert not [path for path in folder.rglob(".*") if path.suffix in {".part", ".old"}]
    raise AssertionError("there is no end")
