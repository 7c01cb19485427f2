"""Other processes of this machine, found again by what they said of themselves; elsewhere than on Linux nobody is."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def own_place() -> str:
    """This process, as others of its machine find it: the machine's start, its number, its own start."""
    try:
        return f"{_BOOT.read_text().strip()} {os.getpid()} {_state(os.getpid())[1]}"
    except OSError:
        return ""


def is_gone(place: str) -> bool:
    """Whether a process was on this machine and has ended. One of another machine is not known to have."""
    pid = _number_here(place)
    return pid is not None and not _is_alive(pid, place)


def end_if_here(place: str) -> None:
    """End a process at once where it is on this machine, also one that is stopped."""
    pid = _number_here(place)
    if pid is not None and _is_alive(pid, place):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _number_here(place: str) -> int | None:
    boot, _, rest = place.partition(" ")
    try:
        return int(rest.partition(" ")[0]) if boot and boot == _BOOT.read_text().strip() else None
    except OSError:
        return None


def _is_alive(pid: int, place: str) -> bool:
    try:
        state, started = _state(pid)
    except OSError:
        return False
    return state not in "ZX" and started == place.rpartition(" ")[2]


def _state(pid: int) -> tuple[str, str]:
    """What a process does, in the letters of the kernel, and when it was started. Raises OSError for none."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # its name may hold anything
    return fields[0], fields[19]
