"""The flow-matching objective: which noise levels are trained, on what, and how errors count.

A clean latent x and noise n meet at ``(1 - sigma) * x + sigma * n``; the model predicts the velocity ``n - x`` there
(Lipman et al. 2022, Liu et al. 2022; Wan 2.1 and 2.2 use the same path). Timesteps are ``1000 * sigma``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from wan_core.errors import ConfigError

NUM_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """The distribution of sigma in training.

    ``kind`` draws u uniformly or logit-normally (Esser et al. 2024, with ``mean`` and ``std``), then sigma is
    ``shift * u / (1 + (shift - 1) * u)``. ``low`` and ``high`` keep it within a range, as for one of two experts: the
    distribution is cut there, not squeezed. Raises ConfigError for values that cannot work.
    """

    kind: Literal["uniform", "logit_normal"] = "logit_normal"
    shift: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "logit_normal"):
            raise ConfigError(f"the kind of noise levels must be uniform or logit_normal, got {self.kind!r}")
        if self.shift <= 0 or self.std <= 0:
            raise ConfigError(f"shift and std must be positive, got {self.shift} and {self.std}")
        if not 0 <= self.low < self.high <= 1:
            raise ConfigError(f"noise levels must satisfy 0 <= low < high <= 1, got {self.low} and {self.high}")

    def sample(self, count: int) -> Tensor:
        """Draw ``count`` values of sigma, float32 in ``low``..``high``, from torch's generator.

        They are stratified: one in each of ``count`` equal parts of the distribution, in random order.
        """
        share = (torch.randperm(count) + torch.rand(count, dtype=torch.float64)) / count
        start, end = (self._share_below(value) for value in (self.low, self.high))
        u = self._value_at(start + (end - start) * share)
        sigma = self.shift * u / (1 + (self.shift - 1) * u)
        return sigma.clamp(self.low, self.high).float()

    def _share_below(self, sigma: float) -> float:
        u = torch.tensor(sigma / (self.shift - (self.shift - 1) * sigma), dtype=torch.float64)
        if self.kind == "uniform":
            return float(u)
        return float(torch.special.ndtr((torch.logit(u) - self.mean) / self.std))

    def _value_at(self, share: Tensor) -> Tensor:
        if self.kind == "uniform":
            return share
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(share))


def expert_levels(levels: NoiseLevels, expert: Literal["high", "low", "both"], boundary: float) -> NoiseLevels:
    """Limit noise levels to one expert's side of ``boundary`` (0..1); ``both`` leaves them."""
    if not 0 < boundary < 1:
        raise ConfigError(f"boundary must be within 0..1, got {boundary}")
    match expert:
        case "high":
            return replace(levels, low=boundary)
        case "low":
            return replace(levels, high=boundary)
        case "both":
            return levels
    raise ConfigError(f"expert must be high, low or both, got {expert!r}")


@dataclass(frozen=True)
class FlowBatch:
    """What a model is shown and what it should say.

    ``latents`` and ``target`` ``[B, C, T, H, W]``; ``timesteps`` ``[B]``, or ``[B, T]`` with clean leading frames;
    ``weights`` ``[B, T]`` counts errors per frame (0 on clean ones).
    """

    latents: Tensor
    timesteps: Tensor
    target: Tensor
    weights: Tensor

    def loss(
        self, velocity: Tensor, channel_weights: Tensor | None = None, level_weights: Tensor | None = None
    ) -> Tensor:
        """Weighted mean squared error of a predicted velocity ``[B, C, T, H, W]``, a scalar in float32.

        ``channel_weights`` ``[C]``, of mean 1, let some latent channels count more than others; ``level_weights``, of
        the shape of ``timesteps``, some noise levels: their mean over all levels, not over a batch, is 1.
        """
        error = (velocity.float() - self.target).square()
        if channel_weights is not None:
            error = error * channel_weights.view(1, -1, 1, 1, 1)
        error = error.mean(dim=(1, 3, 4))
        if level_weights is not None:
            error = error * level_weights.to(error).view(len(error), -1)
        return (error * self.weights).sum() / self.weights.sum()


def make_flow_batch(latents: Tensor, sigmas: Tensor, noise: Tensor, clean_frames: Tensor | None = None) -> FlowBatch:
    """Mix clean ``latents`` and ``noise`` ``[B, C, T, H, W]`` at ``sigmas`` ``[B]``, or ``[B, T]``, one of each frame.

    ``clean_frames`` ``[B]`` (integers below T) leaves that many leading latent frames of each sample clean, with
    timestep 0, as ti2v and mi2v are asked for. Raises ConfigError when no frame would be left to predict.
    """
    batch, frames = latents.shape[0], latents.shape[2]
    if clean_frames is None:
        level = sigmas.view(batch, 1, -1, 1, 1)
        weights = torch.ones(batch, frames, device=latents.device)
        return FlowBatch(torch.lerp(latents, noise, level), sigmas * NUM_TRAIN_TIMESTEPS, noise - latents, weights)
    if int(clean_frames.max()) >= frames:
        raise ConfigError(f"at most {frames - 1} of {frames} latent frames may be clean, got {int(clean_frames.max())}")
    is_noisy = torch.arange(frames, device=latents.device)[None] >= clean_frames[:, None]
    per_frame = torch.where(is_noisy, sigmas.view(batch, -1), 0.0)
    level = per_frame[:, None, :, None, None]
    mixed = torch.lerp(latents, noise, level)
    return FlowBatch(mixed, per_frame * NUM_TRAIN_TIMESTEPS, noise - latents, is_noisy.float())


def draw_clean_frames(count: int, frames: int, share: float) -> Tensor:
    """Numbers of clean leading frames ``[count]``: none for about ``1 - share`` of them, else 1..``frames - 1``.

    One frame is as likely as all larger numbers together: a single first picture is the usual request.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"the share of samples with clean frames must be in 0..1, got {share}")
    several = torch.randint(1, max(2, frames), (count,))
    clean = torch.where(torch.rand(count) < 0.5, torch.ones_like(several), several)
    return torch.where(torch.rand(count) < share, clean, torch.zeros_like(clean)).clamp(max=frames - 1)
