"""Stage "vae": train the tiny family's video autoencoder on the tiny world.

The recipe, and what it is for:
- Errors inside the (dilated) figure and outside count alike, or small figures lose their colour; edges get a gradient
  loss; latents get a weak pull to a unit Gaussian and start with little noise.
- Clip lengths are mixed from the first step.
- For the first 40 % of the steps latents are also pulled towards the whitened principal components of 4x8x8 pixel
  blocks: a good linear code from the start saves most of the time in which autoencoders only learn the background.
- Kernels are trained by Muon, the rest by AdamW.
At the end the latents' statistics are folded into the two 1x1x1 convolutions beside them, so that latents have mean 0
and standard deviation 1 per channel without any constants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.tiny.world import Video, training_clip
from wan_core.models import VideoVAE
from wan_core.training import Muon, trained_tensors

VAE_STEPS = 4000
LENGTHS = (1, 5, 9, 17)
SHARES = (0.25, 0.2, 0.3, 0.25)
BATCHES = (16, 4, 2, 1)
_GUIDED_SHARE = 0.4


def to_pixels(videos: list[Video]) -> Tensor:
    """Stack uint8 videos ``[F, H, W, 3]`` to ``[B, 3, F, H, W]`` in [-1, 1]."""
    return torch.from_numpy(np.stack(videos)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_video(pixels: Tensor) -> Video:
    """Turn one clip ``[3, F, H, W]`` in [-1, 1] into uint8 ``[F, H, W, 3]``."""
    video: Video = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
    return video


def pixel_blocks(pixels: Tensor) -> Tensor:
    """Cut ``[B, 3, 1 + 4n, H, W]`` into the blocks that one latent stands for: ``[B, 1 + n, H/8, W/8, 768]``.

    The first frame is repeated to a block of four.
    """
    batch, _, _, height, width = pixels.shape
    whole = torch.cat([pixels[:, :, :1].expand(-1, -1, 4, -1, -1), pixels[:, :, 1:]], dim=2)
    cut = whole.view(batch, 3, -1, 4, height // 8, 8, width // 8, 8).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return cut.reshape(batch, -1, height // 8, width // 8, 768)


@dataclass(frozen=True)
class LinearCode:
    """Whitened principal components of pixel blocks: ``mean`` ``[768]``, ``basis`` ``[768, channels]``."""

    mean: Tensor
    basis: Tensor

    @classmethod
    def fit(cls, channels: int, clips: int = 300) -> LinearCode:
        """Fit the code to the first training clips."""
        pixels = [to_pixels([training_clip(seed).video]) for seed in range(clips)]
        blocks = torch.cat([pixel_blocks(clip).reshape(-1, 768) for clip in pixels])
        values, vectors = torch.linalg.eigh(torch.cov(blocks.T))
        basis = vectors.flip(1)[:, :channels] / values.flip(0)[:channels].sqrt()
        return cls(blocks.mean(0), basis)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Code ``[B, channels, T, H/8, W/8]`` of a video."""
        return ((pixel_blocks(pixels) - self.mean) @ self.basis).permute(0, 4, 1, 2, 3)


def draw_batch(step: int) -> Tensor:
    """The clips of a training step: windows of one of the LENGTHS, in about equal numbers of frames."""
    rng = np.random.default_rng([4, step])
    kind = rng.choice(len(LENGTHS), p=SHARES)
    videos = []
    for _ in range(BATCHES[kind]):
        video = training_clip(int(rng.integers(1 << 30))).video
        start = int(rng.integers(0, 18 - LENGTHS[kind]))
        videos.append(video[start : start + LENGTHS[kind]])
    return to_pixels(videos)


def reconstruction_loss(pixels: Tensor, decoded: Tensor) -> Tensor:
    """L1 + MSE with figure and background weighted alike, plus 0.2 times the L1 of horizontal and vertical slopes."""
    background = pixels[:, :, :1, :1, :1]
    figure = ((pixels - background).abs().amax(1, keepdim=True) > 0.1).float()
    figure = functional.max_pool3d(figure, (1, 3, 3), 1, (0, 1, 1))
    weight = figure * (0.5 / figure.mean().clamp_min(0.02)) + (1 - figure) * (0.5 / (1 - figure).mean().clamp_min(0.02))
    error = decoded - pixels
    slopes = error.diff(dim=3).abs().mean() + error.diff(dim=4).abs().mean()
    return (weight * (error.abs() + error.square())).mean() + 0.2 * slopes


