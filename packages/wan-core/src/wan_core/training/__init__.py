"""Training parts: objective, optimizers, state, loop; each usable on its own."""

from wan_core.training.loop import LoopSettings, TrainingResult, noted_signals, seed_step, train
from wan_core.training.lora import (
    DEFAULT_TARGETS,
    LoRALinear,
    LoRASettings,
    attach_lora,
    lora_tensors,
    merge_lora,
    save_lora,
)
from wan_core.training.muon import Muon, orthogonalize
from wan_core.training.objective import FlowBatch, NoiseLevels, draw_clean_frames, expert_levels, make_flow_batch
from wan_core.training.state import AveragedWeights, CheckpointFolder, TrainingState, trained_tensors

__all__ = [
    "DEFAULT_TARGETS",
    "AveragedWeights",
    "CheckpointFolder",
    "FlowBatch",
    "LoRALinear",
    "LoRASettings",
    "LoopSettings",
    "Muon",
    "NoiseLevels",
    "TrainingResult",
    "TrainingState",
    "attach_lora",
    "draw_clean_frames",
    "expert_levels",
    "lora_tensors",
    "make_flow_batch",
    "merge_lora",
    "noted_signals",
    "orthogonalize",
    "save_lora",
    "seed_step",
    "train",
    "trained_tensors",
]
