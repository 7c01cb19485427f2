"""Sampling: schedules, solvers, guidance, experts, anchors and the one loop. Sees callables and tensors, no models."""

from wan_core.sampling.anchors import Anchors
from wan_core.sampling.experts import ExpertDenoiser
from wan_core.sampling.guidance import Denoiser
from wan_core.sampling.noise import draw_noise, seeded_generator, seeded_noise
from wan_core.sampling.sampler import sample
from wan_core.sampling.solvers import SOLVERS, Solver, make_solver

__all__ = [
    "SOLVERS",
    "Anchors",
    "Denoiser",
    "ExpertDenoiser",
    "Solver",
    "draw_noise",
    "make_solver",
    "sample",
    "seeded_generator",
    "seeded_noise",
]
