"""Training parts: objective, data, optimizers, state, loop, and the run of `wan train`; each usable on its own."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.training.average import AveragedWeights, trained_tensors
    from wan_core.training.cache import Cache, check_cache, shards_of, write_cache
    from wan_core.training.clip_rules import CLIP_WAYS, ClipRule, parse_clips
    from wan_core.training.data import Example
    from wan_core.training.datasets import data_folders
    from wan_core.training.estimate import count_parameters, describe_plan, describe_trained
    from wan_core.training.examples import (
        ExampleEncoder,
        Sampler,
        clip_settings,
        describe_cache,
        describe_conditions,
        stack,
        text_of,
    )
    from wan_core.training.folders import FoundExamples, existing_in, find_examples, look_into, reading_notes
    from wan_core.training.loop import run_identity, train
    from wan_core.training.lora import attach_lora, lora_tensors, merge_lora
    from wan_core.training.muon import Muon
    from wan_core.training.objective import FlowBatch, NoiseLevels, draw_clean_frames, expert_levels, make_flow_batch
    from wan_core.training.optimizers import build_optimizers
    from wan_core.training.plan import (
        Objective,
        TrainedNetworks,
        TrainingPlan,
        check_apart,
        examples_of,
        lost_words,
        machine,
        plan_training,
    )
    from wan_core.training.ranks import Ranks, distributed_ranks
    from wan_core.training.run import Listeners, RunResult, carry_out, one_loss, own_weights
    from wan_core.training.run_options import ResultNames, RunOptions
    from wan_core.training.settings import (
        DEFAULT_TARGETS,
        EXPERTS,
        LOSS_WEIGHTINGS,
        OPTIMIZERS,
        SCHEDULES,
        TIMESTEPS,
        LoopSettings,
        LoRASettings,
        TrainSettings,
        read_config,
    )
    from wan_core.training.stage import Stage, WeightUpdate
    from wan_core.training.state import CheckpointFolder, TrainingState
    from wan_core.training.tables import normal_row, read_rows
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "CLIP_WAYS",
    "DEFAULT_TARGETS",
    "EXPERTS",
    "LOSS_WEIGHTINGS",
    "OPTIMIZERS",
    "SCHEDULES",
    "TIMESTEPS",
    "AveragedWeights",
    "Cache",
    "CheckpointFolder",
    "ClipRule",
    "Example",
    "ExampleEncoder",
    "FlowBatch",
    "FoundExamples",
    "Listeners",
    "LoRASettings",
    "LoopSettings",
    "Muon",
    "NoiseLevels",
    "Objective",
    "Ranks",
    "ResultNames",
    "RunOptions",
    "RunResult",
    "Sampler",
    "Stage",
    "TrainSettings",
    "TrainedNetworks",
    "TrainingPlan",
    "TrainingState",
    "WeightUpdate",
    "attach_lora",
    "build_optimizers",
    "carry_out",
    "check_apart",
    "check_cache",
    "clip_settings",
    "count_parameters",
    "data_folders",
    "describe_cache",
    "describe_conditions",
    "describe_plan",
    "describe_trained",
    "distributed_ranks",
    "draw_clean_frames",
    "examples_of",
    "existing_in",
    "expert_levels",
    "find_examples",
    "look_into",
    "lora_tensors",
    "lost_words",
    "machine",
    "make_flow_batch",
    "merge_lora",
    "normal_row",
    "one_loss",
    "own_weights",
    "parse_clips",
    "plan_training",
    "read_config",
    "read_rows",
    "reading_notes",
    "run_identity",
    "shards_of",
    "stack",
    "text_of",
    "train",
    "trained_tensors",
    "write_cache",
]
