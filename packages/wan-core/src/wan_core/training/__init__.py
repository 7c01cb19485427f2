"""Training parts: objective, optimizers, state, loop; each usable on its own."""

from wan_core.training.cache import Cache, ShuffledBatches, write_cache
from wan_core.training.data import ClipSettings, Example, bucket, find_examples, load_clip, load_first_picture
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
    "Cache",
    "CheckpointFolder",
    "ClipSettings",
    "Example",
    "FlowBatch",
    "LoRALinear",
    "LoRASettings",
    "LoopSettings",
    "Muon",
    "NoiseLevels",
    "ShuffledBatches",
    "TrainingResult",
    "TrainingState",
    "attach_lora",
    "bucket",
    "draw_clean_frames",
    "expert_levels",
    "find_examples",
    "load_clip",
    "load_first_picture",
    "lora_tensors",
    "make_flow_batch",
    "merge_lora",
    "noted_signals",
    "orthogonalize",
    "save_lora",
    "seed_step",
    "train",
    "trained_tensors",
    "write_cache",
]
