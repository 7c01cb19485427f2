"""The seed's objective: a whole sampling chain ("rollout"), decoded, against a wanted video and wanted points.

Its memory is kept flat by computing every denoiser call again in the backward pass. The other objective, flow matching,
is the core's own under the conditions of poze's task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pi3 import Pi3
from pi3.checkpoints import freeze
from pi3.evaluation import align_points
from pi3.images import input_size
from poze.guidance import pooled_tokens
from poze.task import GuidedImageToVideo, see
from wan_core import ConfigError, RequestError
from wan_core.files import hash_file
from wan_core.media import load_image
from wan_core.models import VideoVAE
from wan_core.sampling import Anchors, Denoiser, Solver, make_solver, sample
from wan_core.tasks import Clip, Conditioning, SamplingSettings, Task, TextImageToVideo, TI2VInputs, TI2VRequest
from wan_core.training import Ranks, Stage, TrainedNetworks, TrainingPlan, one_loss

Denoise = Callable[[Tensor, Tensor], Tensor]


def rollout(
    denoiser: Denoise, solver: Solver, noise: Tensor, *, anchors: Anchors | None = None, keep_activations: bool = False
) -> Tensor:
    """Denoised latents [B, C, T, H, W] with gradients through every solver step and both guidance branches.

    ``denoiser`` and ``solver`` as for `wan_core.sampling.sample`. What the network computed at a step is forgotten and
    computed again in the backward pass, so only latents are kept per step; ``keep_activations`` keeps all instead.
    """

    def again(latents: Tensor, timestep: Tensor) -> Tensor:
        velocity: Tensor = checkpoint(denoiser, latents, timestep, use_reentrant=False)
        return velocity

    return sample(denoiser if keep_activations else again, solver, noise, anchors=anchors)


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """What a generated video should be.

    ``video`` [3, F, H, W] in [-1, 1]; ``points`` [1, N, h, w, 3] in the frame that Pi3 gives, or in any frame with
    ``align``: N views are N evenly spaced frames, from the first to the last. Raises RequestError when there is
    neither, for shapes or values that cannot be, and for points of one view alone.
    """

    video: Tensor | None = None
    points: Tensor | None = None
    video_weight: float = 1.0
    point_weight: float = 1.0
    align: bool = False

    def __post_init__(self) -> None:
        if self.video is None and self.points is None:
            raise RequestError("finetuning needs something to learn from: give --gt-video, --gt-points or both")
        for name, weight in (("video", self.video_weight), ("point", self.point_weight)):
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"--{name}-weight must be a number of at least 0, got {weight}")
        if self.video is not None:
            _check_video(self.video)
        if self.points is not None:
            _check_points(self.points)
        if not self.video_counts and not self.points_count:
            raise RequestError(self._reason())

    @property
    def video_counts(self) -> bool:
        """Whether the video adds to the gradient."""
        return self.video is not None and self.video_weight > 0

    @property
    def points_count(self) -> bool:
        """Whether the points add to the gradient: one view is the given picture, which no weight changes."""
        return self.points is not None and self.point_weight > 0 and self.points.shape[1] > 1

    def _reason(self) -> str:
        if self.points is not None and self.point_weight > 0:
            return (
                "points of one view are those of the given first picture, which no trained weight changes, so they "
                "cannot train anything; give points of two views or more, or --gt-video"
            )
        return "every supervision signal has weight 0; raise --video-weight or --point-weight"

    def losses(self, video: Tensor, pi3: Pi3 | None) -> dict[str, Tensor]:
        """Errors of a generated video [3, F, H, W]: ``loss``, the weighted sum, which has a gradient, and its parts.

        ``video`` is the mean squared error, ``points`` the mean absolute one of Pi3's points of the frames; Pi3 runs
        with gradients, its own weights stay as they are.
        """
        parts: dict[str, Tensor] = {}
        if self.video is not None:
            parts["video"] = video_loss(video, self.video.to(video.device))
        if self.points is not None:
            with torch.set_grad_enabled(self.points_count and torch.is_grad_enabled()):
                parts["points"] = self._point_loss(video, pi3)
        weights = {"video": self.video_weight, "points": self.point_weight}
        total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        return {"loss": total, **parts}

    def _point_loss(self, video: Tensor, pi3: Pi3 | None) -> Tensor:
        if self.points is None or pi3 is None:
            raise ValueError("there are no points to compare with, or no Pi3 to find them")
        views = self.points.shape[1]
        frames = torch.linspace(0, video.shape[1] - 1, views).round().long()
        size = (self.points.shape[3], self.points.shape[2])
        found = pi3(pi3_views(video[:, frames.to(video.device)], size)).points
        return point_loss(found, self.points.to(found), align=self.align)


def video_loss(video: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of videos [3, F, H, W], as the seed has it. Raises RequestError for shapes that differ."""
    if video.shape != target.shape:
        raise RequestError(f"the wanted video is {list(target.shape)}, the generated one {list(video.shape)}")
    return functional.mse_loss(video.float(), target.float())


def point_loss(points: Tensor, target: Tensor, *, align: bool = False) -> Tensor:
    """Mean absolute error of points [1, N, H, W, 3], as the seed has it.

    ``align`` first moves the points by the one similarity that fits best, which counts as a constant. Raises
    RequestError for shapes that differ.
    """
    if points.shape != target.shape:
        raise RequestError(f"the wanted points are {list(target.shape)}, Pi3's {list(points.shape)}")
    if align:
        found = align_points(points.detach().reshape(-1, 3).cpu(), target.reshape(-1, 3).cpu())
        scale, rotation, shift = (part.to(points) for part in (found.scale, found.rotation, found.translation))
        points = scale * points @ rotation.mT + shift
    return functional.l1_loss(points.float(), target.float())


