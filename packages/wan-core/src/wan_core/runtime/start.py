"""The processes of one machine, started and watched as torchrun does it, from within a command.

torch's own launcher gives processes half a minute to leave when one of them has failed, which no setting shortens; here
a run in which one hangs is over within a minute.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta

from wan_core.errors import BackendError, Terminated, WanError
from wan_core.runtime.launch import INTERRUPTED, Said

_POLL = 0.1
_TO_FOLLOW = 3.0
"""Seconds in which the others may end by themselves when one has failed, so that all their statuses are known."""

_TO_LEAVE = 15.0
"""Seconds in which processes that were told to leave may do so."""

_LOST = tuple(-number for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS))
_STOPPED = "the others were stopped, no file is half-written"

Workers = Sequence["subprocess.Popen[bytes]"]


def start_processes(count: int, command: Sequence[str] | None = None) -> int:
    """Run ``command``, by default that of this process, ``count`` times as one run, and wait; the exit status of it.

    When one fails the others are ended and its status is that of the run. Raises BackendError, with its number, for a
    process that a signal has ended, WanError for one that has failed without a sentence of its own, and what interrupts
    this process, after the others have left; where one of these has said so, 128 and the number of the signal is given.
    """
    from torch import distributed

    store = distributed.TCPStore(  # type: ignore[attr-defined]  # torch does not list what it documents
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10)
    )
    said = Said(store)
    words = this_command() if command is None else list(command)
    workers: list[subprocess.Popen[bytes]] = []
    number = signal.SIGTERM
    try:
        for rank in range(count):
            workers.append(subprocess.Popen(words, env={**os.environ, **_variables(rank, count, store.port)}))
        ended = _first_to_fail(workers)
        is_first = said.is_first() if ended else True
        if ended:
            ended = _followed(workers)
    except KeyboardInterrupt as stopped:
        number = signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT
        _end(workers, number)
        if said.is_first(INTERRUPTED):
            raise
        return 128 + number
    finally:
        _end(workers, number)
    return _status(ended, count, is_first=is_first)


def _variables(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun tells a process, the store of this one included."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    return {
        **{name: str(number) for name, number in numbers.items()},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": threads,
        "TORCHELASTIC_RUN_ID": uuid.uuid4().hex,
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _failed(workers: Workers) -> dict[int, int]:
    """The exit statuses of those that have failed, by their numbers."""
    return {rank: status for rank, each in enumerate(workers) if (status := each.poll())}


def _first_to_fail(workers: Workers) -> dict[int, int]:
    """Wait until one has failed, or all have ended."""
    while not (failed := _failed(workers)) and any(each.poll() is None for each in workers):
        time.sleep(_POLL)
    return failed


def _followed(workers: Workers) -> dict[int, int]:
    """Those that have failed a moment after the first one, which the others may have noticed before it was over."""
    until = time.monotonic() + _TO_FOLLOW
    while any(each.poll() is None for each in workers) and time.monotonic() < until:
        time.sleep(_POLL)
    return _failed(workers)


def _end(workers: Workers, number: signal.Signals) -> None:
    """Tell those that are left to leave, also those that are stopped, and end them when they do not."""
    try:
        for each in workers:
            each.send_signal(number)
            if hasattr(signal, "SIGCONT"):
                each.send_signal(signal.SIGCONT)
        until = time.monotonic() + _TO_LEAVE
        for each in workers:
            with suppress(subprocess.TimeoutExpired):
                each.wait(max(0.0, until - time.monotonic()))
    finally:  # also when this one is interrupted once more
        for each in workers:
            each.kill()
        for each in workers:  # one that the system holds does not end: it is left to it
            with suppress(subprocess.TimeoutExpired):
                each.wait(_TO_LEAVE)


def _status(failed: Mapping[int, int], count: int, *, is_first: bool) -> int:
    """The exit status of a run; ``is_first``: none of its processes has said why they failed."""
    if not failed:
        return 0
    if is_first and sys.stderr is not None:
        sys.stderr.write("\n")  # below a bar that stays where it was
    rank, status = _cause(failed, is_first=is_first)
    error = _unsaid(f"process {rank} of {count}", status)
    if error is None:
        return status
    raise error


def _cause(failed: Mapping[int, int], *, is_first: bool) -> tuple[int, int]:
    """Which process the others have followed, and its status.

    Who has noticed that another one failed ends with the status of a BackendError, so any other one comes first; one
    that the system has ended comes before all, unless another one has told of it, and ended it.
    """
    noticed = BackendError.exit_code
    killed = {rank: status for rank, status in failed.items() if status in _LOST}
    own = {rank: status for rank, status in failed.items() if status not in (noticed, *_LOST)}
    if killed and not is_first and not own:
        return next(iter(killed)), noticed
    return next(iter(((killed if is_first else {}) or own or failed).items()))


def _unsaid(who: str, status: int) -> WanError | None:
    """The error of a process that cannot have said why it ended; of others None."""
    if status in _LOST:
        name = signal.Signals(-status).name
        hint = "; it is likely that memory ran out" if name == "SIGKILL" else ""
        return BackendError(f"{who} was ended by {name}{hint}; {_STOPPED}")
    number = -status if status < 0 else status - 128
    if number in set(signal.Signals):
        error = WanError(f"{who} was ended by {signal.Signals(number).name}; {_STOPPED}")
        error.exit_code = 128 + number
        return error
    return WanError(f"{who} has failed, see above; {_STOPPED}") if status == WanError.exit_code else None


def this_command() -> list[str]:
    """The words that start this process again: the interpreter, the script or module, its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:  # python -m: by its path, the folder of the module would hide others
        return [sys.executable, "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    return [sys.executable, *sys.argv]
