"""Speech to video (Wan2.2-S2V-14B): a transformer that hears, and sees a reference, poses and the frames before.

Source: the released checkpoint and the report on Wan-S2V (arXiv 2508.18621). State-dict names are those of the
checkpoint; the code is our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from wan_core.errors import RequestError
from wan_core.models.dit.attention import CrossAttention
from wan_core.models.dit.config import S2VConfig
from wan_core.models.dit.frame_packing import ALL, FramePacker, motion_tokens
from wan_core.models.dit.inputs import DiTInputs
from wan_core.models.dit.layout import TokenSequence, change_by_frame
from wan_core.models.dit.model import TimeRows, WanDiT
from wan_core.models.dit.rope import Grid, rotary_table
from wan_core.models.dit.sound_encoder import CausalSoundEncoder

REFERENCE_FRAME = 30
"""The position in time of the reference: a clip has at most as many latent frames."""

_NOISY, _REFERENCE, _MOTION = range(3)


@dataclass(frozen=True, kw_only=True)
class S2VInputs(DiTInputs):
    """The conditions of a forward over T latent frames.

    ``audio`` [B, layers, audio_dim, 4 * T]: states of a speech model, one a video frame. ``reference_latents``
    [B, C, 1, h, w]: the image of who speaks. ``motion_latents`` [B, C, Tm, h, w]: the frames before the clip, None for
    none. ``pose_latents`` [B, cond_dim, T, h, w]: None is zeros. ``motion_frames``: how many video frames, and latent
    frames, the sound is told to go on from. ``last_motion``: 1 leaves the newest latent frame out of the history, 0 the
    newest three.
    """

    frame_axes: ClassVar[dict[str, int]] = {**DiTInputs.frame_axes, "pose_latents": 2}

    audio: Tensor
    reference_latents: Tensor
    motion_latents: Tensor | None = None
    pose_latents: Tensor | None = None
    motion_frames: tuple[int, int] = (73, 19)
    last_motion: int = ALL


@dataclass(frozen=True, kw_only=True)
class S2VSequence(TokenSequence):
    """Tokens of the video, then of the reference, then of the history; and those of the sound.

    ``sound`` [B, T, num_audio_token + 1, C] for each latent frame; ``mood`` [B, T, 1, C] is what the norm follows.
    """

    sound: Tensor
    mood: Tensor | None


class SoundNorm(nn.Module):
    """Layer norm whose shift and scale follow the sound of each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * dim)

    def forward(self, tokens: Tensor, mood: Tensor, frames: slice) -> Tensor:
        """[B * f, L, C] float32 of ``frames``, and what those of all follow, [B, T, 1, C] in the linear layer's dtype.

        The linear layer sees all frames, so that it rounds alike whoever has which.
        """
        shift, scale = self.linear(mood)[:, frames].flatten(0, 1).float().chunk(2, dim=-1)
        normed = functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-5)
        return torch.addcmul(shift, normed, 1 + scale)


class SoundInjector(nn.Module):
    """After some blocks the tokens of each latent frame attend to those of its sound."""

    def __init__(self, config: S2VConfig) -> None:
        super().__init__()
        layers = config.audio_inject_layers
        self.index = {layer: number for number, layer in enumerate(layers)}
        self.injector = nn.ModuleList(CrossAttention(config) for _ in layers)
        if config.enable_adain:
            self.injector_adain_layers = nn.ModuleList(SoundNorm(config.dim) for _ in layers)

    def forward(self, block: int, tokens: Tensor, sound: Tensor, mood: Tensor | None, frames: slice) -> Tensor:
        """Tokens [B * f, L, C] float32 of ``frames`` after ``block``, which hear; may change them.

        The ``sound`` of all frames is [B, T, K, C] in the dtype of linear layers, the ``mood`` [B, T, 1, C] float32.
        """
        number = self.index[block]
        attention = cast(CrossAttention, self.injector[number])
        if mood is None:
            normed = functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        else:
            normed = self.injector_adain_layers[number](tokens, functional.silu(mood).to(sound), frames)
        # Of all frames, as the norm's shift and scale: few rows round in their own way.
        states = attention.context_states(sound.flatten(0, 1))
        own = tuple(each.view(*sound.shape[:2], *each.shape[1:])[:, frames].flatten(0, 1) for each in states)
        out: Tensor = attention(normed.to(sound), own, tokens)
        return out


