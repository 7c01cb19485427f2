"""Train the tiny speech-to-video model: ``python -m tools.tiny.speaker_train --stage hear --work FOLDER``.

Stages, in this order: ``hear`` (a speech encoder that tells loudness), ``data`` (latents of 280 videos),
``speak`` (the bundled transformer, which learns to hear), ``evaluate`` (50 held-back sounds through the pipeline),
``export`` (the weights into the package). Every stage goes on from its newest checkpoint in ``--work``, which is saved
each minute. One core.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from tools.tiny import family
from tools.tiny.dit_stage import use_plain_attention
from tools.tiny.recipe import recipe_parser, run_recipe
from tools.tiny.speaker_evaluation import means, pipeline_of, score_drawn, score_model, write_speaker
from tools.tiny.speaker_stages import (
    PRESET,
    VIDEO_FRAMES,
    VIDEOS,
    HearStage,
    SpeakStage,
    grey_latents,
    heard,
    new_speaker,
    speaker_cache,
    speaker_optimizers,
    speaker_texts,
)
from tools.tiny.speakers import training_speech
from tools.tiny.train import Reporter
from wan_core.models import S2VDiT, Wav2Vec2
from wan_core.runtime import prepare_model
from wan_core.training import (
    AveragedWeights,
    Cache,
    CheckpointFolder,
    LoopSettings,
    Stage,
    TrainingState,
    run_identity,
    train,
)

HEAR_STEPS, SPEAK_STEPS = 300, 400
BATCH, AVERAGE = 12, 0.99
RECIPE = f"{SPEAK_STEPS} steps of {BATCH}, one CPU core; from tiny-t2v; matrices rounded to 8 bits afterwards"


def hear_settings(steps: int | None) -> LoopSettings:
    """The settings of stage "hear"."""
    return LoopSettings(steps=steps or HEAR_STEPS, warmup_steps=20, decay_share=0.5, final_rate=0.03)


def speak_settings(steps: int | None) -> LoopSettings:
    """The settings of stage "speak"."""
    return LoopSettings(steps=steps or SPEAK_STEPS, warmup_steps=20, decay_share=0.5, final_rate=0.03)


def new_encoder() -> Wav2Vec2:
    """The speech encoder with random weights, always the same."""
    part = PRESET.part("audio_encoder")
    torch.manual_seed(2)
    encoder: Wav2Vec2 = part.family.build(part.config)
    return encoder


def run_hear(arguments: argparse.Namespace) -> None:
    """Stage "hear"."""
    stage = HearStage(new_encoder())
    train(
        Stage.of(stage.model, stage.optimizers, stage.loss),
        hear_settings(arguments.steps),
        checkpoints=CheckpointFolder(arguments.work / "hear"),
        report=Reporter(),
        log_path=arguments.work / "hear.jsonl",
    )


def trained_encoder(work: Path) -> Wav2Vec2:
    """What stage "hear" made."""
    stage = HearStage(new_encoder())
    settings = run_identity(hear_settings(None), {})
    CheckpointFolder(work / "hear").restore(TrainingState(stage.model, stage.optimizers, None, settings))
    return stage.encoder.half().float().eval()


def videos(work: Path) -> Cache:
    """The training videos."""
    vae = family.load_bundled("vae").eval()
    prepare_model(vae, inference=True)
    return speaker_cache(work / "videos", vae)


def run_data(arguments: argparse.Namespace) -> None:
    """Stage "data" (stage "speak" does it when it needs it)."""
    videos(arguments.work)


def run_speak(arguments: argparse.Namespace) -> None:
    """Stage "speak"."""
    vae, encoder = family.load_frozen()
    dit = new_speaker()
    use_plain_attention(dit)
    speeches = [training_speech(number) for number in range(VIDEOS)]
    hearing = trained_encoder(arguments.work)
    stage = SpeakStage(
        dit=dit,
        videos=videos(arguments.work),
        states=torch.stack([heard(hearing, speech.waveform, VIDEO_FRAMES) for speech in speeches]),
        looks=[speech.face for speech in speeches],
        texts=speaker_texts(encoder),
        grey=grey_latents(vae),
        batch=BATCH,
    )
    train(
        Stage.of(dit, speaker_optimizers(dit), stage.loss, AveragedWeights(dit, AVERAGE)),
        speak_settings(arguments.steps),
        checkpoints=CheckpointFolder(arguments.work / "speak"),
        report=Reporter(),
        log_path=arguments.work / "speak.jsonl",
    )


def trained_speaker(work: Path) -> S2VDiT:
    """The averaged weights that stage "speak" made."""
    dit = new_speaker()
    average = AveragedWeights(dit, AVERAGE)
    settings = run_identity(speak_settings(None), {})
    CheckpointFolder(work / "speak").restore(TrainingState(dit, speaker_optimizers(dit), average, settings))
    average.exchange(dit)
    return dit.eval()


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Stage "evaluate": ``scores.json`` in the work folder."""
    networks = trained_speaker(arguments.work), trained_encoder(arguments.work)
    write_speaker(arguments.work / "model", PRESET, *networks, RECIPE, {})
    pipeline = pipeline_of(PRESET, arguments.work / "model")
    rows = {**score_drawn(family.load_bundled("vae").eval()), **score_model(pipeline, arguments.work)}
    scores = {"means": means(rows), "rows": rows}
    (arguments.work / "scores.json").write_text(json.dumps(scores, indent=1))
    sys.stdout.write(json.dumps(scores["means"], indent=1) + "\n")


def run_export(arguments: argparse.Namespace) -> None:
    """Stage "export": both networks with their scores into the package."""
    scores = json.loads((arguments.work / "scores.json").read_text())["means"]
    networks = trained_speaker(arguments.work), trained_encoder(arguments.work)
    write_speaker(Path(PRESET.part("dit").file).parent, PRESET, *networks, RECIPE, scores)


RUNS = {"hear": run_hear, "data": run_data, "speak": run_speak, "evaluate": run_evaluate, "export": run_export}


def main() -> None:
    """Run one stage."""
    run_recipe("tools.tiny.speaker_train", recipe_parser(__doc__, RUNS), RUNS)


if __name__ == "__main__":
    main()
