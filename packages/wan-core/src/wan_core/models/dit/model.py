"""The Wan diffusion transformer: noisy latents, timesteps and conditions to a velocity.

Paper: Wan Team, "Wan: Open and Advanced Large-Scale Video Generative Models" (arXiv 2503.20314). State-dict names are
those of the released checkpoints; the code is our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from wan_core.errors import RequestError
from wan_core.models.dit.blocks import Context, Head, ImageEmbedding, WanBlock
from wan_core.models.dit.config import WanDiTConfig
from wan_core.models.dit.inputs import DiTInputs
from wan_core.models.dit.layout import BlockShared, TokenLayout, TokenSequence
from wan_core.models.dit.modulation import Lengths, sinusoidal_embedding
from wan_core.models.dit.rope import Grid, rotary_table


@dataclass(frozen=True, kw_only=True)
class TimeRows:
    """Embedded timesteps, one row per segment of tokens: ``head`` [B, S, C], ``blocks`` [B, S, 6, C], float32.

    ``lengths``: the tokens of each segment, of the full sequence or of one process.
    """

    head: Tensor
    blocks: Tensor
    lengths: Lengths

    def within(self, layout: TokenLayout) -> TimeRows:
        """Those of the tokens of this process; segments that lie elsewhere are left out.

        Of several rows at least two remain: the sums of one row are rounded in another way.
        """
        lengths = layout.segments(self.lengths)
        held = [index for index, length in enumerate(lengths) if length] or [0]
        first = min(held[0], max(0, len(lengths) - 2))
        own = slice(first, max(held[-1] + 1, first + 2))
        return TimeRows(head=self.head[:, own], blocks=self.blocks[:, own], lengths=lengths[own])


class WanDiT(nn.Module):
    """Velocity of noisy latents under conditions.

    Runs in the dtype of its linear layers; what ``float32_modules`` names stays float32, as does the residual stream.
    Variants override ``embed_latents``, ``embed_timesteps``, ``embed_context`` (or what it asks: ``text_states``,
    ``branch_tokens``), ``after_block`` and ``project_out``, never ``forward``.
    """

    inputs_type: ClassVar[type[DiTInputs]] = DiTInputs
    block_class: ClassVar[type[nn.Module]] = WanBlock
    float32_modules: ClassVar[tuple[str, ...]] = (
        "time_embedding",
        "time_projection",
        "modulation",
        "head",
        "norm3",
        "img_emb.proj.0",
        "img_emb.proj.4",
    )
    quantizable: ClassVar[tuple[str, ...]] = ("self_attn", "cross_attn", "ffn")
    further_forwards: ClassVar[tuple[str, ...]] = ()
    """Methods that are called from outside and use weights, beside ``forward``: who divides weights gathers them."""

    def __init__(self, config: WanDiTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, config.patch_size, config.patch_size)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(self.block_class(config) for _ in range(config.num_layers))
        self.head = Head(config)
        if config.image_dim is not None:
            self.img_emb = ImageEmbedding(config.image_dim, dim)
        self.layout = TokenLayout()

    def forward(self, latents: Tensor, timesteps: Tensor, inputs: DiTInputs) -> Tensor:
        """Velocity [B, out_dim, T, H, W] float32 of ``latents`` [B, C, T, H, W].

        ``timesteps`` [B] or [B, T], in 0..1000. Raises RequestError for shapes that do not fit the network.
        """
        if not isinstance(inputs, self.inputs_type):
            raise TypeError(f"inputs must be {self.inputs_type.__name__}, got {type(inputs).__name__}")
        sequence = self.embed_latents(latents, inputs)
        time = self.embed_timesteps(timesteps, sequence, inputs).within(self.layout)
        tokens = self.run_blocks(sequence, time, inputs)
        return self.project_out(tokens, sequence, time)

    def embed_latents(self, latents: Tensor, inputs: DiTInputs, start: Grid = (0, 0, 0)) -> TokenSequence:
        """The tokens of the latents in the order frames, rows, columns; the first stands at position ``start``."""
        if inputs.channel_concat is not None:
            _check_concat(latents, inputs.channel_concat)
            latents = torch.cat([latents, inputs.channel_concat.to(latents)], dim=1)
        self._check_latents(latents)
        patches = self.patch_embedding(latents.to(self.dtype))
        tokens = patches.flatten(2).transpose(1, 2).contiguous()
        grid = (patches.shape[2], patches.shape[3], patches.shape[4])
        if inputs.add_condition is not None:
            condition = inputs.add_condition.flatten(1, 2).to(tokens)
            if condition.shape[1:] != tokens.shape[1:]:
                wanted = f"[B, {grid[0]}, {grid[1] * grid[2]}, {self.config.dim}]"
                raise RequestError(f"add_condition must be {wanted}, got {list(inputs.add_condition.shape)}")
            tokens = tokens + condition
        rope = rotary_table(self.config.head_dim, grid, start, tokens.device)
        return TokenSequence(tokens=tokens, rope=rope, grid=grid)

    def embed_timesteps(self, timesteps: Tensor, sequence: TokenSequence, inputs: DiTInputs) -> TimeRows:
        """One row for all tokens of a sample from [B], one per latent frame from [B, T]."""
        frames, batch = sequence.grid[0], sequence.tokens.shape[0]
        patch = self.config.patch_size[0]
        if timesteps.shape in ((batch,), (batch, 1)):
            return self.time_rows(timesteps.view(batch, 1), (sequence.length,))
        if timesteps.shape != (batch, frames * patch):
            wanted = f"[{batch}] or [{batch}, {frames * patch}]"
            raise RequestError(f"timesteps must be {wanted}, got {list(timesteps.shape)}")
        return self.time_rows(timesteps[:, ::patch], (sequence.length // frames,) * frames)

    def time_rows(self, timesteps: Tensor, lengths: Lengths) -> TimeRows:
        """Embed timesteps [B, S], one per segment of ``lengths`` tokens."""
        waves = sinusoidal_embedding(timesteps, self.config.freq_dim).to(self.device)
        head = self.time_embedding(waves.to(dtype_of(self.time_embedding)))
        blocks = self.time_projection(head.to(dtype_of(self.time_projection))).unflatten(-1, (6, -1))
        return TimeRows(head=head.float(), blocks=blocks.float(), lengths=lengths)

    def embed_context(self, inputs: DiTInputs) -> Context:
        """Text tokens [B, text_len (+ extra), C]; with an image branch, the image tokens that it attends to."""
        self._check_context(inputs)
        context = self.text_embedding(self.text_states(inputs))
        if inputs.extra_context is not None:
            context = torch.cat([context, inputs.extra_context.to(context)], dim=1)
        if inputs.image_context is None:
            return context, None
        image = self.img_emb(inputs.image_context, self.dtype)
        limit = self.branch_tokens(inputs)
        # Released weights know one image in the branch; tokens of further ones were trained among the text.
        return (torch.cat([image[:, limit:], context], dim=1) if image.shape[1] > limit else context), image[:, :limit]

    def text_states(self, inputs: DiTInputs) -> Tensor:
        """What the text embedding takes: [B, text_len, text_dim]."""
        context = inputs.context.to(self.dtype)
        missing = self.config.text_len - context.shape[1]
        # Zero rows become constant tokens that are attended to: the model was trained so.
        return functional.pad(context, (0, 0, 0, missing)) if missing else context

    def branch_tokens(self, inputs: DiTInputs) -> int:
        """How many of the image tokens go through the image branch; further ones join the text."""
        return self.config.image_tokens

    def run_blocks(self, sequence: TokenSequence, time: TimeRows, inputs: DiTInputs) -> Tensor:
        """This process's tokens [B, L, C] float32 after all blocks; fills or uses the context cache of ``inputs``.

        ``time`` is that of these tokens.
        """
        cache = inputs.context_cache
        known = None if cache is None else cache.get(self, inputs)
        context = self.embed_context(inputs) if known is None else None
        shared = BlockShared(
            rope=self.layout.shard(sequence.rope, axis=0),
            lengths=time.lengths,
            dtype=sequence.tokens.dtype,
            length=sequence.length,
            layout=self.layout,
            key_lengths=self.layout.key_lengths(sequence.key_lengths, sequence.tokens),
            mask=sequence.mask,
        )
        tokens = self.layout.shard(sequence.tokens).float()
        states = []
        for index, block in enumerate(self.blocks):
            given = None if known is None else known[index]
            memory = None if sequence.memories is None else sequence.memories[index]
            tokens, used = block(tokens, time.blocks, shared, context, given, memory)
            tokens = self.after_block(index, tokens, sequence, inputs)
            states.append(used)
        if cache is not None and known is None:
            cache.store(self, inputs, states)
        return tokens

    def after_block(self, index: int, tokens: Tensor, sequence: TokenSequence, inputs: DiTInputs) -> Tensor:
        """What a variant adds to this process's tokens after block ``index``; nothing here."""
        return tokens

    def project_out(self, tokens: Tensor, sequence: TokenSequence, time: TimeRows) -> Tensor:
        """Velocity [B, out_dim, T, H, W] float32 of the final tokens from ``sequence.start`` on."""
        patches = self.head(tokens, time.head, time.lengths)
        patches = self.layout.gather(patches, sequence.length)[:, sequence.start : sequence.stop]
        f, h, w = sequence.grid
        p, q, r = self.config.patch_size
        return rearrange(patches, "b (f h w) (p q r c) -> b c (f p) (h q) (w r)", f=f, h=h, w=w, p=p, q=q, r=r)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the linear layers."""
        return self.patch_embedding.weight.dtype

    def _check_latents(self, latents: Tensor) -> None:
        config = self.config
        if latents.ndim != 5 or latents.shape[1] != config.in_dim:
            raise RequestError(
                f"this network takes {config.in_dim} channels in [B, C, T, H, W], got {list(latents.shape)}"
            )
        if any(side % patch or not side for side, patch in zip(latents.shape[2:], config.patch_size, strict=True)):
            raise RequestError(
                f"latent frames, height and width must be multiples of {config.patch_size}, "
                f"got {tuple(latents.shape[2:])}"
            )

    def _check_context(self, inputs: DiTInputs) -> None:
        config, context, extra = self.config, inputs.context, inputs.extra_context
        if context.ndim != 3 or context.shape[1] > config.text_len or context.shape[2] != config.text_dim:
            raise RequestError(
                f"context must be [B, up to {config.text_len}, {config.text_dim}], got {list(context.shape)}"
            )
        if extra is not None and (extra.ndim != 3 or extra.shape[2] != config.dim):
            raise RequestError(f"extra_context must be [B, K, {config.dim}], got {list(extra.shape)}")
        image = inputs.image_context
        if (image is None) == (config.image_dim is not None):
            raise RequestError("image_context must be given exactly for networks with an image branch")
        if image is not None and (image.shape[1] < config.image_tokens or image.shape[2] != config.image_dim):
            raise RequestError(
                f"image_context must be [B, at least {config.image_tokens}, {config.image_dim}], "
                f"got {list(image.shape)}"
            )


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of a module's first parameter."""
    return next(module.parameters()).dtype


def _check_concat(latents: Tensor, concat: Tensor) -> None:
    if latents.ndim != 5 or concat.shape != (latents.shape[0], concat.shape[1], *latents.shape[2:]):
        raise RequestError(
            f"channel_concat must differ from the latents {list(latents.shape)} in channels only, "
            f"got {list(concat.shape)}"
        )
