"""Several processes of one run: what torchrun says about this one, and its process group while it is needed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from itertools import count
from typing import TYPE_CHECKING, Any

from wan_core import errors
from wan_core.errors import BackendError, LostProcessError, Terminated, WanError
from wan_core.runtime.heartbeat import has_left, watched
from wan_core.runtime.neighbours import end_if_here, is_gone, own_place

if TYPE_CHECKING:
    import torch

_PATIENCE = timedelta(hours=1)
_AT_WORK = timedelta(days=1)
_groups = count()
INTERRUPTED = "interrupted"
"""What stands for the sentence of a process that was interrupted: their words differ."""

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """This process among ``world``: ``rank`` over all machines, ``local_rank`` on this one of ``local_world``.

    None is all of them.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int | None = None

    @property
    def on_machine(self) -> int:
        """How many processes of the run are on this machine."""
        return self.local_world or self.world

    def device(self, asked: str | None = None) -> str:
        """The device of this process: its own GPU where nothing, or just ``cuda``, was asked for."""
        import torch

        if asked in (None, "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank}"
        return asked or "cpu"


def launched(environment: Mapping[str, str] | None = None) -> Launch | None:
    """What torchrun's variables say, None without them or for a single process.

    Raises BackendError when only some are set, or when they are no numbers that can be.
    """
    environment = os.environ if environment is None else environment
    if not any(name in environment for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        return None
    missing = [name for name in _VARIABLES if name not in environment]
    if missing:
        raise BackendError(
            f"of torchrun's variables {', '.join(missing)} is missing; start with torchrun, or unset all"
        )
    try:
        rank, world, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        on_machine = int(environment.get("LOCAL_WORLD_SIZE", world))
    except ValueError as error:
        raise BackendError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {error}") from error
    if not 0 <= rank < world or local < 0:
        raise BackendError(f"RANK {rank} of WORLD_SIZE {world} cannot be; start with torchrun, or unset all")
    return Launch(rank, world, local, on_machine) if world > 1 else None


class Said:
    """What the processes of a run have told, by the store of the launcher that started them."""

    def __init__(self, store: Any, attempt: str = "0") -> None:
        self._store = store
        self._prefix = f"wan-said-{attempt}"

    @classmethod
    def by_launcher(cls, environment: Mapping[str, str]) -> Said | None:
        """By torchrun's variables; None where there is no launcher, or where it cannot be reached."""
        if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return None
        try:
            store = _connection(environment, timedelta(seconds=10))
        except (KeyError, ValueError, RuntimeError):
            return None
        return cls(store, environment.get("TORCHELASTIC_RESTART_COUNT", "0"))

    def is_anything(self) -> bool:
        """Whether any process has told anything."""
        return int(self._store.add(self._prefix, 0)) > 0

    def is_first(self, sentence: str = "") -> bool:
        """Whether nobody has told ``sentence``, or anything, before; it counts as told from now on."""
        told = int(self._store.add(self._prefix, 1))
        key = f"{self._prefix}-{hashlib.sha256(sentence.encode()).hexdigest()}"
        return (int(self._store.add(key, 1)) if sentence else told) == 1


def is_first_to_say(
    sentence: str, environment: Mapping[str, str] | None = None, *, unless_told_in: float | None = None
) -> bool:
    """Whether no other process of this run has said ``sentence``, so that a failure of all is told once.

    With ``unless_told_in`` neither may another one have told anything at all, now or within so many seconds. The
    processes agree through the store of torchrun, or of `start_processes`. True where there is none, or where it cannot
    be reached.
    """
    said = Said.by_launcher(os.environ if environment is None else environment)
    if said is None:
        return True
    try:
        if unless_told_in is not None:
            time.sleep(unless_told_in)
            if said.is_anything():
                return False
        return said.is_first(sentence)
    except RuntimeError:
        return True


def made_by_first(launch: Launch | None, name: str, make: Callable[[], str], *, together: int | None = None) -> str:
    """What the first process of a run makes, in all of them; alone, what ``make`` gives. Before there is a group.

    With ``together`` the first of every so many neighbours makes it for those. ``name`` is the text's own in the run.
    Others wait as long as it takes, up to a day. An error of the family that the first process meets is raised in all.
    Raises BackendError when the processes cannot meet, or the first one is gone.
    """
    if launch is None or together == 1:
        return make()
    group, place = divmod(launch.rank, together or launch.world)
    said = ["", ""]
    if place == 0:
        try:
            said = ["", make()]
        except WanError as error:
            said = [next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__)), str(error)]
    try:
        store, key = _meet(launch), f"{name}-{group}"
        if place == 0:
            store.set(key, json.dumps(said))
        store.wait([key], _AT_WORK)
        said = json.loads(store.get(key))
        _arrive(store, f"{name}-read", launch, all_wait=False)
    except (RuntimeError, ValueError) as error:
        raise BackendError(f"process {launch.rank} of {launch.world} cannot reach the others: {error}") from error
    kind, text = map(str, said)
    if kind:
        raise getattr(errors, kind)(text)
    return text


