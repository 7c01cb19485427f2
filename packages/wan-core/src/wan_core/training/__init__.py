"""Training parts: objective, data, optimizers, state, loop, and the run of `wan train`; each usable on its own."""

from wan_core.training.cache import Cache, ShuffledBatches, write_cache
from wan_core.training.data import ClipSettings, Example, find_examples, load_clip, load_first_picture
from wan_core.training.estimate import describe_plan
from wan_core.training.examples import ExampleEncoder, clip_settings, describe_cache, examples_mark, task_kind
from wan_core.training.export import complete_model, save_network
from wan_core.training.loop import (
    SCHEDULES,
    LoopSettings,
    TrainingResult,
    run_identity,
    train,
)
from wan_core.training.lora import DEFAULT_TARGETS, LoRASettings, attach_lora, lora_tensors, merge_lora
from wan_core.training.muon import Muon
from wan_core.training.objective import FlowBatch, NoiseLevels, draw_clean_frames, expert_levels, make_flow_batch
from wan_core.training.optimizers import build_optimizers
from wan_core.training.plan import (
    RunOptions,
    TrainingPlan,
    encoder_files,
    examples_of,
    machine,
    plan_training,
)
from wan_core.training.ranks import Ranks, distributed_ranks
from wan_core.training.run import Listeners, RunResult, carry_out, own_weights
from wan_core.training.settings import EXPERTS, OPTIMIZERS, TIMESTEPS, TrainSettings, read_config
from wan_core.training.state import AveragedWeights, CheckpointFolder, TrainingState, trained_tensors
from wan_core.training.validation import averaged

__all__ = [
    "DEFAULT_TARGETS",
    "EXPERTS",
    "OPTIMIZERS",
    "SCHEDULES",
    "TIMESTEPS",
    "AveragedWeights",
    "Cache",
    "CheckpointFolder",
    "ClipSettings",
    "Example",
    "ExampleEncoder",
    "FlowBatch",
    "Listeners",
    "LoRASettings",
    "LoopSettings",
    "Muon",
    "NoiseLevels",
    "Ranks",
    "RunOptions",
    "RunResult",
    "ShuffledBatches",
    "TrainSettings",
    "TrainingPlan",
    "TrainingResult",
    "TrainingState",
    "attach_lora",
    "averaged",
    "build_optimizers",
    "carry_out",
    "clip_settings",
    "complete_model",
    "describe_cache",
    "describe_plan",
    "distributed_ranks",
    "draw_clean_frames",
    "encoder_files",
    "examples_mark",
    "examples_of",
    "expert_levels",
    "find_examples",
    "load_clip",
    "load_first_picture",
    "lora_tensors",
    "machine",
    "make_flow_batch",
    "merge_lora",
    "own_weights",
    "plan_training",
    "read_config",
    "run_identity",
    "save_network",
    "task_kind",
    "train",
    "trained_tensors",
    "write_cache",
]
