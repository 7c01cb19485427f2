"""The processes of one machine, started by torch's own launcher: what ``torchrun`` does, from within a command."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from wan_core.errors import BackendError

_TO_LEAVE = 15
"""Seconds that processes have to end by themselves when one of them has failed, or when all are told to stop."""

_LOST = tuple(-number for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS))


def start_processes(count: int, command: Sequence[str] | None = None) -> int:
    """Run ``command``, by default that of this process, ``count`` times as one run, and wait; the exit status of it.

    When one fails the others are ended and its status is that of the run; 128 and the number for a signal that this
    process got. Raises BackendError, with its number, for a process that a signal has ended.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What it logs besides is how it ends the other processes; what they say themselves is enough.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    threads = max(1, (os.cpu_count() or 1) // count)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        shutdown_timeout=_TO_LEAVE,
    )
    program, *arguments = this_command() if command is None else command
    try:
        elastic_launch(config, program)(*arguments)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        # One that a signal has ended is why the others have failed.
        killed = {rank: each for rank, each in failed.failures.items() if each.exitcode in _LOST}
        rank, failure = next(iter(killed.items()), failed.get_first_failure())
        if failure.exitcode >= 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        hint = "; it is likely that memory ran out" if name == "SIGKILL" else ""
        raise BackendError(
            f"process {rank} of {count} was ended by {name}{hint}; the others were stopped, no file is half-written"
        ) from failed
    return 0


def this_command() -> list[str]:
    """The words that start this process again: the interpreter, the script or module, its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:  # python -m: by its path, the folder of the module would hide others
        return [sys.executable, "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    return [sys.executable, *sys.argv]