def _connection(environment: Mapping[str, str], patience: timedelta) -> Any:
    """A connection of its own to the store that torchrun's variables name; who holds it must be there already."""
    from torch import distributed

    return distributed.TCPStore(  # type: ignore[attr-defined]  # torch does not list what it documents
        environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), timeout=patience
    )


def _meet(launch: Launch) -> Any:
    """The store of all processes, the same one each time. Raises RuntimeError or ValueError where none is reached."""
    return _met_at(launch, os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"))


@cache
def _met_at(launch: Launch, _address: str | None, _port: str | None) -> Any:
    # One for the life of the process: another connects to the store that the first process is about to close.
    from torch import distributed

    meeting = distributed.rendezvous(  # type: ignore[attr-defined]  # torch does not list what it documents
        "env://", launch.rank, launch.world, timeout=_PATIENCE
    )
    return next(meeting)[0]


def _arrive(store: Any, name: str, launch: Launch, *, all_wait: bool) -> None:
    """Say that this process has come to ``name``, and wait for all others; of those that may end, the first one only.

    Who holds the store ends last: nobody asks it for anything after having come.
    """
    if store.add(name, 1) == launch.world:
        store.set(f"{name}-by-all", "")
    if all_wait or launch.rank == 0:
        store.wait([f"{name}-by-all"], _AT_WORK)


@contextmanager
def process_group(launch: Launch, device: torch.device) -> Iterator[None]:
    """The default process group (nccl on GPUs, gloo on the CPU); it is gone afterwards, also after an error.

    Who waits for a process that is at work waits a day: videos of others, and their decoding, take what they take. A
    process that has stopped ends the run within a minute (`wan_core.runtime.heartbeat`). Raises BackendError when the
    processes cannot meet, and LostProcessError when one of the others ends while this one waits for it; errors of the
    family that pass through say which process met them.
    """
    import torch
    from torch import distributed

    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        # What a group that is gone has left behind is not read by the next one.
        name = f"wan-group-{next(_groups)}"
        store = distributed.PrefixStore(name, _meet(launch))  # type: ignore[attr-defined]
        store.set(f"place-{launch.rank}", own_place())
        _arrive(store, "arrived", launch, all_wait=True)
        # One that holds the store and has stopped is silent: the watch must not give up before it is noticed.
        watch = distributed.PrefixStore(name, _connection(os.environ, _PATIENCE))  # type: ignore[attr-defined]
        places = [store.get(f"place-{rank}").decode() for rank in range(launch.world)]
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=launch.rank,
            world_size=launch.world,
            timeout=_AT_WORK,
        )
    except (RuntimeError, ValueError) as error:
        raise BackendError(f"process {launch.rank} of {launch.world} cannot reach the others: {error}") from error
    try:
        with watched(watch, launch.rank, launch.world, partial(_end_run, places)):
            yield
    except WanError as error:
        error.process = f"process {launch.rank} of {launch.world}"
        raise
    except (RuntimeError, Terminated) as error:
        lost = [rank for rank, place in enumerate(places) if is_gone(place) and not has_left(store, rank)]
        if lost:  # and torchrun tells the others to leave
            raise LostProcessError(f"{_named(lost, launch.world)} ended in the middle of its work") from error
        if not isinstance(error, RuntimeError) or not _is_about_others(error):
            raise
        reason = str(error).strip().partition("\n")[0][:120]
        raise LostProcessError(f"another process of this run has ended or cannot be reached: {reason}") from error
    finally:
        distributed.destroy_process_group()


def _named(ranks: Sequence[int], world: int) -> str:
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} of {world}"


def _end_run(places: Sequence[str], silent: Sequence[int]) -> None:
    """End this process at once, whatever its main thread waits for, and say who is lost; the launcher ends the others.

    Those who are lost are ended, too, where they are on this machine: told to leave, one that is stopped does not. A
    file that is being written stays the hidden draft that it is, as after a kill.
    """
    sentence = (
        f"{_named(silent, len(places))} gave no sign of life for half a minute: stopped, or the machine is gone; the "
        "run has ended, start it again"
        if silent
        else "who started this process is gone, and with it the run; start it again"
    )
    if is_first_to_say(sentence):
        with suppress(OSError):
            os.write(2, f"\nError: {sentence}\n".encode())
    for rank in silent:
        end_if_here(places[rank])
    os._exit(BackendError.exit_code)


def _is_about_others(error: RuntimeError) -> bool:
    """Whether a collective failed for what another process did; gloo's errors are plain ones."""
    from torch import distributed

    text = str(error)
    return isinstance(error, distributed.DistError) or "gloo" in text or "Connection closed by peer" in text
