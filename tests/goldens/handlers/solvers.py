"""Solver families: schedules and trajectories on an analytic velocity field, through the one sampler."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.goldens.harness import GoldenCase, handles
from wan_core.errors import ConfigError
from wan_core.sampling import Solver, make_solver, sample
from wan_core.sampling.flow_table import FlowTable
from wan_core.sampling.solvers.base import MultistepSolver

SOLVER_OF_FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "solver_unipc": ("unipc", {}),
    "solver_dpmpp": ("dpm++", {}),
    "solver_euler": ("euler", {"grid": "diffusers"}),
    "solver_flowmatch": ("euler", {}),
}
SOLVER_OF_OPTION = {"unipc": "unipc", "dpmpp": "dpm++", "euler": "euler"}


def trajectory(case: GoldenCase, solver: Solver) -> Tensor:
    """Latents after every step on the golden's field v = a*x + b*(t/1000)*c; [N, ...] of the golden's shape."""
    a, b, c, x = (case.inputs[name][None] for name in "abcx")
    visited: list[Tensor] = []

    def field(latents: Tensor, timestep: Tensor) -> Tensor:
        visited.append(latents)
        return a * latents + b * (timestep / 1000) * c

    final = sample(field, solver, x)
    return torch.cat([*visited[1:], final])


@handles("solver_unipc", "solver_dpmpp", "solver_euler", "solver_flowmatch")
def solver_trajectories(case: GoldenCase) -> Mapping[str, Tensor]:
    name, options = SOLVER_OF_FAMILY[case.family]
    computed: dict[str, Tensor] = {}
    for key in case.named("out.traj."):
        steps, shift = key.removeprefix("s").split("_shift")
        solver = make_solver(name, int(steps), flow_shift=float(shift), **options)
        assert isinstance(solver, MultistepSolver)
        # some references do not store the final 0
        stored = case.tensors[f"out.sigmas.{key}"].shape[0]
        computed[f"out.sigmas.{key}"] = torch.tensor(solver.sigmas[:stored])
        computed[f"out.timesteps.{key}"] = solver.timesteps
        computed[f"out.traj.{key}"] = trajectory(case, solver)
    return computed


@handles("solver_options")
def solver_options(case: GoldenCase) -> Mapping[str, Tensor]:
    computed: dict[str, Tensor] = {}
    for key, (name, options, status) in case.call["options"].items():
        steps = int(key.rpartition("_s")[2])
        if status == "ok":
            solver = make_solver(SOLVER_OF_OPTION[name], steps, flow_shift=case.call["shift"], **options)
            computed[f"out.traj.opt{key}"] = trajectory(case, solver)
            continue
        try:
            make_solver(SOLVER_OF_OPTION[name], steps, flow_shift=case.call["shift"], **options)
        except ConfigError:
            continue
        raise AssertionError(f"{name} with {options} is {status}; it must be refused")
    return computed


@handles("sf_scheduler")
def flow_table(case: GoldenCase) -> Mapping[str, Tensor]:
    x, noise, velocity, times = (case.inputs[name] for name in ("x0", "noise", "flow", "t"))
    computed: dict[str, Tensor] = {}
    for shift in case.call["shifts"]:
        table, prefix = FlowTable(shift), f"out.shift{shift:g}."
        computed |= {
            f"{prefix}sigmas": table.sigmas,
            f"{prefix}timesteps": table.timesteps,
            f"{prefix}training_weights": table.weights,
            f"{prefix}training_weight_t": table.weight(times),
            f"{prefix}add_noise": table.add_noise(x, noise, times),
            f"{prefix}step": table.step(velocity, times.clamp(min=20), x),
            f"{prefix}step_final": table.step(velocity, times, x, to_final=True),
            f"{prefix}x0_from_flow": table.clean(velocity, noise, times),
            f"{prefix}flow_from_x0": table.velocity(x, noise, times),
        }
        for name in (name.removeprefix(prefix) for name in case.expected if name.startswith(prefix)):
            kind, _, rest = name.partition("_" if name.startswith("warped") else ".")
            if kind == "warped":
                steps = [1000, 750, 500, 250, 0] if rest == "with_zero" else [int(step) for step in rest.split("_")]
                computed[prefix + name] = torch.tensor(table.warped(steps))
            elif kind.startswith("infer"):
                solver = make_solver("euler", int(kind.removeprefix("infer")), flow_shift=shift)
                assert isinstance(solver, MultistepSolver)
                levels = torch.tensor(solver.sigmas[:-1])
                computed[prefix + name] = levels if rest == "sigmas" else solver.timesteps
    return {name: value for name, value in computed.items() if name in case.expected}
