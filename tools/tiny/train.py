"""Train the tiny family, stage by stage: ``python -m tools.tiny.train --stage vae|text|t2v|... --work FOLDER``.

Each stage goes on from its newest checkpoint in ``--work`` and writes its weights when it ends. It runs
on one core: the script starts itself again with the allocator settings that training on a CPU needs (without them most
of the time goes into page faults) and pins itself to ``--core``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tools.tiny import delta_stage, dit_stage, family, scores, text_stage, together, vae_stage, weights
from wan_core.models import TextEncoder, UMT5Encoder, VideoVAE, WanDiT
from wan_core.runtime import launched
from wan_core.training import (
    AveragedWeights,
    Cache,
    CheckpointFolder,
    LoopSettings,
    NoiseLevels,
    Ranks,
    Stage,
    build_optimizers,
    distributed_ranks,
    expert_levels,
    train,
)

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_NUM_THREADS": "1",
}
STAGES = ("vae", "text", "t2v", "more", "i2v", "high", "low")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, caches, logs and sheets")
    parser.add_argument("--steps", type=int, help="number of steps; may be changed when a run goes on")
    parser.add_argument("--prompts", type=int, default=200, help="held-back prompts of the last evaluation")
    parser.add_argument("--core", type=int, help="CPU core to stay on; under torchrun each process has its own")
    parser.add_argument("--compile", action="store_true", help="compile the blocks of a DiT (needs a C++ compiler)")
    parser.add_argument("--evaluate-minutes", type=float, default=5.0, help="time between evaluations")
    return parser.parse_args()


def prepare_process(module: str, core: int | None = None) -> None:
    """Start ``module`` again with the allocator settings if they are not there, then keep to one core and one thread.

    Without ``core`` a process that torchrun started takes the core of its number, if there is one; others run anywhere.
    """
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        arguments = [sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(sys.executable, arguments, {**os.environ, **ALLOCATOR})
    core = int(os.environ.get("LOCAL_RANK", "-1")) if core is None else core
    if 0 <= core < (os.cpu_count() or 1) and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)


class Reporter:
    """Writes log lines to standard output; every so many ``minutes`` with the scores that ``evaluate`` returns."""

    def __init__(self, minutes: float = math.inf, evaluate: Callable[[], dict[str, Any]] = dict) -> None:
        self._interval = minutes * 60
        self._evaluate = evaluate
        self._started = self._last = time.monotonic()

    def __call__(self, line: dict[str, Any]) -> None:
        line = line | {"minutes": round((time.monotonic() - self._started) / 60, 1)}
        if time.monotonic() - self._last > self._interval:
            line = line | self._evaluate()
            self._last = time.monotonic()
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def run_vae(arguments: argparse.Namespace) -> None:
    """Stage "vae"."""
    steps = arguments.steps or vae_stage.VAE_STEPS
    stage = vae_stage.VAEStage(VideoVAE(family.VAE), steps)
    reconstruct = vae_stage.reconstructor(stage.vae)
    clips = scores.held_back_clips()
    settings = LoopSettings(steps=steps, warmup_steps=60, decay_share=0.6, final_rate=0.03, clip_norm=None)
    report = Reporter(arguments.evaluate_minutes, lambda: scores.score_vae(reconstruct, clips[:36]))
    folder = CheckpointFolder(arguments.work / "vae")
    result = train(Stage.of(stage.vae, stage.optimizers, stage.loss), settings, checkpoints=folder, report=report)
    if result.was_interrupted:
        return
    vae_stage.fold_statistics(stage.vae)
    write_vae(stage.vae, f"tools/tiny/vae_stage.py, {steps} steps, one CPU core")


def write_vae(vae: VideoVAE, recipe: str) -> None:
    """Round the autoencoder to float16, score that on 200 held-back clips and write it into the package."""
    vae = vae.half().float()
    found = scores.score_vae(vae_stage.reconstructor(vae), scores.held_back_clips())
    weights.write_weights(family.WEIGHTS / "vae.safetensors", vae.state_dict(), recipe=recipe, scores=found)
    sys.stdout.write(json.dumps(found) + "\n")


def run_text(arguments: argparse.Namespace) -> None:
    """Stage "text"."""
    family.write_tokenizer(family.WEIGHTS / "tokenizer")
    stage = text_stage.TextStage(UMT5Encoder(family.TEXT))
    steps = arguments.steps or text_stage.TEXT_STEPS
    settings = LoopSettings(steps=steps, warmup_steps=50, decay_share=0.4, final_rate=0.02)
    report = Reporter(arguments.evaluate_minutes, stage.accuracy)
    folder = CheckpointFolder(arguments.work / "text")
    result = train(Stage.of(stage, stage.optimizers, stage.loss), settings, checkpoints=folder, report=report)
    if result.was_interrupted:
        return
    stage.half().float()
    weights.write_weights(
        family.WEIGHTS / "text_encoder.safetensors",
        stage.encoder.state_dict(),
        recipe=f"tools/tiny/text_stage.py, {steps} steps, one CPU core",
        scores=stage.accuracy(2000),
    )


def run_dit(arguments: argparse.Namespace) -> None:
    """Stages "t2v" and "more": the second goes on from the bundled weights, at a lower rate.

    A step sees clips and stills: one after the other, or at once in two processes that torchrun starts.
    """
    vae, encoder = family.load_frozen()
    dit = family.load_bundled("dit") if arguments.stage == "more" else dit_stage.new_dit()
    average = AveragedWeights(dit, dit_stage.COURSES[arguments.stage].average)

    def stage(ranks: Ranks) -> dit_stage.DiTStage:
        return dit_stage.DiTStage(
            dit,
            encoder,
            latents(arguments, "clips", vae, ranks),
            NoiseLevels(shift=3.0, std=1.2),
            dit_stage.channel_weights(vae),
            stills=latents(arguments, "stills", vae, ranks),
            clean_share=0.3,
            with_images=True,
            shares=dit_stage.COURSES[arguments.stage].shares,
            rank=ranks.rank,
        )

    train_dit(arguments, stage, average, partial(score_dit, arguments, average, dit, vae, encoder), kinds=2)


def train_dit(
    arguments: argparse.Namespace,
    make_stage: Callable[[Ranks], dit_stage.DiTStage],
    average: AveragedWeights,
    score: Callable[[int], dict[str, Any]],
    *,
    kinds: int = 1,
) -> None:
    """Train a transformer in one process or several, and print its scores; ``kinds`` of batches make a step, one after
    the other where one process is alone."""
    course = dit_stage.COURSES[arguments.stage]
    with distributed_ranks(launched(), torch.device("cpu")) as ranks:
        stage = make_stage(ranks)
        dit_stage.use_plain_attention(stage.dit)
        together.prepare(stage.dit, world=ranks.world, compiled=arguments.compile)
        settings = LoopSettings(
            steps=arguments.steps or course.steps,
            decay_share=course.decay_share,
            final_rate=0.03,
            accumulation=1 if ranks.world > 1 else kinds,
        )
        folder = CheckpointFolder if ranks.is_first else together.FollowerFolder
        result = train(
            Stage.of(stage.dit, build_optimizers(stage.dit, "muon", 0.02 * course.rate), stage.loss, average),
            settings,
            checkpoints=folder(arguments.work / arguments.stage),
            report=Reporter(arguments.evaluate_minutes, lambda: score(40)),
            rank=ranks.rank,
            reduce=ranks.reduce,
        )
        if ranks.is_first and not result.was_interrupted:
            sys.stdout.write(json.dumps(score(arguments.prompts)) + "\n")


def latents(arguments: argparse.Namespace, kind: str, vae: VideoVAE, ranks: Ranks | None = None) -> Cache:
    """A `dit_stage.latent_cache` in the work folder, encoded in bfloat16; the first process makes it, others wait."""
    folder = arguments.work / "latents"
    if ranks is None or ranks.is_first:
        dit_stage.latent_cache(folder, kind, copy.deepcopy(vae).bfloat16())
    if ranks is not None:
        ranks.wait()
    return Cache(folder / kind)


def score_dit(
    arguments: argparse.Namespace,
    average: AveragedWeights,
    dit: WanDiT,
    vae: VideoVAE,
    encoder: TextEncoder,
    count: int,
) -> dict[str, Any]:
    """Write the averaged weights and contact sheets to the work folder; the scores on ``count`` held-back prompts."""
    chosen = scores.held_back_clips(count)
    average.exchange(dit)
    with torch.compiler.set_stance("force_eager"):
        made = dit_stage.generate(dit, vae, encoder, chosen)
        continued = dit_stage.generate(dit, vae, encoder, chosen, from_first_frame=True)
    scores.write_sheet(made[:24], arguments.work / f"{arguments.stage}.png")
    scores.write_sheet(continued[:24], arguments.work / f"{arguments.stage}-first-frame.png")
    found: dict[str, Any] = scores.score_videos(made, chosen)
    found |= {f"ti2v_{name}": value for name, value in scores.score_continuations(continued, chosen).items()}
    found |= {
        "motions": scores.score_by(made, chosen, "motion"),
        "shapes": scores.score_by(made, chosen, "shape"),
    }
    recipe = f"tools/tiny/dit_stage.py, stage {arguments.stage}, {average.updates} steps of 16 clips and 80 stills"
    path = arguments.work / f"{arguments.stage}-latest.safetensors"
    weights.write_weights(path, dit.state_dict(), recipe=recipe, scores=found)
    average.exchange(dit)
    return found


def run_delta(arguments: argparse.Namespace) -> None:
    """Stages "i2v", "high" and "low": a small change of the bundled DiT, for another input or for a range of noise."""
    vae, encoder = family.load_frozen()
    name, levels = arguments.stage, NoiseLevels(shift=2.0, std=1.2)
    by_channels = name == "i2v"
    dit = delta_stage.build(family.I2V if by_channels else family.DIT)
    dit_stage.use_plain_attention(dit)
    stage = dit_stage.DiTStage(
        dit,
        encoder,
        latents(arguments, "channels" if by_channels else "clips", vae),
        levels if by_channels else expert_levels(levels, name, family.BOUNDARY),
        dit_stage.channel_weights(vae),
    )
    steps = arguments.steps or 600
    settings = LoopSettings(steps=steps, warmup_steps=30, decay_share=0.5, final_rate=0.04)
    optimizers = build_optimizers(dit, "adamw", 2e-3)
    average = AveragedWeights(dit, 0.99)
    clips = scores.held_back_clips()

    def score(count: int) -> dict[str, Any]:
        chosen = clips[:count]
        if by_channels:
            return scores.score_continuations(dit_stage.generate(dit, vae, encoder, chosen), chosen)
        base = family.load_bundled("dit")
        high, low = (dit, base) if name == "high" else (base, dit)
        made = dit_stage.generate(high, vae, encoder, chosen, low_noise=low)
        return scores.score_videos(made, chosen)

    report = Reporter(arguments.evaluate_minutes, lambda: score(20))
    folder = CheckpointFolder(arguments.work / name)
    result = train(Stage.of(dit, optimizers, stage.loss, average), settings, checkpoints=folder, report=report)
    if result.was_interrupted:
        return
    average.exchange(dit)
    path = family.WEIGHTS / name / "model.safetensors"
    recipe = f"tools/tiny/delta_stage.py, stage {name}, {steps} steps of {stage.batch}, one CPU core"
    weights.write_weights(path, delta_stage.tensors(dit), recipe=recipe, scores=score(arguments.prompts), base="t2v")


def main() -> None:
    """Run one stage."""
    arguments = parse_arguments()
    prepare_process("tools.tiny.train", arguments.core)
    arguments.work.mkdir(parents=True, exist_ok=True)
    runs = {"vae": run_vae, "text": run_text, "t2v": run_dit, "more": run_dit}
    runs.get(arguments.stage, run_delta)(arguments)


if __name__ == "__main__":
    main()
