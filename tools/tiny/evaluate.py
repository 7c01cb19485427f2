"""Evaluate the bundled tiny models by `tools.tiny.scores`: ``python -m tools.tiny.evaluate --help``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tools.tiny import dit_stage, vae_stage, weights
from tools.tiny.family import SAMPLING, load_frozen
from tools.tiny.scores import PROMPTS, held_back_clips, score_continuations, score_vae, score_videos, write_sheet
from tools.tiny.world import Clip
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.tasks import Experts


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("world", "vae", "t2v", "ti2v", "i2v", "moe", "table"))
    parser.add_argument("--count", type=int, default=PROMPTS, help="held-back clips")
    parser.add_argument("--weights", type=Path, help="text-to-video weights other than the bundled ones")
    parser.add_argument("--solver", default=SAMPLING.solver)
    parser.add_argument("--steps", type=int, default=SAMPLING.num_inference_steps)
    parser.add_argument("--guidance", type=float, default=SAMPLING.guidance_scale)
    parser.add_argument("--shift", type=float, default=SAMPLING.flow_shift)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first 24 clips here")
    return parser.parse_args()


def evaluate_models(arguments: argparse.Namespace, clips: list[Clip]) -> Iterable[dict[str, Any]]:
    """Yield the scores of the bundled models, one dict for each setting."""
    torch.set_num_threads(1)
    vae, encoder = load_frozen()
    if arguments.what == "vae":
        yield score_vae(vae_stage.reconstructor(vae), clips)
        return
    dit, low_noise = load_networks(arguments.what)
    if arguments.weights is not None:
        dit.load_state_dict(weights.read_tensors(arguments.weights))
    settings = [(arguments.solver, arguments.steps, arguments.guidance)]
    if arguments.what == "table":
        settings = [
            (solver, steps, arguments.guidance) for solver in ("euler", "unipc", "dpm++") for steps in (4, 8, 20, 50)
        ]
        settings += [("unipc", 20, guidance) for guidance in (1.0, 2.0, 4.0, 6.0)]
    for solver, steps, guidance in settings:
        videos = dit_stage.generate(
            *(dit, vae, encoder, clips),
            replace(
                SAMPLING,
                solver=solver,
                num_inference_steps=steps,
                guidance_scale=guidance,
                flow_shift=arguments.shift,
            ),
            from_first_frame=arguments.what == "ti2v",
            low_noise=low_noise,
        )
        score = score_continuations if arguments.what in ("ti2v", "i2v") else score_videos
        yield {"solver": solver, "steps": steps, "guidance": guidance} | score(videos, clips)
        if arguments.sheet is not None:
            write_sheet(videos[:24], arguments.sheet)


def load_networks(what: str) -> tuple[Any, Any]:
    """The bundled network for a kind of evaluation, and the one that takes over at low noise, if there is one."""
    name = {"table": "tiny-t2v"}.get(what, f"tiny-{what}")
    dit: Any = load_pipeline(name, options=RuntimeOptions(device="cpu", dtype="float32")).components.dit
    return (dit.high.module(), dit.low.module()) if isinstance(dit, Experts) else (dit.module(), None)


def main() -> None:
    """Print scores as JSON lines."""
    arguments = parse_arguments()
    clips = held_back_clips(arguments.count)
    if arguments.what == "world":
        reports: Iterable[dict[str, Any]] = [score_videos([clip.video for clip in clips], clips)]
    else:
        reports = evaluate_models(arguments, clips)
    for report in reports:
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
