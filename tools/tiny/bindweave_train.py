"""Train the tiny BindWeave on subjects: ``python -m tools.tiny.bindweave_train --stage NAME --work FOLDER``.

Stages, in this order: ``scenes`` (what is trained on), ``decoder`` (the bundled autoencoder's decoder on subjects),
``encoders`` (the tiny CLIP and the tiny Qwen2.5-VL), ``dit``, ``export`` (the files of the package), ``evaluate`` (of
these), and ``export`` again, with the scores. Each goes on from its newest
checkpoint in ``--work``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bindweave.references import blank_video
from tools.tiny import (
    family,
    subject_data,
    subject_encoders,
    subject_evaluation,
    subject_export,
    subject_stages,
    together,
)
from tools.tiny.dit_stage import channel_weights, stacked, use_plain_attention
from tools.tiny.poze_stages import DecoderStage
from tools.tiny.recipe import recipe_parser, run_recipe
from tools.tiny.subject_data import DECODER_SCENES, scene_cache
from tools.tiny.subjects import MOST_SUBJECTS
from tools.tiny.train import Reporter
from tools.tiny.vae_stage import reconstruction_loss
from tools.tiny.weights import read_tensors, write_weights
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
    train,
)

DECODER_STEPS, DIT_STEPS, BATCH = 900, 1730, 20


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
        write_weights(
            path, stage.tensors(), recipe=recipe, scores={"loss": round(result.loss, 4)}, base="vae.safetensors"
        )


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


def taught_encoders(work: Path) -> subject_encoders.SubjectEncoders:
    """What stage "encoders" made, frozen."""
    _, encoder = family.load_frozen()
    stage = subject_encoders.SubjectEncoders(encoder)
    stage.load_state_dict(read_tensors(work / "encoders.safetensors"))
    return stage.requires_grad_(False)


def run_dit(arguments: argparse.Namespace) -> None:
    """Stage "dit", in one process or in two that torchrun starts."""
    work = arguments.work
    vae, encoder = family.load_frozen()
    vae.requires_grad_(False)
    encoders, cache = taught_encoders(work), scenes(work)
    dit = subject_stages.new_dit(encoders)
    average = AveragedWeights(dit, 0.995)
    use_plain_attention(dit)
    with distributed_ranks(launched(), torch.device("cpu")) as ranks:
        stage = subject_stages.SubjectStage(
            dit=dit,
            encoders=encoders,
            encoder=encoder,
            scenes=cache,
            pictures=subject_stages.Pictures.of(encoders, cache),
            blank=blank_video(vae, subject_data.GEOMETRY),
            weights=channel_weights(vae, stacked([cache[number] for number in range(8)], "latents")),
            batch=BATCH // ranks.world,
            rank=ranks.rank,
        )
        together.prepare(dit, world=ranks.world, compiled=False)
        folder = CheckpointFolder if ranks.is_first else together.FollowerFolder
        settings = LoopSettings(
            steps=arguments.steps or DIT_STEPS, warmup_steps=20, decay_share=0.75, final_rate=0.03, log_steps=20
        )
        result = train(
            Stage.of(dit, build_optimizers(dit, "muon", 0.01), stage.loss, average),
            settings,
            checkpoints=folder(work / "dit"),
            report=Reporter(),
            rank=ranks.rank,
            reduce=ranks.reduce,
        )
        if ranks.is_first and not result.was_interrupted:
            average.exchange(dit)
            write_file(MemorySource(dit.state_dict()), work / "dit.safetensors", metadata={})


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Stage "evaluate": scores and strips of the held-back scenes, by the files of the package (stage "export");
    torchrun divides the scenes."""
    work, part = arguments.work, (int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    counts = range(1, MOST_SUBJECTS + 1) if arguments.subjects is None else [arguments.subjects]
    pipeline = subject_evaluation.shipped()
    for count in counts:
        report = subject_evaluation.evaluate(pipeline, count, part)
        (work / f"rows-{count}-{part[0]}.json").write_text(json.dumps(report.rows))
        for name, strips in report.strips.items():
            if strips:
                Image.fromarray(np.concatenate(strips)).save(work / f"{name}-{count}-{part[0]}.png")


def scores_of(work: Path) -> dict[str, dict[str, Any]]:
    """What stage "evaluate" found, by number of subjects."""
    found: dict[str, dict[str, Any]] = {}
    for count in range(1, MOST_SUBJECTS + 1):
        parts = [json.loads(path.read_text()) for path in sorted(work.glob(f"rows-{count}-*.json"))]
        if parts:
            rows = {name: [row for part in parts for row in part[name]] for name in subject_evaluation.ARMS}
            found[str(count)] = {name: subject_evaluation.summary(each) for name, each in rows.items()}
    return found


def run_export(arguments: argparse.Namespace) -> None:
    """Stage "export": what there is, with its scores, into the package; a transformer that is not trained, too."""
    work = arguments.work
    encoders = taught_encoders(work)
    found = {str(count): encoders.accuracy(count) for count in range(1, MOST_SUBJECTS + 1)}
    subject_export.write_encoders(encoders, found)
    subject_export.write_decoder(work / "decoder.safetensors")
    dit, path = subject_stages.new_dit(encoders), work / "dit.safetensors"
    if path.exists():
        dit.load_state_dict(read_tensors(path))
    scores = scores_of(work)
    subject_export.write_network(dit, scores)
    (work / "table.md").write_text("\n".join(subject_evaluation.table(scores)) + "\n")


RUNS = {
    "scenes": run_scenes,
    "decoder": run_decoder,
    "encoders": run_encoders,
    "dit": run_dit,
    "evaluate": run_evaluate,
    "export": run_export,
}


def main() -> None:
    """Run one stage."""
    parser = recipe_parser(__doc__, RUNS)
    parser.add_argument("--subjects", type=int, choices=range(1, MOST_SUBJECTS + 1), help="evaluate these scenes alone")
    run_recipe("tools.tiny.bindweave_train", parser, RUNS)


if __name__ == "__main__":
    main()
