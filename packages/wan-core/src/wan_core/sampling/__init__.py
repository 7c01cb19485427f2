"""Sampling: schedules, solvers, guidance, experts, anchors and the one loop. Sees callables and tensors, no models."""

from wan_core.sampling.anchors import Anchors
from wan_core.sampling.experts import ExpertDenoiser, count_high_noise_steps
from wan_core.sampling.guidance import Denoiser
from wan_core.sampling.noise import draw_noise, seeded_generator, seeded_noise
from wan_core.sampling.sampler import sample
from wan_core.sampling.schedule import (
    NUM_TRAIN_TIMESTEPS,
    flow_match_table,
    linear_sigmas,
    make_schedule,
    nearest_sigmas,
    shift_sigma,
    shifted_sigmas,
)
from wan_core.sampling.solvers import SOLVERS, MultistepSolver, Solver, make_solver

__all__ = [
    "NUM_TRAIN_TIMESTEPS",
    "SOLVERS",
    "Anchors",
    "Denoiser",
    "ExpertDenoiser",
    "MultistepSolver",
    "Solver",
    "count_high_noise_steps",
    "draw_noise",
    "flow_match_table",
    "linear_sigmas",
    "make_schedule",
    "make_solver",
    "nearest_sigmas",
    "sample",
    "seeded_generator",
    "seeded_noise",
    "shift_sigma",
    "shifted_sigmas",
]
