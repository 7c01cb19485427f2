"""Solvers by name."""

import inspect
from collections.abc import Callable, Mapping

from wan_core.errors import ConfigError
from wan_core.sampling.solvers.base import Solver
from wan_core.sampling.solvers.dpmpp import make_dpmpp
from wan_core.sampling.solvers.euler import make_euler
from wan_core.sampling.solvers.renoise import make_renoise
from wan_core.sampling.solvers.unipc import make_unipc

__all__ = ["SOLVERS", "Solver", "make_solver"]

SOLVERS: Mapping[str, Callable[..., Solver]] = {
    "unipc": make_unipc,
    "dpm++": make_dpmpp,
    "euler": make_euler,
    "renoise": make_renoise,
}


def make_solver(name: str, num_inference_steps: int, *, flow_shift: float, **options: object) -> Solver:
    """A fresh solver for one run of ``num_inference_steps`` (at least 1) under ``flow_shift`` (above 0).

    ``name`` is a key of ``SOLVERS``; ``options`` are the keyword arguments of that solver's factory. Raises
    ``ConfigError`` for unknown names or options, and for options that cannot work.
    """
    if name not in SOLVERS:
        raise ConfigError(f"unknown solver {name!r}; there are {', '.join(SOLVERS)}")
    factory = SOLVERS[name]
    known = [option for option in inspect.signature(factory).parameters if option not in _COMMON]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ConfigError(f"solver {name} has no option {unknown[0]!r}; it has {', '.join(known)}")
    return factory(num_inference_steps, flow_shift=flow_shift, **options)


_COMMON = ("num_inference_steps", "flow_shift")
