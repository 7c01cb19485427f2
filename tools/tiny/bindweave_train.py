"""Train the tiny BindWeave on subjects: ``python -m tools.tiny.bindweave_train --stage NAME --work FOLDER``.

Stages, in this order: ``scenes`` (what is trained on), ``decoder`` (the bundled autoencoder's decoder on subjects),
``encoders`` (the tiny CLIP and the tiny Qwen2.5-VL), ``dit``, ``evaluate``, ``export``. Each goes on from its newest
checkpoint in ``--work``.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path

from tools.tiny import family, subject_encoders
from tools.tiny.poze_stages import DecoderStage
from tools.tiny.subject_data import DECODER_SCENES, scene_cache
from tools.tiny.train import Reporter, prepare_process
from tools.tiny.vae_stage import reconstruction_loss
from tools.tiny.weights import write_weights
from wan_core.checkpoints import MemorySource, write_file
from wan_core.training import Cache, CheckpointFolder, LoopSettings, Stage, train

DECODER_STEPS = 900


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=[*RUNS], required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, caches, logs and scores")
    parser.add_argument("--steps", type=int, help="number of steps; may be changed when a run goes on")
    return parser.parse_args()


def scenes(work: Path) -> Cache:
    """The training scenes, encoded in bfloat16."""
    return scene_cache(work, copy.deepcopy(family.load_bundled("vae")).bfloat16())


def run_scenes(arguments: argparse.Namespace) -> None:
    """Stage "scenes" (the other stages do it when they need it)."""
    scenes(arguments.work)


def run_decoder(arguments: argparse.Namespace) -> None:
    """Stage "decoder"."""
    steps = arguments.steps or DECODER_STEPS
    cache = scenes(arguments.work)
    stage = DecoderStage(family.load_bundled("vae"), cache, range(DECODER_SCENES), reconstruction_loss)
    settings = LoopSettings(steps=steps, warmup_steps=20, decay_share=0.6, final_rate=0.03, clip_norm=None)
    folder = CheckpointFolder(arguments.work / "decoder")
    result = train(Stage.of(stage.vae, stage.optimizers, stage.loss), settings, checkpoints=folder, report=Reporter())
    if not result.was_interrupted:
        recipe = f"tools/tiny/bindweave_train.py, stage decoder, {steps} steps of 2, one CPU core"
        path = arguments.work / "decoder.safetensors"
        write_weights(path, stage.tensors(), recipe=recipe, scores={"loss": round(result.loss, 4)}, base="vae")


def run_encoders(arguments: argparse.Namespace) -> None:
    """Stage "encoders"."""
    _, encoder = family.load_frozen()
    stage = subject_encoders.SubjectEncoders(encoder)
    steps = arguments.steps or subject_encoders.ENCODER_STEPS
    settings = LoopSettings(steps=steps, warmup_steps=50, decay_share=0.4, final_rate=0.03, log_steps=20)
    result = train(
        Stage.of(stage, stage.optimizers, stage.loss),
        settings,
        checkpoints=CheckpointFolder(arguments.work / "encoders"),
        report=Reporter(1.0, stage.accuracy),
    )
    if not result.was_interrupted:
        write_file(MemorySource(stage.state_dict()), arguments.work / "encoders.safetensors", metadata={})
        sys.stdout.write(json.dumps({count: stage.accuracy(count) for count in (1, 2, 3)}) + "\n")


RUNS = {"scenes": run_scenes, "decoder": run_decoder, "encoders": run_encoders}


def main() -> None:
    """Run one stage."""
    arguments = parse_arguments()
    prepare_process("tools.tiny.bindweave_train")
    arguments.work.mkdir(parents=True, exist_ok=True)
    RUNS[arguments.stage](arguments)


if __name__ == "__main__":
    main()
