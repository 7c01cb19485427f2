"""One process of several: ``latents_worker.py FOLDER [CASE ...]`` makes videos with the others, and the first alone.

For every arrangement of the processes and every model it notes the largest difference of the final latents, as it is,
in ``FOLDER/RANK.json``. The weights are the bundled ones.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from bindweave.hidden_states import write_hidden_states
from bindweave.presets import TINY_BINDWEAVE
from bindweave.request import SubjectRequest
from poze import TINY_POZE, PozeRequest
from selfforcing_unianimate import TINY_SFU
from selfforcing_unianimate.causal_request import CausalRequest
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.models.dit.layout import TokenLayout
from wan_core.pipeline import Pipeline
from wan_core.presets import get_preset
from wan_core.runtime import launched, process_group
from wan_core.runtime.mesh import ParallelPlan
from wan_core.runtime.sequence_parallel import apply_sequence_parallel
from wan_core.tasks import AnimateRequest, GenerationRequest, I2VRequest, S2VRequest, TI2VRequest
from wan_mi2v import MI2VRequest
from wan_mi2v.presets import TINY_MI2V

CPU = torch.device("cpu")
DATA = Path(__file__).parents[1] / "data"
# On four processes, too, a product has sixteen rows or more, and so has each block of queries: the CPU's library rounds
# those of fewer in another way. Some tokens of every model do not divide evenly.
SIZE: dict[str, Any] = {
    "prompt": "a red circle moves up", "seed": 1, "width": 56, "height": 48, "num_frames": 9,
    "num_inference_steps": 2, "guidance_scale": 2.0,
}  # fmt: skip
PICTURE = DATA / "red_circle.png"


def subjects(folder: Path) -> SubjectRequest:
    files = folder / "states.safetensors", folder / "none.safetensors"
    for rows, file in enumerate(files, start=5):
        states = torch.randn(1, rows, 80, generator=torch.Generator().manual_seed(rows))
        write_hidden_states(file, states, {})
    return SubjectRequest(
        images=(PICTURE, DATA / "face.png"), hidden_states=files[0], hidden_states_negative=files[1], **SIZE
    )


def speech(folder: Path) -> S2VRequest:
    size = {name: value for name, value in SIZE.items() if name != "num_frames"} | {"width": 72, "height": 72}
    return S2VRequest(image=DATA / "face.png", audio=DATA / "syllables.ogg", infer_frames=8, num_clip=2, **size)


def driven(**more: Any) -> AnimateRequest:
    """Three segments, each of which goes on from the last, with noise of one generator."""
    size = {name: value for name, value in SIZE.items() if name not in ("width", "height", "num_frames", "prompt")}
    return AnimateRequest(src_root_path=DATA / "driving", num_frames=13, **size, **more)


CASES: dict[str, tuple[Any, Callable[[Path], GenerationRequest]]] = {
    "t2v": ("tiny-t2v", lambda folder: GenerationRequest(**SIZE)),
    "moe": ("tiny-moe", lambda folder: GenerationRequest(**SIZE)),
    "i2v": ("tiny-i2v", lambda folder: I2VRequest(image=PICTURE, **SIZE)),
    "ti2v": ("tiny-ti2v", lambda folder: TI2VRequest(image=PICTURE, **SIZE)),
    "s2v": ("tiny-s2v", speech),
    "mi2v": (TINY_MI2V, lambda folder: MI2VRequest(images=(PICTURE, DATA / "face.png"), **SIZE)),
    "poze": (TINY_POZE, lambda folder: PozeRequest(image=DATA / "room.png", **SIZE | {"width": 96, "height": 80})),
    "sfu": (TINY_SFU, lambda folder: CausalRequest(**SIZE | {"width": 88, "height": 56})),
    "bindweave": (TINY_BINDWEAVE, subjects),
    "animate": ("tiny-animate", lambda folder: driven()),
    "replace": ("tiny-animate", lambda folder: driven(replace_flag=True, refert_num=5)),
}


def final_latents(pipeline: Pipeline, request: GenerationRequest) -> Tensor:
    """Those of all clips, behind each other; of the last one's frames no more than the first ones are decoded."""
    found: list[Tensor] = []
    inputs = pipeline.plan(request)
    count = pipeline.preset.task.num_clips(inputs)
    for _ in pipeline.stream(inputs, on_latents=found.append):
        if len(found) == count:
            break
    return torch.cat(found, dim=2)


def of_first(rank: int, make: Callable[[], Any]) -> Any:
    """What the first process makes by itself, in all of them."""
    made = [make() if rank == 0 else None]
    distributed.broadcast_object_list(made)
    return made[0]


def plans(world: int, num_heads: int) -> list[ParallelPlan]:
    """Every way in which all processes share the tokens."""
    return [
        ParallelPlan(ring=world // ulysses, ulysses=ulysses)
        for ulysses in range(1, world + 1)
        if world % ulysses == 0 and num_heads % ulysses == 0
    ]


def main(folder: Path, names: list[str]) -> None:
    launch = launched()
    assert launch is not None
    differences = {}
    with process_group(launch, CPU):
        meshes = {plan: plan.open(CPU) for plan in plans(launch.world, 4)}
        own = folder / str(launch.rank)
        own.mkdir()
        for name in names or list(CASES):
            preset, request = CASES[name]
            options = RuntimeOptions(device="cpu", dtype="float32", offload=False)
            pipeline = load_pipeline(get_preset(preset) if isinstance(preset, str) else preset, options=options)
            asked = request(own)
            expected = of_first(launch.rank, partial(final_latents, pipeline, asked))
            networks: list[Any] = [placed.module() for placed in pipeline.components.networks]
            for plan, mesh in meshes.items():
                assert networks[0].config.num_heads % plan.ulysses == 0
                for network in networks:
                    apply_sequence_parallel(network, mesh)
                found = final_latents(pipeline, asked)
                key = f"{name} ring {plan.ring} ulysses {plan.ulysses} of {expected.abs().max():.2f}"
                differences[key] = [float((found - expected).abs().max()), 1e-5]
            for network in networks:
                network.layout = TokenLayout()
            (folder / f"{launch.rank}.json").write_text(json.dumps(differences))
        distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