def pi3_views(video: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames [3, N, H, W] in [-1, 1] as Pi3 takes them, with gradients: [1, N, 3, h, w] in [0, 1]; size (w, h)."""
    frames = video.float().transpose(0, 1).clamp(-1, 1) / 2 + 0.5
    resized = functional.interpolate(frames, size=size[::-1], mode="bilinear", antialias=True, align_corners=False)
    return resized[None]


def check_point_size(points: Tensor, width: int, height: int, pixel_limit: int) -> None:
    """Raise RequestError when points have another size than Pi3 gives for videos of ``width`` x ``height`` pixels."""
    wanted, found = input_size(width, height, pixel_limit=pixel_limit), (points.shape[3], points.shape[2])
    if found != wanted:
        raise RequestError(
            f"--gt-points have {found[0]}x{found[1]} points a view; for a video of {width}x{height} pixels Pi3 gives "
            f"{wanted[0]}x{wanted[1]}"
        )


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Finetuning on one image and prompt through the whole sampling chain; an `Objective` of the core's runs."""

    inputs: TI2VInputs[TI2VRequest]
    supervision: Supervision
    files: tuple[Path, ...] = ()

    def recipe(self) -> Mapping[str, Any]:
        """The request, the weights of the errors, and SHA-256 of the files that were given."""
        found = self.supervision
        weights = [found.video_weight, found.point_weight, found.align]
        return {
            "request": self.inputs.record(),
            "weights": weights,
            "files": [hash_file(path)[:16] for path in self.files],
        }

    def held_parts(self) -> Mapping[str, bool]:
        """The VAE, and Pi3 where points are compared; neither is trained."""
        return {"vae": False} if self.supervision.points is None else {"vae": False, "pi3": False}

    def stage(self, plan: TrainingPlan, networks: TrainedNetworks, ranks: Ranks) -> Stage:
        """The chain's errors as the loss of all networks."""
        components = plan.pipeline.components
        batch: Mapping[str, Tensor] = {}
        with torch.no_grad():
            if isinstance(plan.preset.task, GuidedImageToVideo):
                latents = see(load_image(self.inputs.request.image or ""), components).latents
                batch = {"tokens": pooled_tokens(latents), "grid": torch.tensor([latents.grid])}
            conditioning = TextImageToVideo().condition(self.inputs, components, Clip())
        loss = RolloutLoss(
            networks=networks,
            task=plan.preset.task,
            vae=components.vae.trainable(torch.float32).requires_grad_(False),
            pi3=freeze(components.part("pi3").trainable(torch.float32))
            if self.supervision.points is not None
            else None,
            conditioning=conditioning,
            sampling=self.inputs.settings,
            supervision=self.supervision,
            batch=batch,
        )
        return one_loss(plan, networks, loss)


@dataclass(frozen=True, kw_only=True)
class RolloutLoss:
    """The errors of one image's video, sampled with new noise at every step, decoded and compared.

    ``batch`` is what the task's `training_inputs` needs of the image.
    """

    networks: TrainedNetworks
    task: Task[Any, Any]
    vae: VideoVAE
    pi3: Pi3 | None
    conditioning: Conditioning
    sampling: SamplingSettings
    supervision: Supervision
    batch: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self, step: int, index: int) -> dict[str, Tensor]:
        """``loss``, the weighted sum, and the errors ``video`` and ``points`` where they are measured."""
        device = self.networks.dit.device
        noise = torch.randn(self.conditioning.latent_shape).to(device)
        latents = self.latents(noise)
        # Values are not cut at -1 and 1 here: what is cut has no gradient.
        video: Tensor = checkpoint(self._decode, latents.float(), use_reentrant=False)[0]
        return self.supervision.losses(video, self.pi3)

    def latents(self, noise: Tensor) -> Tensor:
        """Denoised latents [1, C, T, h, w] with gradients, guided in both branches as in `poze-infer`."""
        sampling, conditioning, beside = self.sampling, self.conditioning, self.networks.beside
        make, negative = self.task.training_inputs, conditioning.negative
        denoiser = Denoiser(
            self.networks.dit,
            make(self.batch, conditioning.positive.context, beside),
            None if negative is None else make(self.batch, negative.context, beside),
            float(sampling.guidance_scale),  # type: ignore[arg-type]
            anchors=conditioning.anchors,
        )
        solver = make_solver(sampling.solver, sampling.num_inference_steps, flow_shift=sampling.flow_shift)
        return rollout(denoiser, solver, noise, anchors=conditioning.anchors)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents, clamp=False)


def _check_video(video: Tensor) -> None:
    if video.ndim != 4 or video.shape[0] != 3:
        raise RequestError(f"--gt-video must be [3, frames, height, width], got {list(video.shape)}")
    if not video.is_floating_point() or not bool(torch.isfinite(video).all()) or float(video.abs().max()) > 1.001:
        raise RequestError("--gt-video must hold finite floats from -1 to 1")


def _check_points(points: Tensor) -> None:
    if points.ndim != 5 or points.shape[0] != 1 or points.shape[-1] != 3 or 0 in points.shape:
        raise RequestError(f"--gt-points must be [1, views, height, width, 3], got {list(points.shape)}")
    if not points.is_floating_point() or not bool(torch.isfinite(points).all()):
        raise RequestError("--gt-points must hold finite floats")
