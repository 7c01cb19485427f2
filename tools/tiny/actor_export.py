"""The files of the tiny Wan-Animate, and the pipeline that reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.tiny.actor_stages import PRESET
from tools.tiny.actors import ACTORS_VERSION
from tools.tiny.weights import in_8_bits, write_weights
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.models import AnimateDiT
from wan_core.pipeline import Pipeline


def write_actor(folder: Path, dit: AnimateDiT, recipe: str, scores: Mapping[str, Any]) -> None:
    """The network into a folder, as the preset has it: matrices in 8 bits, the rest in float16."""
    recipe = f"tools/tiny/actor_train.py, actors {ACTORS_VERSION}, {recipe}"
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / "model.safetensors", in_8_bits(dit.state_dict()), recipe=recipe, scores=scores)
    (folder / "config.json").write_text(json.dumps(asdict(dit.animate), indent=1) + "\n")


def pipeline_of(folder: Path) -> Pipeline:
    """The pipeline with the network of a folder, and the bundled parts beside it."""
    options = RuntimeOptions(device="cpu", dtype="float32", offload=False, parts={"dit": folder})
    return load_pipeline(PRESET, None, options)
