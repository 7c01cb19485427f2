"""Train the tiny Wan-Animate: ``python -m tools.tiny.actor_train --stage scenes --work FOLDER``.

Stages, in this order: ``scenes`` (what the task makes of 720 driving folders), ``act`` (the bundled transformer, which
learns to act), ``evaluate`` (50 held-back scenes through the pipeline), ``export`` (the weights into the package).
torchrun divides all but the last among processes. Every stage goes on from what there is in ``--work``; ``act`` saves a
checkpoint each minute. Two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from tools.tiny import family, together
from tools.tiny.actor_evaluation import ARMS, means, score_drawn, score_model
from tools.tiny.actor_export import pipeline_of, write_actor
from tools.tiny.actor_stages import PRESET, ActStage, actor_optimizers, new_actor, write_lessons
from tools.tiny.actors import evaluation_scenes
from tools.tiny.dit_stage import text_states, use_plain_attention
from tools.tiny.recipe import recipe_parser, run_recipe
from tools.tiny.train import Reporter
from wan_core.models import AnimateDiT
from wan_core.runtime import launched
from wan_core.tasks.animate import PROMPT
from wan_core.training import (
    AveragedWeights,
    Cache,
    CheckpointFolder,
    LoopSettings,
    Ranks,
    Stage,
    TrainingState,
    distributed_ranks,
    run_identity,
    train,
)

STEPS, BATCH, AVERAGE = 800, 24, 0.99
RECIPE = f"{STEPS} steps of {BATCH}, two CPU cores; from tiny-t2v; matrices rounded to 8 bits afterwards"


def act_settings(steps: int | None) -> LoopSettings:
    """The settings of stage "act"."""
    return LoopSettings(steps=steps or STEPS, warmup_steps=20, decay_share=0.6, final_rate=0.03, log_steps=20)


def lessons(work: Path, ranks: Ranks) -> Cache:
    """The training examples, made where they are missing; every process makes its part."""
    start = work / f"start-{ranks.rank}"
    write_actor(start, new_actor(), "not trained", {})
    write_lessons(work / "lessons", pipeline_of(start), (ranks.rank, ranks.world))
    ranks.wait()
    return Cache(work / "lessons")


def run_scenes(arguments: argparse.Namespace) -> None:
    """Stage "scenes" (stage "act" does it when it needs it)."""
    with distributed_ranks(launched(), torch.device("cpu")) as ranks:
        lessons(arguments.work, ranks)


def run_act(arguments: argparse.Namespace) -> None:
    """Stage "act", in one process or in several that torchrun starts."""
    dit = new_actor()
    average = AveragedWeights(dit, AVERAGE)
    use_plain_attention(dit)
    _, encoder = family.load_frozen()
    with torch.no_grad():
        texts = text_states(encoder, [PROMPT, ""]).clone()
    with distributed_ranks(launched(), torch.device("cpu")) as ranks:
        stage = ActStage(dit, lessons(arguments.work, ranks), texts, BATCH // ranks.world, ranks.rank)
        together.prepare(dit, world=ranks.world, compiled=False)
        folder = CheckpointFolder if ranks.is_first else together.FollowerFolder
        train(
            Stage.of(dit, actor_optimizers(dit), stage.loss, average),
            act_settings(arguments.steps),
            checkpoints=folder(arguments.work / "act"),
            report=Reporter(),
            log_path=arguments.work / "act.jsonl" if ranks.is_first else None,
            rank=ranks.rank,
            reduce=ranks.reduce,
        )


def trained_actor(work: Path) -> AnimateDiT:
    """The averaged weights that stage "act" made."""
    dit = new_actor()
    average = AveragedWeights(dit, AVERAGE)
    settings = run_identity(act_settings(None), {})
    CheckpointFolder(work / "act").restore(TrainingState(dit, actor_optimizers(dit), average, settings))
    average.exchange(dit)
    return dit.eval()


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Stage "evaluate": the scores of every held-back scene, ``rows-N.json``; torchrun divides the scenes."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    work, folder = arguments.work, arguments.work / f"model-{rank}"
    write_actor(folder, trained_actor(work), RECIPE, {})
    scenes = list(evaluation_scenes())[rank::world]
    rows, pipeline = score_drawn(scenes, family.load_bundled("vae").eval()), pipeline_of(folder)
    for name in ARMS:
        rows |= score_model(scenes, pipeline, work / f"videos-{rank}", name)
        (work / f"rows-{rank}.json").write_text(json.dumps(rows, indent=1))


def run_export(arguments: argparse.Namespace) -> None:
    """Stage "export": the network with its scores into the package; the scores are shown."""
    parts = [json.loads(path.read_text()) for path in sorted(arguments.work.glob("rows-*.json"))]
    scores = means({name: [row for part in parts for row in part[name]] for name in parts[0]})
    write_actor(Path(PRESET.part("dit").file), trained_actor(arguments.work), RECIPE, scores)
    sys.stdout.write(json.dumps(scores, indent=1) + "\n")


RUNS = {"scenes": run_scenes, "act": run_act, "evaluate": run_evaluate, "export": run_export}


def main() -> None:
    """Run one stage."""
    run_recipe("tools.tiny.actor_train", recipe_parser(__doc__, RUNS), RUNS)


if __name__ == "__main__":
    main()
