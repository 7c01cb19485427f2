"""One process of several: ``runs_worker.py FOLDER CASE ...`` makes videos with the others and by itself, and compares.

For every case it notes in ``FOLDER/RANK.json`` the largest difference of the final latents, how many frames came, and
how much of the network's weights it holds. ``CASE`` is ``PRESET:OPTION+OPTION`` of sequence=N, cfg, dit and t5.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from wan_core.files import read_text
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.pipeline import Pipeline
from wan_core.runtime import Processes, is_divided, launched, plan_processes, process_group

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"prompt": "a red circle", "num_frames": 5, "num_inference_steps": 2, "seed": 3}


def options_of(words: str) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    for word in words.split("+"):
        name, _, value = word.partition("=")
        asked |= {
            "sequence": {"sequence": int(value or 1)},
            "cfg": {"splits_guidance": True},
            "dit": {"divides_dit": True},
            "t5": {"divides_text": True},
        }[name]
    return asked


def load(preset: str, processes: Processes) -> Pipeline:
    return load_pipeline(preset, options=RuntimeOptions(device="cpu", processes=processes, offload=True))


def made(pipeline: Pipeline, request: dict[str, Any]) -> tuple[list[Tensor], int]:
    """The final latents of each clip, and how many frames came out here."""
    latents: list[Tensor] = []
    kind = pipeline.preset.task.request_type
    inputs = pipeline.plan(kind(**request))
    chunks = [chunk.shape[1] for chunk in pipeline.stream(inputs, on_latents=latents.append)]
    return latents, sum(chunks)


def held_bytes(model: nn.Module) -> tuple[int, int]:
    """What of a network's weights is here, and all of them."""
    parameters = list(model.parameters())
    local = [each.to_local() if is_divided(each) else each for each in parameters]  # type: ignore[attr-defined]
    return sum(each.nbytes for each in local), sum(each.numel() * each.element_size() for each in parameters)


def main() -> None:
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    requests = json.loads(read_text(folder / "requests.json"))
    torch.set_num_threads(1)
    launch = launched()
    assert launch is not None
    found: dict[str, Any] = {}
    alone: dict[str, Any] = {}
    with process_group(launch, CPU):
        for case in cases:
            preset, _, words = case.partition(":")
            request = {**SMALL, **requests.get(preset, {})}
            if preset not in alone:
                alone = {preset: made(load(preset, Processes()), request)}
            pipeline = load(preset, plan_processes(launch, **options_of(words)))
            latents, frames = made(pipeline, request)
            wanted, whole = alone[preset]
            differences = [float((a - b).abs().max()) for a, b in zip(latents, wanted, strict=True)]
            network = pipeline.components.networks[-1]
            found[case] = {
                "difference": max(differences),
                "is_equal": all(torch.equal(a, b) for a, b in zip(latents, wanted, strict=True)),
                "frames": [frames, whole],
                "held": held_bytes(network.module()),
                "loads": network.loads,
                "plan": [pipeline.together.plan.ring, pipeline.together.plan.ulysses],
            }
            distributed.barrier()
    (folder / f"{launch.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
