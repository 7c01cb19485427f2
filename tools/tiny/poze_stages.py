"""Stages of the tiny 3D-guided model: a decoder for rooms, and the diffusion transformer with or without guidance.

The bundled decoder knows flat figures in eight colours and paints brown floors black, so its first and last layers are
trained on rooms; the encoder keeps enough. The transformer is stored as a change of the bundled one: attention and
small layers anew, feed-forward matrices by a low-rank update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from poze import Pi3FeatureAdapter
from tools.tiny.dit_stage import decode, denoise, stacked, text_states
from tools.tiny.family import DIT, GEOMETRY, load_bundled
from tools.tiny.poze_evaluation import SETTINGS
from tools.tiny.room_clips import MOVES, RoomClip
from tools.tiny.vae_stage import is_kernel, split_optimizers, to_pixels, to_video
from tools.tiny.weights import read_tensors
from tools.tiny.world import Video
from wan_core.models import DiTInputs, TextEncoder, VideoVAE, WanDiT
from wan_core.sampling import Anchors, Denoiser
from wan_core.training import Cache, LoRASettings, NoiseLevels, attach_lora, make_flow_batch, trained_tensors

ADAPTER_TOKENS = 64
GRID = (6, 7)  # of patches, by Pi3's size rule for square images and the bundled network's pixel limit
BATCH = 32
_DECODER_LAYERS = ("decoder.conv1.", "decoder.upsamples.2.", "decoder.head.", "conv2.")
_DECODER_CLIPS, _DECODER_BATCH = 400, 2
_FFN_RANK = 48
_WHOLE_LAYERS = ("self_attn.", "cross_attn.", "norm3.", "modulation", "patch_embedding.", "text_embedding.", "head.")
_EMPTY_CAPTIONS = 0.1


def pixel_error(pixels: Tensor, decoded: Tensor) -> Tensor:
    """L1 + MSE."""
    error = decoded - pixels
    return error.abs().mean() + error.square().mean()


class DecoderStage:
    """The decoder's first and last layers, and the gains and biases between them, on other clips.

    ``clips`` has the ``latents`` and the ``video`` of each of ``numbers``; ``measure`` compares pixels with decoded
    ones.
    """

    def __init__(
        self,
        vae: VideoVAE,
        clips: Cache,
        numbers: Sequence[int] = range(0, 2 * _DECODER_CLIPS, 2),
        measure: Callable[[Tensor, Tensor], Tensor] = pixel_error,
    ) -> None:
        self.vae = vae
        self.clips = clips
        self.numbers = numbers
        self.measure = measure
        for name, parameter in vae.named_parameters():
            is_gain = name.startswith("decoder.") and parameter.squeeze().ndim <= 1
            parameter.requires_grad_(is_gain or name.startswith(_DECODER_LAYERS))
        self.optimizers = split_optimizers(vae, is_kernel, 0.01, 2e-3)

    def loss(self, step: int, _: int) -> Tensor:
        """What decoded latents of two clips, chosen by the step, lack."""
        chosen = np.random.default_rng([11, step]).integers(0, len(self.numbers), _DECODER_BATCH)
        examples = [self.clips[self.numbers[int(index)]] for index in chosen]
        latents = stacked(examples, "latents")
        pixels = to_pixels([example["video"].numpy() for example in examples])
        with torch.autocast("cpu", torch.bfloat16):
            decoded = self.vae.decode(latents, clamp=False, latents_per_chunk=None)
        return self.measure(pixels, decoded.float())

    def tensors(self) -> dict[str, Tensor]:
        """The change: the trained tensors."""
        return trained_tensors(self.vae)


class GuidedDiT(nn.Module):
    """The transformer and, with guidance, the adapter that gives it Pi3's tokens; what is frozen stays as bundled."""

    def __init__(self, tokens_dim: int | None) -> None:
        super().__init__()
        self.dit: WanDiT = load_bundled("dit")
        torch.manual_seed(0)
        attach_lora(self.dit, LoRASettings(rank=_FFN_RANK, targets=("blocks.*.ffn.[02]",)))
        for name, parameter in self.dit.named_parameters():
            if any(part in name for part in _WHOLE_LAYERS):
                parameter.requires_grad_(True)
        torch.manual_seed(1)
        self.adapter = None if tokens_dim is None else Pi3FeatureAdapter(tokens_dim, DIT.dim, ADAPTER_TOKENS)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the attention matrices, AdamW for the rest."""

        def is_attention(name: str, weight: Tensor) -> bool:
            return weight.ndim == 2 and name.startswith("dit.blocks.") and "_attn." in name

        return split_optimizers(self, is_attention, 0.01, 1.5e-3)

    def extra_context(self, tokens: Tensor) -> Tensor | None:
        """Guidance tokens [B, K, dim] of Pi3's tokens [B, h * w, C] of square images; None without an adapter."""
        if self.adapter is None:
            return None
        guidance: Tensor = self.adapter(tokens, GRID)
        return guidance


