"""Stage "evaluate": teacher and student on the 60 held-back clips, and the student on ten times their length."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfforcing_unianimate import TINY_SFU, CausalDiT
from selfforcing_unianimate.presets import TINY_UNIANIMATE
from tools.tiny.dit_stage import decode
from tools.tiny.family import GEOMETRY
from tools.tiny.people import STYLES, Person, evaluation_people
from tools.tiny.person_data import PoseTrunk
from tools.tiny.person_evaluation import means, score_clip, table, tenths
from tools.tiny.person_sampling import BLOCKS, features_of, no_pictures, student_latents, teacher_videos
from tools.tiny.person_stages import PosedDiT
from tools.tiny.vae_stage import reconstructor
from tools.tiny.world import Video
from wan_core.models import VideoVAE

LONG_FRAMES = 169
"""Ten times the 17 frames of training, and what makes it whole latent frames."""
LONG_CLIPS = 10
_STARTS = [1 + 4 * frame for frame in range(GEOMETRY.latent_frames - 1)]
ARMS = (
    "ground truth",
    "through the autoencoder",
    "teacher",
    "student",
    "student without poses",
    "student after ode",
    "student after dmd",
)


def held_back() -> list[Person]:
    """The 60 clips, in the clothing that the LoRA taught."""
    return list(evaluation_people(style=STYLES[1]))


@torch.inference_mode()
def student_videos(
    dit: CausalDiT,
    model: PosedDiT,
    vae: VideoVAE,
    captions: Mapping[str, Tensor],
    people: Sequence[Person],
    features: Tensor | None,
    batch: int = 10,
) -> list[Video]:
    """A video of every person from text and poses, or text alone, as `sfu infer` makes it."""
    videos: list[Video] = []
    frames = (len(people[0].body) - 1) // 4 + 1
    for start in range(0, len(people), batch):
        part = people[start : start + batch]
        context = torch.stack([captions[person.caption] for person in part])
        tokens = None
        if features is not None:
            tokens = model.tokens(features[start : start + batch])
        channels = no_pictures(dit, len(part), frames)
        latents = student_latents(dit, context, channels, tokens, TINY_SFU.sampling, start)
        videos += decode(vae, latents)
    return videos


def make_videos(arm: str, work: Path, parts: Mapping[str, Any], count: int) -> list[Video]:
    """The videos of one of ARMS for the first ``count`` clips."""
    people = held_back()[:count]
    model, vae, captions, trunk = parts["model"], parts["vae"], parts["captions"], parts["trunk"]
    if arm == "ground truth":
        return [person.video for person in people]
    if arm == "through the autoencoder":
        reconstruct = reconstructor(vae)
        return [reconstruct(person.video) for person in people]
    features = features_of(trunk, people)
    if arm == "teacher":
        return teacher_videos(model, vae, captions, people, features, TINY_UNIANIMATE.sampling)
    student = parts[arm.split()[-1] if "after" in arm else "student"]
    given = None if "without" in arm else features
    return student_videos(student, model, vae, captions, people, given)


def evaluate(work: Path, arms: Sequence[str], parts: Mapping[str, Any], count: int = 60) -> None:
    """Write videos and scores of some arms into ``work``; the scores go to ``scores-ARM.json``."""
    people = held_back()[:count]
    for arm in arms:
        videos = make_videos(arm, work, parts, count)
        scores = [score_clip(video, person, _STARTS) for video, person in zip(videos, people, strict=True)]
        name = arm.replace(" ", "-")
        np.savez_compressed(work / f"videos-{name}.npz", videos=np.stack(videos))
        (work / f"scores-{name}.json").write_text(json.dumps(scores))
        sys.stdout.write(json.dumps({"arm": arm, **means(scores)}) + "\n")
        sys.stdout.flush()


def evaluate_long(work: Path, parts: Mapping[str, Any]) -> None:
    """PCK@0.1 of the first and last tenth of long videos, into ``long.json``."""
    people = list(evaluation_people(style=STYLES[1], frames=LONG_FRAMES))[:LONG_CLIPS]
    trunk: PoseTrunk = parts["trunk"]
    features = features_of(trunk, people)
    videos = student_videos(parts["student"], parts["model"], parts["vae"], parts["captions"], people, features, 5)
    found = [tenths(video, person) for video, person in zip(videos, people, strict=True)]
    np.savez_compressed(work / "videos-long.npz", videos=np.stack(videos))
    first, last = (float(value) for value in np.mean(found, axis=0))
    report = {
        "first": first,
        "last": last,
        "ratio": last / max(first, 1e-9),
        "frames": LONG_FRAMES,
        "window": BLOCKS.window,
    }
    (work / "long.json").write_text(json.dumps(report))
    sys.stdout.write(json.dumps(report) + "\n")


def summary(work: Path) -> dict[str, dict[str, Any]]:
    """Means of every arm that was evaluated; the student's with those of long videos."""
    found: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        file = work / f"scores-{arm.replace(' ', '-')}.json"
        if file.exists():
            found[arm] = {**means(json.loads(file.read_text()))}
    if (work / "long.json").exists():
        found["student"]["long"] = json.loads((work / "long.json").read_text())
    return found


def bars(work: Path) -> dict[str, float]:
    """What the bars ask of: the student's PCK@0.1 and warp error over the teacher's, and what long videos keep."""
    student, teacher = (json.loads((work / f"scores-{arm}.json").read_text()) for arm in ("student", "teacher"))
    ratios = {
        f"{metric} ratio": float(np.mean([row[metric] for row in student]) / np.mean([row[metric] for row in teacher]))
        for metric in ("pck_0.1", "warp_error")
    }
    return ratios | {"long ratio": json.loads((work / "long.json").read_text())["ratio"]}


def write_table(work: Path) -> None:
    """``table.md`` and the sheet ``persons.png`` from what `evaluate` wrote."""
    scores = {}
    for arm in ARMS:
        file = work / f"scores-{arm.replace(' ', '-')}.json"
        if file.exists():
            scores[arm] = json.loads(file.read_text())
    rows = table(scores)
    (work / "table.md").write_text("\n".join(rows) + "\n")
    sys.stdout.write("\n".join([*rows, json.dumps(bars(work))]) + "\n")


def write_sheet(work: Path, clips: Sequence[int] = (0, 7, 14, 21, 28, 35)) -> None:
    """A row for each of some clips: three frames of skeletons drawn, ground truth, teacher and student."""
    shown = [np.load(work / f"videos-{arm}.npz")["videos"] for arm in ("ground-truth", "teacher", "student")]
    rows = [np.concatenate([made[clip][frame] for made in shown for frame in (0, 8, 16)], axis=1) for clip in clips]
    image = Image.fromarray(np.concatenate(rows))
    image.resize((image.width * 3 // 2, image.height * 3 // 2), Image.Resampling.NEAREST).save(work / "persons.png")
