"""Distillation in the world of stick persons: ``python -m tools.tiny.distill --stage NAME --work FOLDER``.

Stages, in this order: ``clips`` and ``features`` (what is trained on), ``teacher``, ``lora``, ``merge``,
``targets``, ``ode``, ``dmd``, ``evaluate``, ``export``. Each goes on from its newest checkpoint in ``--work``.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from tools.tiny import family, together
from tools.tiny.dit_stage import channel_weights, use_plain_attention
from tools.tiny.people import STYLES
from tools.tiny.person_data import computed_trunk, latent_clips, pictures_of, pose_features
from tools.tiny.person_stages import PosedDiT, Teaching, caption_states, widened_dit, with_lora
from tools.tiny.train import Reporter, prepare_process
from tools.tiny.weights import read_tensors
from wan_core.checkpoints import MemorySource, write_file
from wan_core.runtime import launched
from wan_core.training import (
    AveragedWeights,
    Cache,
    CheckpointFolder,
    LoopSettings,
    Stage,
    build_optimizers,
    distributed_ranks,
    lora_tensors,
    train,
)

TEACHER_STEPS, LORA_STEPS, BATCH = 600, 80, 16
T = TypeVar("T", bound=nn.Module)
_AVERAGES = {"teacher": 0.99, "lora": 0.95}
teacher_settings = partial(LoopSettings, warmup_steps=20, decay_share=0.5, final_rate=0.03, log_steps=20)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=[*RUNS], required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, caches, logs and scores")
    parser.add_argument("--steps", type=int, help="number of steps; may be changed when a run goes on")
    return parser.parse_args()


def run_clips(arguments: argparse.Namespace) -> None:
    """Stage "clips": latents of training clips and pictures."""
    vae = family.load_bundled("vae")
    pictures_of(arguments.work, vae)
    for style in STYLES:
        latent_clips(arguments.work, style, vae)


def keep(model: nn.Module, path: Path) -> None:
    """Write what a stage made, for the next one."""
    write_file(MemorySource(model.state_dict()), path, metadata={})


def kept(model: T, path: Path) -> T:
    """A model with what a stage wrote."""
    model.load_state_dict(read_tensors(path))
    return model


def run_features(arguments: argparse.Namespace) -> None:
    """Stage "features": what the trunk makes of the skeletons of every training clip."""
    trunk = computed_trunk()
    for style in STYLES:
        pose_features(arguments.work, style, trunk)


def run_teaching(arguments: argparse.Namespace) -> None:
    """Stages "teacher" and "lora", in one process or in two."""
    work, name = arguments.work, arguments.stage
    is_teacher = name == "teacher"
    style = STYLES[0] if is_teacher else STYLES[1]
    torch.manual_seed(0)
    vae, encoder = family.load_frozen()
    model = PosedDiT(widened_dit())
    if not is_teacher:
        model = with_lora(kept(model, work / "teacher.safetensors"))
    average = AveragedWeights(model, _AVERAGES[name])
    use_plain_attention(model.dit)
    with distributed_ranks(launched(), torch.device("cpu")) as ranks:
        stage = Teaching(
            model=model,
            style=style,
            clips=Cache(work / f"{style}-latents"),
            features=Cache(work / f"{style}-features"),
            pictures=pictures_of(work, vae),
            captions=caption_states(encoder),
            weights=channel_weights(vae),
            batch=BATCH // ranks.world,
            rank=ranks.rank,
        )
        if ranks.world > 1:
            together.average_gradients(model)
        folder = CheckpointFolder if ranks.is_first else together.FollowerFolder
        optimizers = build_optimizers(model, "muon", 0.01) if is_teacher else build_optimizers(model, "adamw", 2e-3)
        result = train(
            Stage.of(model, optimizers, stage.loss, average),
            teacher_settings(steps=arguments.steps or (TEACHER_STEPS if is_teacher else LORA_STEPS)),
            checkpoints=folder(work / name),
            report=Reporter(),
            rank=ranks.rank,
            reduce=ranks.reduce,
        )
        if ranks.is_first and not result.was_interrupted:
            average.exchange(model)
            if is_teacher:
                keep(model, work / "teacher.safetensors")
            else:
                write_file(MemorySource(lora_tensors(model.dit)), work / "lora.safetensors", metadata={})


RUNS = {
    "clips": run_clips,
    "features": run_features,
    "teacher": run_teaching,
    "lora": run_teaching,
}


def main() -> None:
    """Run one stage."""
    arguments = parse_arguments()
    prepare_process("tools.tiny.distill")
    arguments.work.mkdir(parents=True, exist_ok=True)
    RUNS[arguments.stage](arguments)


if __name__ == "__main__":
    main()
