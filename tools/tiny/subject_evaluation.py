"""How well the tiny BindWeave shows the subjects of pictures: scores of its shipped files, by `subjects_detect.judge`.

Fixed before the first training run: the held-back scenes (`subjects.EVALUATION_SEEDS`, 100 of one subject, and
`subjects.PAIR_SEEDS`, 50 of two), the judge, and the bars: of single subjects the look is right in 90 % and the motion
in 85 %, of two each keeps its look in 80 %. Noise by the seed of the scene. Every video is made as
``bindweave extract`` and ``bindweave infer`` make it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bindweave.hidden_states import extract, write_hidden_states
from bindweave.mllm import open_mllm
from bindweave.presets import TINY_BINDWEAVE, TINY_MLLM
from bindweave.prompts import MLLM_NEGATIVE_PROMPT
from bindweave.request import SubjectRequest
from tools.tiny.subject_data import GEOMETRY
from tools.tiny.subjects import EVALUATION_SEEDS, MOST_SUBJECTS, PAIR_SEEDS, Scene, evaluation_scenes
from tools.tiny.subjects_detect import judge
from tools.tiny.vae_stage import reconstructor, to_video
from tools.tiny.world import Video
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.metrics import interval
from wan_core.pipeline import Pipeline
from wan_core.presets import Preset

SEEDS = {1: EVALUATION_SEEDS, 2: PAIR_SEEDS, 3: PAIR_SEEDS[:20]}
"""Of three subjects there are fewer, and no bar."""
STRIPS = 8
BARS = {1: {"look": 90, "motion": 85}, 2: {"look": 80}}
_SHOWN = ("look", "motion", "all", "looks", "motions", "background")


def held_back(count: int) -> list[Scene]:
    """The scored scenes of ``count`` subjects."""
    return evaluation_scenes(SEEDS[count], count)


def shipped(dit: Path | None = None, **sampling: Any) -> Pipeline:
    """The bundled model in float32, with the transformer of another folder, or other sampling."""
    preset: Preset = replace(TINY_BINDWEAVE, sampling=replace(TINY_BINDWEAVE.sampling, **sampling))
    parts = {} if dit is None else {"dit": dit}
    return load_pipeline(preset, options=RuntimeOptions(device="cpu", dtype="float32", offload=False, parts=parts))


def make_videos(pipeline: Pipeline, scenes: Sequence[Scene], seeds: Sequence[int]) -> Iterator[Video]:
    """A video of each scene's prompt and pictures, with noise of its seed."""
    mllm, tokenizer = open_mllm(TINY_MLLM, torch.float32, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        for scene, seed in zip(scenes, seeds, strict=True):
            pictures = [Image.fromarray(picture) for picture in scene.pictures]
            files = [Path(folder) / f"{index}.png" for index in range(len(pictures))]
            for picture, file in zip(pictures, files, strict=True):
                picture.save(file)
            states = [Path(folder) / f"{name}.safetensors" for name in ("positive", "negative")]
            made = extract(mllm, tokenizer, pictures, (scene.prompt, MLLM_NEGATIVE_PROMPT))
            for file, each in zip(states, made, strict=True):
                write_hidden_states(file, each, {})
            request = SubjectRequest(
                prompt=scene.prompt,
                images=tuple(files),
                hidden_states=states[0],
                hidden_states_negative=states[1],
                seed=seed,
            )
            yield to_video(pipeline.generate(request).frames.transpose(0, 1))


def summary(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Percentages over scenes with their 95 % intervals: [mean, low, high]."""
    found: dict[str, list[float]] = {}
    for name in _SHOWN:
        values = [row[name] for row in rows if name in row]
        limits = interval(values)
        if limits is not None:
            ends = limits.low or 0.0, limits.high or 0.0
            found[name] = [round(100 * float(value), 1) for value in (limits.mean, *ends)]
    return found


@dataclass(frozen=True)
class Report:
    """``scores`` by arm (see `summary`), and strips of the first scenes, of those ``right`` and ``wrong``."""

    scores: dict[str, dict[str, list[float]]]
    strips: dict[str, list[np.ndarray[Any, Any]]]


def evaluate(pipeline: Pipeline, count: int) -> Report:
    """The held-back scenes of ``count`` subjects: as drawn, through the autoencoder, and made from their pictures."""
    with pipeline.components.vae.active() as vae:
        through = reconstructor(vae)
    scenes = held_back(count)
    rows: dict[str, list[dict[str, float]]] = {"drawn": [], "through the autoencoder": [], "tiny-bindweave": []}
    strips: dict[str, list[np.ndarray[Any, Any]]] = {"first": [], "wrong": []}
    for scene, video in zip(scenes, make_videos(pipeline, scenes, SEEDS[count]), strict=True):
        shown = dict(zip(rows, (scene.video, through(scene.video), video), strict=True))
        for name, each in shown.items():
            rows[name].append(judge(each, scene))
        kinds = ["first"] if rows["tiny-bindweave"][-1]["all"] else ["first", "wrong"]
        for kind in kinds:
            if len(strips[kind]) < STRIPS:
                strips[kind].append(strip(scene, video))
    return Report({name: summary(each) for name, each in rows.items()}, {k: each for k, each in strips.items() if each})


def table(scores: Mapping[str, dict[str, Any]]) -> list[str]:
    """Rows of Markdown: percentages with intervals."""
    rows = ["| subjects | | " + " | ".join(_SHOWN) + " |", "|---" * (len(_SHOWN) + 2) + "|"]
    for count, arms in scores.items():
        for name, values in arms.items():
            cells = [f"{v[0]:g} [{v[1]:g}, {v[2]:g}]" if (v := values.get(key)) else "" for key in _SHOWN]
            rows.append(f"| {count} | {name} | " + " | ".join(cells) + " |")
    return rows


def strip(scene: Scene, video: Video, frames: int = 5) -> np.ndarray[Any, Any]:
    """The pictures of a scene, padded to MOST_SUBJECTS of them, then some frames: [H, W, 3] uint8."""
    blank = np.full_like(scene.pictures[0], 255)
    pictures = [*scene.pictures, *[blank] * (MOST_SUBJECTS - len(scene.pictures))]
    chosen = video[np.linspace(0, len(video) - 1, frames).round().astype(int)]
    gap = np.full((GEOMETRY.height, 6, 3), 255, np.uint8)
    return np.concatenate([*pictures, gap, *chosen], axis=1)
