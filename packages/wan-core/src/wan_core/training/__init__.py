"""Training parts: objective, optimizers, state, loop; each usable on its own."""

from wan_core.training.loop import LoopSettings, TrainingResult, noted_signals, seed_step, train
from wan_core.training.muon import Muon, orthogonalize
from wan_core.training.objective import FlowBatch, NoiseLevels, draw_clean_frames, expert_levels, make_flow_batch
from wan_core.training.state import AveragedWeights, CheckpointFolder, TrainingState, trained_tensors

__all__ = [
    "AveragedWeights",
    "CheckpointFolder",
    "FlowBatch",
    "LoopSettings",
    "Muon",
    "NoiseLevels",
    "TrainingResult",
    "TrainingState",
    "draw_clean_frames",
    "expert_levels",
    "make_flow_batch",
    "noted_signals",
    "orthogonalize",
    "seed_step",
    "train",
    "trained_tensors",
]
