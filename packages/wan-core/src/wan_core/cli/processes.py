"""Several processes on the command line: their start, and what their options ask for."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from wan_core.errors import ConfigError, RequestError
from wan_core.runtime import Launch, Processes, launched, plan_processes
from wan_core.tasks import Experts


def start_if_asked(values: Mapping[str, Any]) -> None:
    """Carry this command out in ``--nproc`` processes, and leave with their exit status; return where it is one.

    A plan needs no processes, those that were started do not start others, and numbers that do not fit are refused
    before there are any.
    """
    count = values["nproc"]
    if count is None:
        return
    launch = launched()
    if launch is not None and count != launch.on_machine:
        raise ConfigError(f"--nproc {count} starts processes, and torchrun has started {launch.world}; leave it out")
    processes_of(values)
    if launch is not None or count == 1 or values["dry_run"]:
        return
    from wan_core.runtime import start_processes

    raise click.exceptions.Exit(start_processes(count))


def processes_of(values: Mapping[str, Any]) -> Processes:
    """The processes of this run and what they divide, by the options; nothing is imported.

    Raises ConfigError for options that cannot be together or do not fit the number of processes.
    """
    launch = launched()
    count = values["nproc"] or 1
    if launch is None and count > 1:  # they are still to be started, or a plan is asked for
        launch = Launch(0, count, 0)
    if values["t5_fsdp"] and values["t5_cpu"]:
        raise ConfigError(
            "--t5-fsdp divides the text encoder among GPUs and --t5-cpu keeps it off them; leave one of them out"
        )
    if values["cfg_parallel"] and values["cfg"] == "batched":
        raise ConfigError(
            "--cfg-parallel runs the branches of guidance in two processes and --cfg batched in one; leave one out"
        )
    return plan_processes(
        launch,
        sequence=values["ulysses_size"],
        splits_guidance=values["cfg_parallel"],
        divides_dit=values["dit_fsdp"],
        divides_text=values["t5_fsdp"],
        device=values["device"],
    )


def check_branches(processes: Processes, scales: Sequence[float | Experts[float]]) -> None:
    """Raises RequestError where processes divide the branches of guidance and a video has one: its scales are 1."""
    if processes.guidance > 1 and any(scale in (1, Experts(high=1, low=1)) for scale in scales):
        raise RequestError("guidance is off, so there is one branch, which --cfg-parallel cannot divide; leave it out")


def as_told(processes: Processes, values: Mapping[str, Any], tells: bool | None = None) -> dict[str, Any]:
    """The options of a process that says nothing unless it ``tells``: by default the first of all does."""
    silent = not (processes.tells if tells is None else tells)
    return {**values, "quiet": values["quiet"] or silent, "as_json": values["as_json"] and not silent}
