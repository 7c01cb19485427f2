"""Train the tiny 3D-guided model on rendered rooms: ``python -m tools.tiny.poze_train --stage decoder --work FOLDER``.

Stages, in this order: ``decoder`` (the bundled autoencoder's decoder on rooms), ``with`` and ``without`` (the bundled
transformer on rooms, with Pi3's tokens and without, same clips, noise and steps), ``evaluate`` (both on the held-back
scenes, the table and images), ``export`` (the weights of the arm with guidance into packages/poze). Every stage goes
on from its newest checkpoint in ``--work``. One core, about 10 minutes an arm, 6 for the decoder, 8 for the clips.

It makes a successor of the shipped model: that one goes back to the first tiny-ti2v, with patches of 1x2x2; this recipe
starts from today's weights with patches of 1x1x1, and the record of what it exports says so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pi3 import load_pi3
from poze import save_adapter
from poze.presets import WEIGHTS as POZE_WEIGHTS
from tools.tiny import family, poze_evaluation
from tools.tiny.dit_stage import channel_weights, stacked, use_plain_attention
from tools.tiny.poze_data import first_image_tokens, room_cache
from tools.tiny.poze_stages import (
    DecoderStage,
    GuidedDiT,
    RoomStage,
    caption_states,
    generate_rooms,
    rooms_decoder,
    through_vae,
)
from tools.tiny.recipe import recipe_parser, run_recipe
from tools.tiny.room_clips import CLIPS_VERSION, EVALUATION_SEEDS, room_clip
from tools.tiny.train import Reporter
from tools.tiny.weights import in_8_bits, read_tensors, write_weights
from wan_core.checkpoints import read_weights
from wan_core.training import (
    AveragedWeights,
    Cache,
    CheckpointFolder,
    LoopSettings,
    NoiseLevels,
    Stage,
    TrainingState,
    merge_lora,
    run_identity,
    train,
)

DECODER_STEPS, ARM_STEPS = 700, 1200
ARMS = ("with guidance", "without guidance")
PI3_TOKENS = 192  # channels of the bundled Pi3's tokens
arm_settings = partial(LoopSettings, warmup_steps=50, decay_share=0.5, final_rate=0.04)


def rooms(work: Path) -> Cache:
    """The training clips."""
    return room_cache(work / "rooms", family.load_bundled("vae"), load_pi3().eval())


def run_data(arguments: argparse.Namespace) -> None:
    """Stage "data": render and encode every training clip (the other stages do it when they need it)."""
    rooms(arguments.work)


def run_decoder(arguments: argparse.Namespace) -> None:
    """Stage "decoder"."""
    steps = arguments.steps or DECODER_STEPS
    stage = DecoderStage(family.load_bundled("vae"), rooms(arguments.work))
    settings = LoopSettings(steps=steps, warmup_steps=20, decay_share=0.6, final_rate=0.03, clip_norm=None)
    folder = CheckpointFolder(arguments.work / "decoder")
    result = train(Stage.of(stage.vae, stage.optimizers, stage.loss), settings, checkpoints=folder, report=Reporter())
    if not result.was_interrupted:
        recipe = f"tools/tiny/poze_train.py, stage decoder, {steps} steps of 2, one CPU core"
        path = arguments.work / "decoder.safetensors"
        write_weights(path, stage.tensors(), recipe=recipe, scores={"loss": round(result.loss, 4)}, base="vae")


def run_arm(arguments: argparse.Namespace) -> None:
    """Stages "with" and "without"."""
    vae, encoder = family.load_frozen()
    clips = rooms(arguments.work)
    rooms_decoder(vae, arguments.work / "decoder.safetensors")
    model = GuidedDiT(PI3_TOKENS if arguments.stage == "with" else None)
    use_plain_attention(model.dit)
    stage = RoomStage(
        model=model,
        rooms=clips,
        captions=caption_states(encoder),
        levels=NoiseLevels(shift=2.0, std=1.2),
        weights=channel_weights(vae, stacked([clips[number] for number in range(4)], "latents")),
    )
    train(
        Stage.of(model, model.optimizers(), stage.loss, AveragedWeights(model, 0.995)),
        arm_settings(steps=arguments.steps or ARM_STEPS),
        checkpoints=CheckpointFolder(arguments.work / arguments.stage),
        report=Reporter(),
        log_path=arguments.work / f"{arguments.stage}.jsonl",
    )


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Stage "evaluate": ``scores.json``, ``table.md`` and ``rooms.png`` in the work folder."""
    vae, encoder = family.load_frozen()
    rooms_decoder(vae, arguments.work / "decoder.safetensors")
    pi3, captions = load_pi3().eval(), caption_states(encoder)
    clips = [room_clip(seed) for seed in EVALUATION_SEEDS]
    tokens = first_image_tokens([clip.video for clip in clips], pi3)[0]
    other = tokens.roll(6, 0)  # of another room, with the same move
    guided, plain = (restored(arguments.work, name) for name in ("with", "without"))
    videos = {
        "rendered": [clip.video for clip in clips],
        "rendered, through the autoencoder": through_vae(vae, clips),
        "with guidance": generate_rooms(guided, vae, captions, clips, tokens),
        "without guidance": generate_rooms(plain, vae, captions, clips, tokens),
        "with another room's guidance": generate_rooms(guided, vae, captions, clips, other),
        "first picture, standing still": [clip.video[:1].repeat(len(clip.video), 0) for clip in clips],
    }
    save_comparison([videos[name] for name in ("rendered", *ARMS)], arguments.work / "rooms.png")
    scores = {
        name: [poze_evaluation.score_clip(video, clip, pi3) for video, clip in zip(made, clips, strict=True)]
        for name, made in videos.items()
    }
    pairs = [("with guidance", other) for other in ("without guidance", "with another room's guidance")]
    rows = poze_evaluation.table(scores, pairs)
    (arguments.work / "scores.json").write_text(json.dumps(scores))
    (arguments.work / "table.md").write_text("\n".join(rows) + "\n")
    sys.stdout.write("\n".join(rows) + "\n")