def is_kernel(name: str, weight: Tensor) -> bool:
    """Whether a weight is a convolution kernel that mixes channels."""
    return weight.ndim >= 4 and weight.shape[0] > 1 and weight.shape[1] > 1


def split_optimizers(
    module: nn.Module, takes: Callable[[str, Tensor], bool], muon_rate: float, rate: float
) -> list[torch.optim.Optimizer]:
    """Muon for the trained weights that ``takes`` (name, weight) picks, AdamW for the other trained ones."""
    chosen: list[Tensor] = []
    rest: list[Tensor] = []
    for name, weight in trained_tensors(module).items():
        (chosen if takes(name, weight) else rest).append(weight)
    return [Muon(chosen, lr=muon_rate), torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)]


class VAEStage:
    """The autoencoder, its optimizers and its loss, for `wan_core.training.train`."""

    def __init__(self, vae: VideoVAE, steps: int = VAE_STEPS) -> None:
        vae.reset_parameters(0)
        with torch.no_grad():
            _bias(vae.conv1)[vae.config.z_dim :] -= 5.0
        self.vae = vae
        self.steps = steps
        self.code = LinearCode.fit(vae.config.z_dim)
        self.optimizers = split_optimizers(vae, is_kernel, 0.02, 2e-3)

    def loss(self, step: int, _: int) -> Tensor:
        """The loss of one step; data by step, noise from torch's generator."""
        pixels = draw_batch(step)
        with torch.autocast("cpu", torch.bfloat16):
            mean, log_variance = self.vae.encode_moments(pixels, latents_per_chunk=None).chunk(2, dim=1)
            log_variance = log_variance.clamp(-20, 5)
            latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
            decoded = self.vae.decode(latents, clamp=False, latents_per_chunk=None)
        loss = reconstruction_loss(pixels, decoded)
        loss = loss + 0.5e-4 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        guidance = 1 - step / (_GUIDED_SHARE * self.steps)
        if guidance > 0:
            loss = loss + guidance * functional.mse_loss(mean, self.code(pixels))
        return loss


@torch.no_grad()
def fold_statistics(vae: VideoVAE, clips: int = 200) -> None:
    """Scale and shift the 1x1x1 convolutions so that latents of training clips have mean 0 and deviation 1 per channel.

    The moments' log-variances are adjusted with the means; decoding undoes both exactly, up to rounding.
    """
    encoded = [vae.encode(to_pixels([training_clip(seed).video]), latents_per_chunk=None) for seed in range(clips)]
    latents = torch.cat(encoded).transpose(0, 1).flatten(1)
    mean, std = latents.mean(1), latents.std(1)
    z_dim = vae.config.z_dim
    encoder_weight, encoder_bias = vae.conv1.weight, _bias(vae.conv1)
    encoder_weight[:z_dim] /= std.view(-1, 1, 1, 1, 1)
    encoder_bias[:z_dim] = (encoder_bias[:z_dim] - mean) / std
    encoder_bias[z_dim:] -= 2 * std.log()
    decoder_weight = vae.conv2.weight
    _bias(vae.conv2).add_(decoder_weight.flatten(1) @ mean)
    decoder_weight *= std.view(1, -1, 1, 1, 1)


def reconstructor(vae: VideoVAE) -> Callable[[Video], Video]:
    """A function from a uint8 clip to its reconstruction."""

    def reconstruct(video: Video) -> Video:
        with torch.inference_mode():
            latents = vae.encode(to_pixels([video]), latents_per_chunk=None)
            return to_video(vae.decode(latents, latents_per_chunk=None)[0])

    return reconstruct


def _bias(module: nn.Module) -> Tensor:
    bias = module.bias
    if not isinstance(bias, Tensor):
        raise TypeError("this convolution has no bias")
    return bias
