"""One process of several: ``decode_worker.py FOLDER CASE ...`` makes videos with the others, decoding tile by tile.

For every case it notes in ``FOLDER/RANK.json`` how many frames came here, how often it ran the decoder, and how often a
process does that decodes the same latents alone; and on the first process whether the frames are the same bits. Cases
are those of ``runs_worker.py``; ``:small`` behind one leaves the video so small that one tile holds it.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from latents_worker import CASES, DATA
from PIL import Image
from runs_worker import CPU, load, options_of
from torch import Tensor, distributed

from wan_core.models import VideoVAE
from wan_core.pipeline import Pipeline
from wan_core.runtime import Processes, launched, plan_processes, process_group
from wan_core.tasks import GenerationRequest

WIDTH = 296  # two tiles side by side


class Decoder:
    """Counts how often the decoder runs in this process."""

    def __init__(self) -> None:
        self.runs = 0
        before = VideoVAE._decode_features

        def counted(vae: VideoVAE, latents: Tensor, cache: Any) -> Tensor:
            self.runs += 1
            return before(vae, latents, cache)

        VideoVAE._decode_features = counted  # type: ignore[method-assign]

    def of(self, frames: Iterator[Tensor]) -> tuple[Tensor | None, int]:
        """The frames, if any came, and the runs that they took here."""
        before = self.runs
        chunks = list(frames)
        return torch.cat(chunks, dim=1) if chunks else None, self.runs - before


def wide(model: str, folder: Path) -> dict[str, Any]:
    """The settings of a video of several tiles; that of a speech has the shape of its picture."""
    if model != "s2v":
        return {"width": WIDTH}
    path = folder / "wide.png"
    Image.open(DATA / "face.png").resize((320, 32)).save(path)
    return {"image": path, "width": 320, "height": 32}


def again(latents: list[Tensor]) -> Callable[..., Tensor]:
    """Gives the latents of one clip after the other, in place of denoising."""
    clips = iter(latents)
    return lambda *_, **__: next(clips)


def stream(pipeline: Pipeline, request: GenerationRequest, **options: Any) -> Iterator[Tensor]:
    return pipeline.stream(pipeline.plan(request), **options)


def main() -> None:
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    launch = launched()
    assert launch is not None
    own = folder / str(launch.rank)
    own.mkdir()
    found: dict[str, Any] = {}
    decoder = Decoder()
    with process_group(launch, CPU):
        for case in cases:
            model, words, *small = case.split(":")
            request = replace(CASES[model][1](own), num_inference_steps=1, **({} if small else wide(model, own)))
            pipeline = load(model, plan_processes(launch, **options_of(words)), vae_tiling="on")
            latents: list[Tensor] = []
            frames, runs = decoder.of(stream(pipeline, request, on_latents=latents.append))
            found[case] = {"frames": 0 if frames is None else frames.shape[1], "runs": runs}
            found[case]["loads"] = pipeline.components.vae.loads
            alone = load(model, Processes(), vae_tiling="on")
            alone.denoise = again(latents)  # type: ignore[method-assign]
            wanted, all_runs = decoder.of(stream(alone, request))
            assert wanted is not None
            found[case] |= {"wanted_frames": wanted.shape[1], "all_runs": all_runs}
            found[case]["is_equal"] = frames is None or torch.equal(frames, wanted)
            distributed.barrier()
    (folder / f"{launch.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