def save_comparison(videos: list[list[Any]], path: Path, scenes: int = 6) -> None:
    """Frames 1, 9 and 17 of the first scenes, a row each; the sources beside one another."""
    rows = [
        np.concatenate([made[scene][frame] for made in videos for frame in (0, 8, 16)], 1) for scene in range(scenes)
    ]
    image = Image.fromarray(np.concatenate(rows))
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)


def run_export(arguments: argparse.Namespace) -> None:
    """Stage "export": adapter, transformer and decoder with their scores into packages/poze."""
    scores = json.loads((arguments.work / "scores.json").read_text())
    means = {
        name: {metric: poze_evaluation.shown_interval([row[metric] for row in rows]) for metric in rows[0]}
        for name, rows in scores.items()
    }
    model = restored(arguments.work, "with")
    base = read_weights(family.WEIGHTS / family.PRESET.part("dit").file).metadata["recipe"]
    recipe = (
        f"tools/tiny/poze_train.py, room clips {CLIPS_VERSION}, stage with, {ARM_STEPS} steps of 32, one CPU core; "
        f"from tiny-ti2v (patches of {'x'.join(map(str, family.DIT.patch_size))}; {base}), block matrices rounded to 8 "
        "bits afterwards"
    )
    # Whole, and in 8 bits for its size: tiny-ti2v may be trained further without taking this model along.
    merge_lora(model.dit)
    tensors = in_8_bits(model.dit.state_dict())
    write_weights(POZE_WEIGHTS / "dit/model.safetensors", tensors, recipe=recipe, scores=means)
    shutil.copy(family.WEIGHTS / "t2v/config.json", POZE_WEIGHTS / "dit/config.json")
    write_weights(
        POZE_WEIGHTS / "vae.safetensors",
        read_tensors(arguments.work / "decoder.safetensors"),
        recipe=f"tools/tiny/poze_train.py, stage decoder, {DECODER_STEPS} steps of 2, one CPU core",
        scores={"rendered, through the autoencoder": means["rendered, through the autoencoder"]},
        base="vae.safetensors",
    )
    details = {"recipe": recipe, "scores": json.dumps(means), "license": "Apache-2.0"}
    save_adapter(model.adapter.half(), POZE_WEIGHTS / "adapter.safetensors", details)


def restored(work: Path, arm: str) -> Any:
    """The averaged weights of an arm, rounded to float16 as they are shipped."""
    model = GuidedDiT(PI3_TOKENS if arm == "with" else None)
    average = AveragedWeights(model, 0.995)
    folder = CheckpointFolder(work / arm)
    settings = run_identity(arm_settings(steps=ARM_STEPS), {})
    folder.restore(TrainingState(model, model.optimizers(), average, settings))
    average.exchange(model)
    return model.half().float().eval()


RUNS = {
    "data": run_data,
    "decoder": run_decoder,
    "with": run_arm,
    "without": run_arm,
    "evaluate": run_evaluate,
    "export": run_export,
}


def main() -> None:
    """Run one stage."""
    run_recipe("tools.tiny.poze_train", recipe_parser(__doc__, RUNS), RUNS)


if __name__ == "__main__":
    main()
