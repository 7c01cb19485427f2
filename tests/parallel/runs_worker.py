"""One process of several: ``runs_worker.py FOLDER CASE ...`` makes videos with the others, and the first alone.

For every case it notes in ``FOLDER/RANK.json`` the largest difference of the final latents, as it is, how many frames
came, and how much of the network's weights it holds. ``CASE`` is ``MODEL:OPTION+OPTION``: a model of
``latents_worker.py``, and sequence=N, cfg, dit, t5, and lora for a LoRA in every expert, merged by all.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from latents_worker import CASES, of_first
from safetensors.torch import save_file
from torch import Tensor, distributed, nn

from wan_core.checkpoints import LoRA
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.pipeline import Pipeline
from wan_core.runtime import Processes, is_divided, launched, plan_processes, process_group
from wan_core.tasks import GenerationRequest

CPU = torch.device("cpu")


def options_of(words: str) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    for word in set(words.split("+")) - {"lora"}:
        name, _, value = word.partition("=")
        asked |= {
            "sequence": {"sequence": int(value or 1)},
            "cfg": {"splits_guidance": True},
            "dit": {"divides_dit": True},
            "t5": {"divides_text": True},
        }[name]
    return asked


def small_lora(folder: Path) -> LoRA:
    """A change of several layers of every block of the tiny networks."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for block in range(6):
        for layer, (rows, columns) in {"self_attn.q": (128, 128), "ffn.0": (512, 128), "ffn.2": (128, 512)}.items():
            name = f"diffusion_model.blocks.{block}.{layer}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * 0.1
            tensors[f"{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
    save_file(tensors, folder / "lora.safetensors")
    return LoRA(folder / "lora.safetensors", strength=0.8)


def load(model: str, processes: Processes, **further: Any) -> Pipeline:
    options = RuntimeOptions(device="cpu", dtype="float32", offload=True, processes=processes, **further)
    return load_pipeline(CASES[model][0], options=options)


def made(pipeline: Pipeline, request: GenerationRequest) -> tuple[list[Tensor], int]:
    """The final latents of each clip, and how many frames came out here."""
    latents: list[Tensor] = []
    chunks = [chunk.shape[1] for chunk in pipeline.stream(pipeline.plan(request), on_latents=latents.append)]
    return latents, sum(chunks)


def made_alone(model: str, loras: tuple[LoRA, ...], request: GenerationRequest) -> tuple[list[Tensor], int]:
    """What one process makes by itself."""
    return made(load(model, Processes(), loras=loras), request)


def held_bytes(model: nn.Module) -> tuple[int, int]:
    """What of a network's weights is here, and all of them."""
    parameters = list(model.parameters())
    local = [each.to_local() if is_divided(each) else each for each in parameters]  # type: ignore[attr-defined]
    return sum(each.nbytes for each in local), sum(each.numel() * each.element_size() for each in parameters)


def main() -> None:
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    launch = launched()
    assert launch is not None
    own = folder / str(launch.rank)
    own.mkdir()
    found: dict[str, Any] = {}
    alone: dict[str, Any] = {}
    with process_group(launch, CPU):
        for case in cases:
            model, _, words = case.partition(":")
            request = CASES[model][1](own)
            loras = (small_lora(own),) if "lora" in words else ()
            if (model, loras) not in alone:
                alone = {(model, loras): of_first(launch.rank, partial(made_alone, model, loras, request))}
            processes = plan_processes(launch, **options_of(words))
            pipeline = load(model, processes, loras=loras)
            latents, frames = made(pipeline, request)
            wanted, whole = alone[model, loras]
            differences = [float((a - b).abs().max()) for a, b in zip(latents, wanted, strict=True)]
            network = pipeline.components.networks[-1]
            found[case] = {
                "difference": max(differences),
                "is_equal": all(torch.equal(a, b) for a, b in zip(latents, wanted, strict=True)),
                "frames": [frames, whole if processes.is_first else 0],
                "held": held_bytes(network.module()),
                "copies": processes.num_groups,
                "loads": network.loads,
                "plan": [pipeline.together.plan.ring, pipeline.together.plan.ulysses],
            }
            distributed.barrier()
    (folder / f"{launch.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
