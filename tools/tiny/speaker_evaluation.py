"""The files of the tiny speech-to-video model, and its scores on the held-back sounds through the pipeline.

Each video is made as 'wan generate' makes it, from a picture and a WAV file, and judged on the frames that the sound
covers. The first three frames of a video are left out by the task, so frame j shows the sound of video frame j + 3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from tools.tiny.scores import write_sheet
from tools.tiny.speaker_judge import correlation, judge
from tools.tiny.speakers import (
    EVALUATION_SECONDS,
    FPS,
    RATE,
    SPEAKERS_VERSION,
    Face,
    Speech,
    evaluation_speeches,
    loudness,
    openings,
    picture_of,
    render,
)
from tools.tiny.vae_stage import reconstructor, to_video
from tools.tiny.weights import in_8_bits, write_weights
from tools.tiny.world import Video
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.metrics import interval
from wan_core.models import S2VDiT, VideoVAE, Wav2Vec2
from wan_core.pipeline import Pipeline
from wan_core.presets import Preset
from wan_core.tasks import S2VRequest

Rows = dict[str, list[dict[str, float]]]
"""The scores of each held-back sound, by what is judged."""

DROPPED = 3
"""Frames that the task leaves out at the start of a video."""
SHOWN = round(EVALUATION_SECONDS * FPS) - DROPPED
"""Frames of a video that the sound covers."""


def write_speaker(
    folder: Path, preset: Preset, dit: S2VDiT, encoder: Wav2Vec2, recipe: str, scores: Mapping[str, Any]
) -> None:
    """Both networks into a folder, where the preset has them: matrices in 8 bits, the rest in float16."""
    recipe = f"tools/tiny/speaker_train.py, speakers {SPEAKERS_VERSION}, {recipe}"
    for name, config, tensors in (
        ("dit", dit.s2v, in_8_bits(dit.state_dict())),
        ("audio_encoder", encoder.config, encoder.state_dict()),
    ):
        part = preset.part(name)
        write_weights(folder / part.place / "model.safetensors", tensors, recipe=recipe, scores=scores)
        values = asdict(config) if name == "dit" else part.family.official_config(config)
        (folder / part.place / "config.json").write_text(json.dumps(values, indent=1) + "\n")


def pipeline_of(preset: Preset, folder: Path) -> Pipeline:
    """The pipeline with both networks of a folder, and the bundled parts beside them."""
    parts = {name: folder / preset.part(name).place for name in ("dit", "audio_encoder")}
    return load_pipeline(preset, None, RuntimeOptions(device="cpu", dtype="float32", offload=False, parts=parts))


def write_inputs(folder: Path, name: str, speech: Speech) -> tuple[Path, Path]:
    """The picture and the sound of a speech as a user's files."""
    folder.mkdir(parents=True, exist_ok=True)
    image, audio = folder / f"{name}.png", folder / f"{name}.wav"
    Image.fromarray(picture_of(speech.face)).save(image)
    soundfile.write(audio, speech.waveform, RATE)
    return image, audio


def make(pipeline: Pipeline, speech: Speech, folder: Path, seed: int) -> Video:
    """The video of a speech: the frames that its sound covers."""
    image, audio = write_inputs(folder, f"{seed:02d}", speech)
    video = pipeline.generate(S2VRequest(image=image, audio=audio, seed=seed))
    return to_video(video.frames.transpose(0, 1))[:SHOWN]


def score(video: Video, face: Face, waveform: np.ndarray, first: int) -> dict[str, float]:
    """Correlation of opening and loudness from video frame ``first`` on, and whether both colours are right (100)."""
    verdict = judge(video)
    loud = loudness(waveform, first + len(video))[first:]
    return {"correlation": correlation(verdict.openings, loud), "colours": 100.0 * verdict.shows(face)}


def score_drawn(vae: VideoVAE) -> Rows:
    """Scores of what the model is compared with: every held-back sound drawn, and that through the autoencoder."""
    rebuilt, frames = reconstructor(vae), 1 + (SHOWN - 1) // 4 * 4
    rows: Rows = {"drawn": [], "drawn, through the autoencoder": []}
    for speech in evaluation_speeches():
        drawn = render(speech.face, openings(speech.waveform, SHOWN))[:frames]
        for name, video in zip(rows, (drawn, rebuilt(drawn)), strict=True):
            rows[name].append(score(video, speech.face, speech.waveform, 0))
    return rows


def score_model(pipeline: Pipeline, work: Path) -> Rows:
    """Scores of the model's video of every held-back sound, also by the sound after it; a sheet in the work folder."""
    speeches, made = list(evaluation_speeches()), []
    rows: Rows = {"tiny-s2v": [], "tiny-s2v, judged by another sound": []}
    for number, speech in enumerate(speeches):
        video = make(pipeline, speech, work / "inputs", number)
        other = speeches[(number + 1) % len(speeches)]
        for name, waveform in zip(rows, (speech.waveform, other.waveform), strict=True):
            rows[name].append(score(video, speech.face, waveform, DROPPED))
        made.append(video)
    write_sheet(made[:10], work / "speakers.png", frames=9)
    return rows


def means(rows: Rows) -> dict[str, dict[str, Any]]:
    """Mean correlation with its 95 % bootstrap interval, the lowest one, and the share of right colours."""
    return {name: _means(found) for name, found in rows.items()}


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    found = interval([row["correlation"] for row in rows])
    if found is None or found.low is None or found.high is None:
        raise ValueError("an interval is over two videos or more")
    return {
        "correlation": round(found.mean, 3),
        "interval": [round(found.low, 3), round(found.high, 3)],
        "lowest": round(min(row["correlation"] for row in rows), 3),
        "colours": round(float(np.mean([row["colours"] for row in rows])), 1),
    }
