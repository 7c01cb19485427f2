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
from tools.tiny.subjects_detect import judge, see
from tools.tiny.vae_stage import reconstructor, to_video
from tools.tiny.world import Video
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.metrics import interval
from wan_core.pipeline import Pipeline
from wan_core.presets import Preset

SEEDS = {1: EVALUATION_SEEDS, 2: PAIR_SEEDS, 3: PAIR_SEEDS[:10]}
"""Of three subjects there are fewer, and no bar."""
STRIPS = 8
BARS = {1: {"look": 90, "motion": 85}, 2: {"look": 80}}
_PARTS = ("shape", "texture", "first", "second")
_SHOWN = ("look", "motion", "all", "looks", "motions", "background", *_PARTS)


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


def parts_of(video: Video, scene: Scene) -> dict[str, float]:
    """Of a scene of one subject, 1 or 0: which names of its look a clip shows. Added after the training, for the
    report; no bar goes by it."""
    seen, wanted = see(video, 1), scene.subjects[0].look
    look = seen[0].look if seen else None
    return {name: float(look is not None and getattr(look, name) == getattr(wanted, name)) for name in _PARTS}


def summary(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Percentages over scenes with their 95 % intervals: [mean, low, high]."""
    found: dict[str, list[float]] = {}
    for name in _SHOWN:
        values = [row[name] for row in rows if name in row]
        limits = interval(values)
        if limits is not None:
            ends = (limits.mean if end is None else end for end in (limits.low, limits.high))
            found[name] = [round(100 * float(value), 1) for value in (limits.mean, *ends)]
    return found


ARMS = ("drawn", "through the autoencoder", "tiny-bindweave")


@dataclass(frozen=True)
class Report:
    """Of the scenes ``numbers`` the scores of each of ARMS, and strips of the first of them, all and ``wrong`` ones."""

    numbers: list[int]
    rows: dict[str, list[dict[str, float]]]
    strips: dict[str, list[np.ndarray[Any, Any]]]


def evaluate(pipeline: Pipeline, count: int, part: tuple[int, int] = (0, 1)) -> Report:
    """The held-back scenes of ``count`` subjects: as drawn, through the autoencoder, and made from their pictures.

    ``part``: of so many processes this one takes its share.
    """
    with pipeline.components.vae.active() as vae:
        through = reconstructor(vae)
    chosen = range(part[0], len(SEEDS[count]), part[1])
    scenes = [held_back(count)[number] for number in chosen]
    report = Report(list(chosen), {name: [] for name in ARMS}, {"first": [], "wrong": []})
    seeds = [SEEDS[count][number] for number in chosen]
    for scene, video in zip(scenes, make_videos(pipeline, scenes, seeds), strict=True):
        for name, each in zip(ARMS, (scene.video, through(scene.video), video), strict=True):
            report.rows[name].append(judge(each, scene) | (parts_of(each, scene) if count == 1 else {}))
        is_right = report.rows[ARMS[-1]][-1]["all"] == 1
        for kind in ("first",) if is_right else ("first", "wrong"):
            if len(report.strips[kind]) < STRIPS:
                report.strips[kind].append(strip(scene, video))
    return report


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
