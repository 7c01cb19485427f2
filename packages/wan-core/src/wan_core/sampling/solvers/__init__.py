"""Solvers by name. The table holds addresses, so that the names need no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from wan_core.errors import ConfigError
from wan_core.lazy import load

if TYPE_CHECKING:
    from wan_core.sampling.solvers.base import Solver

__all__ = ["SOLVERS", "make_solver"]

SOLVERS: Mapping[str, str] = {
    "unipc": "wan_core.sampling.solvers.unipc:make_unipc",
    "dpm++": "wan_core.sampling.solvers.dpmpp:make_dpmpp",
    "euler": "wan_core.sampling.solvers.euler:make_euler",
    "renoise": "wan_core.sampling.solvers.renoise:make_renoise",
}


def make_solver(name: str, num_inference_steps: int, *, flow_shift: float, **options: object) -> Solver:
    """A fresh solver for one run of ``num_inference_steps`` (at least 1) under ``flow_shift`` (above 0).

    ``name`` is a key of ``SOLVERS``; ``options`` are the keyword arguments of that solver's factory. Raises
    ``ConfigError`` for unknown names or options, and for options that cannot work.
    """
    if name not in SOLVERS:
        raise ConfigError(f"unknown solver {name!r}; there are {', '.join(SOLVERS)}")
    factory: Callable[..., Solver] = load(SOLVERS[name])
    known = [option for option in inspect.signature(factory).parameters if option not in _COMMON]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ConfigError(f"solver {name} has no option {unknown[0]!r}; it has {', '.join(known)}")
    return factory(num_inference_steps, flow_shift=flow_shift, **options)


_COMMON = ("num_inference_steps", "flow_shift")
