"""Sampling: schedules, solvers, guidance, experts, anchors, windows, step caches, the one loop; it sees no models."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.sampling.anchors import Anchors
    from wan_core.sampling.experts import ExpertDenoiser, count_high_noise_steps
    from wan_core.sampling.flow_table import FlowTable
    from wan_core.sampling.guidance import Denoiser, SharedBranches
    from wan_core.sampling.noise import draw_noise, seeded_generator, seeded_noise
    from wan_core.sampling.sampler import sample
    from wan_core.sampling.solvers import SOLVERS, make_solver
    from wan_core.sampling.solvers.base import Solver
    from wan_core.sampling.step_cache import StepCache, StepCacheRule, StepCaches
    from wan_core.sampling.windows import WindowDenoiser
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "SOLVERS",
    "Anchors",
    "Denoiser",
    "ExpertDenoiser",
    "FlowTable",
    "SharedBranches",
    "Solver",
    "StepCache",
    "StepCacheRule",
    "StepCaches",
    "WindowDenoiser",
    "count_high_noise_steps",
    "draw_noise",
    "make_solver",
    "sample",
    "seeded_generator",
    "seeded_noise",
]
