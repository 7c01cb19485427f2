"""Scores of the tiny Wan-Animate on the held-back scenes through the pipeline, as 'wan generate' makes them.

A scene is moved where the picture is, which is what the bars are for, and where the driving video is; each video has
two segments. For comparison it is drawn, drawn and sent through the autoencoder, and judged by another scene's joints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.tiny.actor_judge import judge
from tools.tiny.actors import Scene, render, write_driving
from tools.tiny.scores import write_sheet
from tools.tiny.vae_stage import reconstructor, to_video
from tools.tiny.world import Video
from wan_core.metrics import interval
from wan_core.models import VideoVAE
from wan_core.pipeline import Pipeline
from wan_core.tasks import AnimateRequest

Rows = dict[str, list[dict[str, float]]]
"""The scores of each held-back scene, by what is judged."""

ARMS = {"tiny-animate": False, "tiny-animate, replacing the driver": True}


def make(pipeline: Pipeline, scene: Scene, folder: Path, seed: int, *, replaced: bool = False) -> Video:
    """The video of a scene, by its files in ``folder``."""
    write_driving(folder, scene, replaced=replaced)
    video = pipeline.generate(AnimateRequest(src_root_path=folder, replace_flag=replaced, seed=seed))
    return to_video(video.frames.transpose(0, 1))


def score_drawn(scenes: Sequence[Scene], vae: VideoVAE) -> Rows:
    """Scores of what the model is compared with."""
    rebuilt = reconstructor(vae)
    rows: Rows = {"drawn": [], "drawn, through the autoencoder": []}
    for scene in scenes:
        drawn = scene.target()
        for name, video in zip(rows, (drawn, rebuilt(drawn)), strict=True):
            rows[name].append(judge(video, scene))
    return rows


def score_model(scenes: Sequence[Scene], pipeline: Pipeline, work: Path, name: str) -> Rows:
    """Scores of the model's videos of every scene, in one of `ARMS`; a sheet of the first six in the work folder."""
    replaced = ARMS[name]
    videos = [
        make(pipeline, scene, work / f"{number:02d}", number, replaced=replaced) for number, scene in enumerate(scenes)
    ]
    strips = [strip(*pair) for pair in zip(scenes, videos, strict=True)]
    write_sheet(strips[:6], work / f"actors-{int(replaced)}.png", frames=len(strips[0]))
    rows = {name: [judge(*pair, replaced=replaced) for pair in zip(videos, scenes, strict=True)]}
    if not replaced:
        others = [*scenes[1:], scenes[0]]
        rows[f"{name}, judged by another scene"] = [judge(*pair) for pair in zip(videos, others, strict=True)]
    return rows


def strip(scene: Scene, video: Video) -> Video:
    """What is shown of a scene [7, 64, 64, 3]: the picture, three frames of who drives, the same three of the video."""
    shown = np.linspace(0, len(video) - 1, 3).round().astype(int)
    filmed = render(scene.driver.colors, scene.drive)[shown]
    return np.concatenate([scene.picture[None], filmed, video[shown]])


def means(rows: Rows) -> dict[str, dict[str, Any]]:
    """The mean of every score, that of PCK@0.1 with its 95 % bootstrap interval."""
    return {name: _means(found) for name, found in rows.items()}


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    found = interval([row["pck_0.1"] for row in rows])
    if found is None or found.low is None or found.high is None:
        raise ValueError("an interval is over two videos or more")
    values = {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}
    return values | {"interval": [round(found.low, 3), round(found.high, 3)]}
