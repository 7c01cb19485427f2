"""What a run looks like on the way: the held-out loss, and a contact sheet of the validation prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wan_core.checkpoints import Part
from wan_core.media import contact_sheet, write_image
from wan_core.models import WanDiT
from wan_core.pipeline import Pipeline
from wan_core.runtime import Between, Placed
from wan_core.tasks import Experts, GenerationRequest
from wan_core.training.plan import TrainedNetworks
from wan_core.training.ranks import Ranks
from wan_core.training.stage import Stage

_COLUMNS = 6


def with_networks(pipeline: Pipeline, networks: TrainedNetworks, part: Part) -> Pipeline:
    """The pipeline with the trained networks in their places; of two experts the other one stays."""
    components = pipeline.components
    placed: Placed[WanDiT] = Placed(lambda device: networks.dit, components.device, between=Between.KEEP)
    dit: Placed[WanDiT] | Experts[Placed[WanDiT]] = placed
    if isinstance(components.dit, Experts):
        dit = replace(components.dit, **{part.expert or "": placed})
    return Pipeline(
        replace(pipeline.preset, task=pipeline.preset.task.using(networks.beside)),
        components.with_part("dit", dit),
        latent_spec=pipeline.latent_spec,
        options=pipeline.options,
    )


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Called by the loop with the step, while averaged weights, if any, are in place; returns what is logged.

    ``pipeline`` holds the trained networks; ``requests`` are sampled with it, their sheet goes into ``folder``: a row
    for each, six frames from first to last.
    """

    stage: Stage
    pipeline: Pipeline
    requests: Sequence[GenerationRequest]
    folder: Path
    ranks: Ranks

    def __call__(self, step: int) -> dict[str, Any]:
        """``validation_loss`` where examples are held out, ``sheet`` where there are prompts. Raises MediaError."""
        found: dict[str, Any] = {}
        loss = self.stage.held_out()
        if loss is not None:
            found["validation_loss"] = loss
        if self.requests:
            found["sheet"] = str(self._sheet(step))
        return found

    @torch.no_grad()
    def _sheet(self, step: int) -> Path:
        frames: list[Tensor] = []
        for request in self.requests:
            inputs = self.pipeline.plan(request)
            video = torch.cat([chunk.float().cpu() for chunk in self.pipeline.stream(inputs)], dim=1)
            count = video.shape[1]
            frames += [video[:, round(i * (count - 1) / (_COLUMNS - 1))] for i in range(_COLUMNS)]
        path = self.folder / f"step-{step:08d}.png"
        if self.ranks.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_image(contact_sheet(frames, _COLUMNS), path)
        return path
