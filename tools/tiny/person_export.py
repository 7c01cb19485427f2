"""Lists of targets for the persons' student, and the files that the package ships."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from selfforcing_unianimate.pose_file import PoseFile, write_pose_file
from selfforcing_unianimate.presets import WEIGHTS
from tools.tiny.family import SAMPLING
from tools.tiny.people import (
    PEOPLE_VERSION,
    SIZE,
    STYLES,
    Person,
    caption_of,
    draw_motion,
    looks,
    poses_of_body,
    render,
)
from tools.tiny.person_data import PoseTrunk
from tools.tiny.person_stages import PosedDiT, pose_encoder
from tools.tiny.weights import in_8_bits, write_weights
from tools.tiny.world import TEMPLATES
from wan_core.checkpoints import MemorySource, write_file


def pose_file_of(person: Person) -> PoseFile:
    """The motion of a person as 'sfu pose' would write it."""
    return PoseFile(driving=person.poses, reference=None, size=(SIZE, SIZE), fps=float(SAMPLING.fps), alignment="none")


def write_wanted(lines: Path, folder: Path, count: int) -> None:
    """Write a list for 'sfu make-targets' with its pictures and motions, none of which is a training clip's."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        rng = np.random.default_rng([38, number])
        known = looks(held_back=False, style=STYLES[1])
        look = known[rng.integers(len(known))]
        body = draw_motion(rng, SAMPLING.num_frames)
        picture, pose = folder / f"{number:04d}.png", folder / f"{number:04d}.npz"
        Image.fromarray(render(look, draw_motion(rng, 1))[0]).save(picture)
        write_pose_file(
            PoseFile(driving=poses_of_body(body), reference=None, size=(SIZE, SIZE), fps=8.0, alignment="none"), pose
        )
        prompt = caption_of(look, int(rng.integers(len(TEMPLATES))))
        image, motion = (str(path.relative_to(lines.parent)) for path in (picture, pose))
        rows.append(json.dumps({"prompt": prompt, "image": image, "pose": motion, "seed": number}))
    lines.write_text("\n".join(rows) + "\n")


def write_network(name: str, dit: Any, recipe: str, scores: Mapping[str, Any]) -> None:
    """A transformer with block matrices in 8 bits, and its dims, into the package."""
    folder = WEIGHTS / name
    folder.mkdir(parents=True, exist_ok=True)
    recipe = f"tools/tiny/distill.py, people {PEOPLE_VERSION}, {recipe}; block matrices rounded to 8 bits afterwards"
    write_weights(folder / "model.safetensors", in_8_bits(dit.state_dict()), recipe=recipe, scores=scores)
    (folder / "config.json").write_text(json.dumps(asdict(dit.config), indent=1) + "\n")


def write_pose_encoder(trunk: PoseTrunk, model: PosedDiT) -> None:
    """The pose encoder of teacher and student into the package, in float32."""
    tensors: dict[str, Tensor] = pose_encoder(trunk, model.last).state_dict()
    recipe = "tools/tiny/person_data.py: six layers by principal components, the last one trained with the teacher"
    metadata = {"format": "pt", "recipe": recipe, "license": "Apache-2.0"}
    write_file(MemorySource(tensors), WEIGHTS / "pose_encoder.safetensors", metadata=metadata)