class S2VDiT(WanDiT):
    """Velocity of a clip's latent frames, which see a reference and the frames before, and hear the sound."""

    inputs_type: ClassVar[type[DiTInputs]] = S2VInputs
    float32_modules: ClassVar[tuple[str, ...]] = (*WanDiT.float32_modules, "casual_audio_encoder")
    quantizable: ClassVar[tuple[str, ...]] = (*WanDiT.quantizable, "injector")

    def __init__(self, config: S2VConfig) -> None:
        super().__init__(config)
        self.s2v = config
        dim, patch = config.dim, config.patch_size
        self.cond_encoder = nn.Conv3d(config.cond_dim, dim, patch, patch)
        self.trainable_cond_mask = nn.Embedding(3, dim)
        self.casual_audio_encoder = CausalSoundEncoder(config)
        self.audio_injector = SoundInjector(config)
        if config.enable_framepack:
            self.frame_packer = FramePacker(config.in_dim, dim, patch)
        if config.zero_init:
            _zero(self)

    def embed_latents(self, latents: Tensor, inputs: DiTInputs, start: Grid = (0, 0, 0)) -> S2VSequence:
        """Tokens of the video with its poses, of the reference and of the history; and the sound of each frame."""
        inputs = cast(S2VInputs, inputs)
        video = super().embed_latents(latents, inputs, start)
        self._check(latents, inputs)
        frames, rows, columns = video.grid
        at_reference = (REFERENCE_FRAME, *start[1:])
        tokens = [video.tokens + self._poses(inputs), self._patches(inputs.reference_latents).flatten(2).mT]
        tables = [video.rope, rotary_table(self.config.head_dim, (1, rows, columns), at_reference, latents.device)]
        if inputs.motion_latents is not None:
            history, table = self._history(inputs.motion_latents, inputs.last_motion)
            tokens.append(history)
            tables.append(table)
        marks = self.trainable_cond_mask.weight.to(video.tokens)
        sound, mood = self._sound(inputs, frames)
        return S2VSequence(
            tokens=torch.cat([part + mark for part, mark in zip(tokens, marks, strict=False)], dim=1),
            rope=torch.cat(tables),
            grid=video.grid,
            sound=sound.to(video.tokens),
            mood=None if mood is None else mood.float(),
        )

    def embed_timesteps(self, timesteps: Tensor, sequence: TokenSequence, inputs: DiTInputs) -> TimeRows:
        """One row for the video's tokens; one at timestep 0 for what is given, where the network was trained so."""
        batch = sequence.tokens.shape[0]
        if timesteps.shape not in ((batch,), (batch, 1)):
            raise RequestError(f"all frames share one timestep here: [{batch}], got {list(timesteps.shape)}")
        rows = timesteps.view(batch, 1)
        if not self.s2v.zero_timestep:
            return self.time_rows(rows, (sequence.length,))
        given = sequence.length - sequence.stop
        return self.time_rows(torch.cat([rows, torch.zeros_like(rows)], dim=1), (sequence.stop, given))

    def after_block(self, index: int, tokens: Tensor, sequence: TokenSequence, inputs: DiTInputs) -> Tensor:
        """Let the video's tokens hear, where an injector follows this block.

        A token attends to the sound of its own frame alone, so that every process does it for the tokens that it has.
        """
        sequence = cast(S2VSequence, sequence)
        if index not in self.audio_injector.index:
            return tokens

        def hear(by_frame: Tensor, frames: slice) -> Tensor:
            heard: Tensor = self.audio_injector(index, by_frame, sequence.sound, sequence.mood, frames)
            return heard

        return change_by_frame(self.layout, sequence, tokens, hear)

    def _poses(self, inputs: S2VInputs) -> Tensor:
        """What the poses add to the video's tokens: [B, L, C], or [C] for none, which the network sees as zeros."""
        if inputs.pose_latents is None:
            return cast(Tensor, self.cond_encoder.bias)
        poses: Tensor = self.cond_encoder(inputs.pose_latents.to(self.dtype))
        return poses.flatten(2).mT

    def _patches(self, latents: Tensor) -> Tensor:
        patches: Tensor = self.patch_embedding(latents.to(self.dtype))
        return patches

    def _history(self, motion: Tensor, last_motion: int) -> tuple[Tensor, Tensor]:
        if not self.s2v.enable_framepack:
            return motion_tokens(self.config, self._patches(motion))
        kept = last_motion if self.s2v.add_last_motion else 0
        packed: tuple[Tensor, Tensor] = self.frame_packer(
            motion, self.config.head_dim, kept, drop=self.s2v.framepack_drop_mode == "drop"
        )
        return packed

    def _sound(self, inputs: S2VInputs, frames: int) -> tuple[Tensor, Tensor | None]:
        """The sound of each latent frame, as if its first state had been there during the history."""
        before, tokens_before = inputs.motion_frames
        first = inputs.audio[..., :1].expand(*inputs.audio.shape[:3], before)
        heard: tuple[Tensor, Tensor | None] = self.casual_audio_encoder(torch.cat([first, inputs.audio], dim=3))
        sound, mood = heard[0][:, tokens_before:], None if heard[1] is None else heard[1][:, tokens_before:]
        if sound.shape[1] != frames:
            raise RequestError(
                f"sound of {inputs.audio.shape[3]} video frames after {before} makes {sound.shape[1]} latent frames "
                f"after {tokens_before}, the clip has {frames}"
            )
        return sound, mood

    def _check(self, latents: Tensor, inputs: S2VInputs) -> None:
        config, (batch, _, frames, *sides) = self.s2v, latents.shape
        if frames // config.patch_size[0] > REFERENCE_FRAME:
            raise RequestError(f"a clip has at most {REFERENCE_FRAME} latent frames, got {frames}")
        if inputs.last_motion not in range(ALL + 1):
            raise RequestError(f"last_motion must be 0 to {ALL}, got {inputs.last_motion}")
        wanted: dict[str, Sequence[int]] = {
            "audio": (batch, config.audio_layers, config.audio_dim, inputs.audio.shape[-1]),
            "reference_latents": (batch, config.in_dim, 1, *sides),
            "pose_latents": (batch, config.cond_dim, frames, *sides),
        }
        if inputs.motion_latents is not None:
            wanted["motion_latents"] = (batch, config.in_dim, inputs.motion_latents.shape[2], *sides)
        for name, shape in wanted.items():
            given = getattr(inputs, name)
            if given is not None and (tuple(given.shape) != tuple(shape) or not given.numel()):
                raise RequestError(f"{name} must be {list(shape)}, got {list(given.shape)}")


def _zero(model: S2VDiT) -> None:
    """What sound, poses and marks add begins at nothing."""
    norms = getattr(model.audio_injector, "injector_adain_layers", ())
    outputs = [cast(CrossAttention, each).o for each in model.audio_injector.injector]
    for layer in (model.trainable_cond_mask, model.cond_encoder, *outputs, *(each.linear for each in norms)):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