@dataclass(frozen=True)
class RoomStage:
    """Flow matching on rooms with the first latent frame clean, for `wan_core.training.train`.

    Both arms see the same clips, captions, noise and levels at a step.
    """

    model: GuidedDiT
    rooms: Cache
    captions: dict[str, Tensor]
    levels: NoiseLevels
    weights: Tensor

    def loss(self, step: int, _: int) -> Tensor:
        """The loss of one step."""
        rng = np.random.default_rng([12, step])
        examples = [self.rooms[int(number)] for number in rng.integers(0, len(self.rooms), BATCH)]
        context = torch.stack([self._text(int(example["move"]), rng) for example in examples])
        latents = stacked(examples, "latents")
        clean = torch.ones(BATCH, dtype=torch.long)
        batch = make_flow_batch(latents, self.levels.sample(BATCH), torch.randn_like(latents), clean)
        with torch.autocast("cpu", torch.bfloat16):
            extra = self.model.extra_context(stacked(examples, "tokens"))
            velocity = self.model.dit(batch.latents, batch.timesteps, DiTInputs(context=context, extra_context=extra))
        return batch.loss(velocity, self.weights)

    def _text(self, move: int, rng: np.random.Generator) -> Tensor:
        wordings = MOVES[list(MOVES)[move]]
        chosen = wordings[int(rng.integers(len(wordings)))]
        return self.captions["" if rng.random() < _EMPTY_CAPTIONS else chosen]


def caption_states(encoder: TextEncoder) -> dict[str, Tensor]:
    """Text states [24, 96] of every wording, and of no text."""
    captions = ["", *(wording for wordings in MOVES.values() for wording in wordings)]
    with torch.no_grad():
        return dict(zip(captions, text_states(encoder, captions).clone(), strict=True))


def rooms_decoder(vae: VideoVAE, change: Path) -> VideoVAE:
    """The autoencoder with the change that stage "decoder" wrote."""
    vae.load_state_dict(vae.state_dict() | read_tensors(change))
    return vae


@torch.inference_mode()
def generate_rooms(
    model: GuidedDiT,
    vae: VideoVAE,
    captions: dict[str, Tensor],
    clips: list[RoomClip],
    tokens: Tensor,
    batch: int = 20,
) -> list[Video]:
    """A video for each clip's first frame and caption, guided by Pi3's tokens [clips, h * w, C] if ``model`` is.

    Guidance goes to both branches, as poze does; noise by position in the list, the same for every model.
    """
    videos: list[Video] = []
    for start in range(0, len(clips), batch):
        part = clips[start : start + batch]
        first = vae.encode(to_pixels([clip.video[:1] for clip in part]))
        anchors = Anchors.leading(first, GEOMETRY.latent_frames)
        extra = model.extra_context(tokens[start : start + batch])
        context = torch.stack([captions[clip.caption] for clip in part])
        positive = DiTInputs(context=context, extra_context=extra)
        negative = DiTInputs(context=captions[""].expand_as(context), extra_context=extra)
        denoiser = Denoiser(model.dit, positive, negative, SETTINGS.guidance_scale, anchors=anchors)
        videos += decode(vae, denoise(denoiser, SETTINGS, len(part), start, anchors))
    return videos


@torch.inference_mode()
def through_vae(vae: VideoVAE, clips: list[RoomClip]) -> list[Video]:
    """The true clips, encoded and decoded: what the best transformer could show."""
    decoded = (vae.decode(vae.encode(to_pixels([clip.video])), latents_per_chunk=None) for clip in clips)
    return [to_video(video[0]) for video in decoded]
