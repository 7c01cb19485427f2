"""The whole path of distillation in the world of stick persons: ``python -m tools.tiny.distill --stage NAME --work DIR``.

Stages, in this order: ``clips`` and ``trunk`` (what is trained on), ``features``, ``teacher``, ``lora``, ``merge``,
``targets``, ``ode``, ``dmd``, ``evaluate``, ``export``. Each goes on from its newest checkpoint in ``--work``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.tiny import family
from tools.tiny.person_data import TRUNK_STEPS, TrunkStage, latent_clips, pictures_of, pose_features
from tools.tiny.people import STYLES
from tools.tiny.train import Reporter, prepare_process
from wan_core.training import CheckpointFolder, LoopSettings, Stage, train


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


def run_trunk(arguments: argparse.Namespace) -> None:
    """Stage "trunk": all of the pose encoder but its last layer."""
    stage = TrunkStage(family.load_bundled("vae"))
    settings = LoopSettings(steps=arguments.steps or TRUNK_STEPS, warmup_steps=10, decay_share=0.6, final_rate=0.03)
    train(
        Stage.of(stage.model, stage.optimizers, stage.loss),
        settings,
        checkpoints=CheckpointFolder(arguments.work / "trunk"),
        report=Reporter(),
    )


RUNS = {"clips": run_clips, "trunk": run_trunk}


def main() -> None:
    """Run one stage."""
    arguments = parse_arguments()
    prepare_process("tools.tiny.distill")
    arguments.work.mkdir(parents=True, exist_ok=True)
    RUNS[arguments.stage](arguments)


if __name__ == "__main__":
    main()
