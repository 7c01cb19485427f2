"""Finetuning: everything is checked and planned first, then models are loaded, then the core's loop runs a stage.

A stage turns a step's number into a loss: :class:`RolloutStage` through the whole sampling chain against a wanted video
or points, :class:`FlowStage` by flow matching on encoded examples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pi3 import Pi3
from poze.network import GuidedNetwork
from poze.objectives import Supervision, flow_loss, rollout
from wan_core import ConfigError
from wan_core.models import DiTInputs, VideoVAE
from wan_core.runtime import prepare_model
from wan_core.sampling import Denoiser, make_solver
from wan_core.tasks import Conditioning, SamplingSettings
from wan_core.training import (
    AveragedWeights,
    CheckpointFolder,
    LoopSettings,
    LoRASettings,
    NoiseLevels,
    Ranks,
    ShuffledBatches,
    TrainingResult,
    train,
    trained_tensors,
)

OBJECTIVES = ("rollout", "flow")


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How to finetune; the defaults are the seed's. ``save_every`` 0 saves weights only at the end.

    ``amp`` computes the transformer in bfloat16. ``average`` is the decay of averaged weights, None for none. For flow
    matching ``noise_shift`` moves noise levels up and ``empty_share`` of the captions are left empty. Raises
    ConfigError for values that cannot work.
    """

    objective: str = "rollout"
    trained: frozenset[str] = frozenset({"wan", "adapter"})
    steps: int = 10
    lr: float = 1e-5
    weight_decay: float = 0.0
    amp: bool = True
    max_grad_norm: float | None = None
    save_every: int = 0
    log_every: int = 1
    seed: int = 0
    average: float | None = None
    batch_size: int = 1
    noise_shift: float = 5.0
    empty_share: float = 0.1
    lora: LoRASettings = field(default_factory=LoRASettings)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"--objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        counts = {"--steps": self.steps, "--log-every": self.log_every, "--batch-size": self.batch_size}
        for name, count in counts.items():
            if count < 1:
                raise ConfigError(f"{name} must be at least 1, got {count}")
        if self.save_every < 0 or self.seed < 0:
            raise ConfigError(f"--save-every and --seed must not be negative, got {self.save_every} and {self.seed}")
        if not 0 < self.lr < 1:
            raise ConfigError(f"--lr must be above 0 and below 1, got {self.lr:g}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"--weight-decay must be a number of at least 0, got {self.weight_decay:g}")
        if self.max_grad_norm is not None and not 0 < self.max_grad_norm < float("inf"):
            raise ConfigError(f"--max-grad-norm must be above 0, got {self.max_grad_norm:g}; leave it out for none")
        if not 0 <= self.empty_share < 1:
            raise ConfigError(f"--empty-share must be in 0..1 (1 excluded), got {self.empty_share:g}")
        NoiseLevels(shift=self.noise_shift)

    def loop(self) -> LoopSettings:
        """The core loop's settings: a constant rate from the first step, as the seed has it."""
        return LoopSettings(
            steps=self.steps,
            warmup_steps=0,
            schedule="constant",
            clip_norm=self.max_grad_norm,
            seed=self.seed,
            save_seconds=600.0,
            log_steps=self.log_every,
            validate_steps=self.save_every or None,
        )

    def recipe(self) -> dict[str, Any]:
        """What a run must share to go on, as plain values."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("steps", "save_every", "log_every")}
        return kept | {"trained": sorted(self.trained), "lora": asdict(self.lora) if "lora" in self.trained else None}


class Stage(Protocol):
    """What turns a step into a loss."""

    parts: dict[str, float]

    def loss(self, step: int, index: int) -> Tensor:
        """The loss of a step; ``parts`` tells afterwards what it was made of."""


@dataclass
class RolloutStage:
    """One picture and prompt through the whole sampling chain, decoded and compared; new noise at every step.

    ``tokens`` [1, h * w, C] and ``grid`` are Pi3's of the picture; None gives no guidance.
    """

    network: GuidedNetwork
    vae: VideoVAE
    pi3: Pi3
    conditioning: Conditioning
    sampling: SamplingSettings
    supervision: Supervision
    tokens: Tensor | None
    grid: tuple[int, int]
    amp: bool = True
    parts: dict[str, float] = field(default_factory=dict)

    def loss(self, step: int, index: int) -> Tensor:
        """The weighted sum of the video's and the points' errors."""
        device = self.network.dit.device
        noise = torch.randn(self.conditioning.latent_shape).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.amp):
            latents = self.latents(noise)
        # Values are not cut at -1 and 1 here: what is cut has no gradient.
        video: Tensor = checkpoint(self._decode, latents.float(), use_reentrant=False)[0]
        losses = self.supervision.losses(video, self.pi3)
        self.parts = {name: value.item() for name, value in losses.items() if name != "total"}
        return losses["total"]

    def latents(self, noise: Tensor) -> Tensor:
        """Denoised latents [1, C, T, h, w] with gradients, guided in both branches as in `poze-infer`."""
        sampling, conditioning = self.sampling, self.conditioning
        positive, negative = conditioning.positive, conditioning.negative
        if self.tokens is not None:
            positive = self.network.guided(positive, self.tokens, self.grid)
            negative = None if negative is None else self.network.guided(negative, self.tokens, self.grid)
        denoiser = Denoiser(
            self.network.dit,
            positive,
            negative,
            float(sampling.guidance_scale),  # type: ignore[arg-type]
            anchors=conditioning.anchors,
        )
        solver = make_solver(sampling.solver, sampling.num_inference_steps, flow_shift=sampling.flow_shift)
        return rollout(denoiser, solver, noise, anchors=conditioning.anchors)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents, clamp=False)


@dataclass
class FlowStage:
    """Flow matching on encoded examples: ``latents`` [C, T, h, w], ``context`` [L, D], ``empty`` [1.., D],
    ``tokens`` [h * w, C'] and ``grid`` [2] of each; the first latent frame stays clean."""

    network: GuidedNetwork
    examples: Sequence[Mapping[str, Tensor]]
    batches: ShuffledBatches
    settings: FinetuneSettings
    is_guided: bool = True
    rank: int = 0
    world: int = 1
    parts: dict[str, float] = field(default_factory=dict)

    def loss(self, step: int, index: int) -> Tensor:
        """The loss of the step's examples."""
        device = self.network.dit.device
        rows = [self.examples[number] for number in self.batches[step * self.world + self.rank]]
        latents = torch.stack([row["latents"].float() for row in rows]).to(device)
        empty = torch.rand(len(rows)) < self.settings.empty_share
        contexts = [row["empty" if drop else "context"].float() for row, drop in zip(rows, empty, strict=True)]
        context = nn.utils.rnn.pad_sequence(contexts, batch_first=True).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.amp):
            inputs = DiTInputs(context=context)
            if self.is_guided:
                parts = [inputs_of(inputs, number) for number in range(len(rows))]
                inputs = DiTInputs.batch([self._guided(part, row) for part, row in zip(parts, rows, strict=True)])
            return flow_loss(self.network.dit, latents, inputs, NoiseLevels(shift=self.settings.noise_shift))

    def _guided(self, inputs: DiTInputs, row: Mapping[str, Tensor]) -> DiTInputs:
        rows, columns = row["grid"].tolist()
        return self.network.guided(inputs, row["tokens"][None].to(inputs.context.device), (rows, columns))


def inputs_of(inputs: DiTInputs, number: int) -> DiTInputs:
    """The text of one sample of a batch."""
    return DiTInputs(context=inputs.context[number : number + 1])


def run_finetuning(
    network: GuidedNetwork,
    stage: Stage,
    settings: FinetuneSettings,
    folder: Path,
    *,
    recipe: Mapping[str, Any] | None = None,
    say: Callable[[str], None],
    ranks: Ranks | None = None,
    complete: Callable[[Path], Path] | None = None,
) -> TrainingResult:
    """Train ``network`` in ``folder``, going on from an earlier run there, and write weights as they are due.

    ``folder`` gets ``training/`` (to go on from, bit for bit), ``log.jsonl`` and the weights that
    `GuidedNetwork.save` names, for which ``complete`` is. With several ``ranks`` all must call it. Raises what
    `wan_core.training.train` raises.
    """
    ranks = ranks or Ranks()
    prepare_model(network.dit, inference=False, shard=ranks.shard, recompute=True)
    ranks.shard(network.adapter)
    optimizer = torch.optim.AdamW(
        list(trained_tensors(network).values()), lr=settings.lr, weight_decay=settings.weight_decay
    )
    average = None if settings.average is None else AveragedWeights(network, settings.average)
    metadata = {"recipe": json.dumps({**settings.recipe(), **(recipe or {})}, default=str)}

    def save(step: int) -> None:
        for path in network.save(folder, step, metadata, average=average, ranks=ranks, complete=complete):
            if ranks.is_first:
                say(str(path))

    def validate(step: int) -> dict[str, Any]:
        if settings.save_every and 0 < step < settings.steps:
            save(step)
        return {}

    def report(line: dict[str, Any]) -> None:
        parts = "".join(f", {name} {value:.5g}" for name, value in stage.parts.items())
        say(f"step {line['step']}: loss {line['loss']:.5g}{parts} ({line['seconds_per_step']:.2f} s a step)")

    result = train(
        network,
        [optimizer],
        stage.loss,
        settings.loop(),
        checkpoints=CheckpointFolder(folder / "training"),
        average=average,
        recipe={**settings.recipe(), **(recipe or {}), "world": ranks.world},
        log_path=folder / "log.jsonl",
        report=report,
        validate=validate,
        rank=ranks.rank,
        reduce=ranks.reduce,
    )
    if not result.was_interrupted:
        save(result.step)
    return result


def known_seed(folder: Path) -> int | None:
    """The seed of the run that is in ``folder``, or None."""
    checkpoints = CheckpointFolder(folder / "training")
    for step in reversed(checkpoints.steps()):
        try:
            saved = json.loads((checkpoints.path(step) / "state.json").read_text())
            return int(saved["settings"]["loop"]["seed"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # what is damaged is reported when it is restored
    return None
