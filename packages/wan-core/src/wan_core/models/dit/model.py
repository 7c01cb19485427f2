"""The Wan diffusion transformer: noisy latents, timesteps and conditions to a velocity.

Paper: Wan Team, "Wan: Open and Advanced Large-Scale Video Generative Models" (arXiv 2503.20314). State-dict names are
those of the released checkpoints; the code is our own.
"""

from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from wan_core.errors import RequestError
from wan_core.models.dit.blocks import Context, Head, ImageEmbedding, WanBlock
from wan_core.models.dit.config import WanDiTConfig
from wan_core.models.dit.inputs import DiTInputs
from wan_core.models.dit.layout import TokenLayout
from wan_core.models.dit.modulation import sinusoidal_embedding
from wan_core.models.dit.rope import Grid, rotary_table


class WanDiT(nn.Module):
    """Velocity of noisy latents under conditions.

    Runs in the dtype of its linear layers; what ``float32_modules`` names stays float32, as does the residual stream.
    Variants override ``embed_latents``, ``embed_timesteps``, ``embed_context``, ``after_block`` and ``project_out``,
    never ``forward``.
    """

    inputs_type: ClassVar[type[DiTInputs]] = DiTInputs
    block_class: ClassVar[type[nn.Module]] = WanBlock
    float32_modules: ClassVar[tuple[str, ...]] = ("time_embedding", "time_projection", "modulation", "head", "norm3")

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
        self.blocks = nn.ModuleList(WanBlock(config) for _ in range(config.num_layers))
        self.head = Head(config)
        if config.image_dim is not None:
            self.img_emb = ImageEmbedding(config.image_dim, dim)
        self.layout = TokenLayout()

    def forward(self, latents: Tensor, timesteps: Tensor, inputs: DiTInputs) -> Tensor:
        """Velocity [B, out_dim, T, H, W] float32 of ``latents`` [B, C, T, H, W].

        ``timesteps`` [B] or [B, T], in 0..1000. Raises RequestError for shapes that do not fit the network.
        """
        self._check(latents, timesteps, inputs)
        tokens, grid = self.embed_latents(latents, inputs)
        embedding, modulation = self.embed_timesteps(timesteps, grid)
        tokens = self.run_blocks(tokens, modulation, grid, inputs)
        return self.project_out(tokens, embedding, grid)

    def embed_latents(self, latents: Tensor, inputs: DiTInputs) -> tuple[Tensor, Grid]:
        """Tokens [B, L, C] float32 in the order frames, rows, columns, and their grid."""
        if inputs.channel_concat is not None:
            latents = torch.cat([latents, inputs.channel_concat.to(latents)], dim=1)
        patches = self.patch_embedding(latents.to(self.patch_embedding.weight.dtype))
        grid = (patches.shape[2], patches.shape[3], patches.shape[4])
        tokens = rearrange(patches, "b c t h w -> b (t h w) c").float()
        if inputs.add_condition is not None:
            tokens = tokens + inputs.add_condition.flatten(1, 2)
        return tokens.contiguous(), grid

    def embed_timesteps(self, timesteps: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Rows [B, S, C] for the head and [B, S, 6, C] for the blocks, float32; S segments of equal length."""
        rows = timesteps.unsqueeze(1) if timesteps.ndim == 1 else timesteps
        if rows.shape[1] not in (1, grid[0]):
            rows = rows[:, :: self.config.patch_size[0]]
        waves = sinusoidal_embedding(rows, self.config.freq_dim).to(self.device, torch.float32)
        embedding = self.time_embedding(waves)
        return embedding, self.time_projection(embedding).unflatten(-1, (6, -1))

    def embed_context(self, inputs: DiTInputs) -> Context:
        """Text tokens [B, text_len (+ K), C], and image tokens with an image branch."""
        dtype = self.patch_embedding.weight.dtype
        missing = self.config.text_len - inputs.context.shape[1]
        # The zero rows become constant tokens that are attended to: the model was trained so.
        context = self.text_embedding(functional.pad(inputs.context.to(dtype), (0, 0, 0, missing)))
        if inputs.extra_context is not None:
            context = torch.cat([context, inputs.extra_context.to(context)], dim=1)
        if inputs.image_context is None:
            return context, None
        return context, self.img_emb(inputs.image_context.to(dtype))

    def run_blocks(self, tokens: Tensor, modulation: Tensor, grid: Grid, inputs: DiTInputs) -> Tensor:
        """Tokens [B, L, C] float32 after all blocks; fills or uses the context cache of ``inputs``."""
        cache = inputs.context_cache
        reuse = cache is not None and cache.is_filled
        context = None if reuse else self.embed_context(inputs)
        rope = self.layout.shard(self.rope(grid), axis=0)
        length = tokens.shape[1]
        tokens = self.layout.shard(tokens)
        modulation = self.layout.spread(modulation, length)
        states = []
        for index, block in enumerate(self.blocks):
            given = cache.states[index] if reuse and cache is not None else None
            tokens, used = block(tokens, modulation, rope, context, given)
            tokens = self.after_block(index, tokens, grid, inputs)
            states.append(used)
        if cache is not None:
            cache.states = states
        return tokens

    def rope(self, grid: Grid) -> Tensor:
        """Rotary angles of the tokens of a grid, [L, d / 2] complex64."""
        return rotary_table(self.config.head_dim, grid, device=str(self.device))

    def after_block(self, index: int, tokens: Tensor, grid: Grid, inputs: DiTInputs) -> Tensor:
        """What a variant adds after block ``index``; nothing here."""
        return tokens

    def project_out(self, tokens: Tensor, embedding: Tensor, grid: Grid) -> Tensor:
        """Velocity [B, out_dim, T, H, W] of the final tokens."""
        patches = self.layout.gather(self.head(tokens, self.layout.spread(embedding, grid[0] * grid[1] * grid[2])))
        f, h, w = grid
        p, q, r = self.config.patch_size
        return rearrange(patches, "b (f h w) (p q r c) -> b c (f p) (h q) (w r)", f=f, h=h, w=w, p=p, q=q, r=r)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.patch_embedding.weight.device

    def _check(self, latents: Tensor, timesteps: Tensor, inputs: DiTInputs) -> None:
        config = self.config
        if not isinstance(inputs, self.inputs_type):
            raise TypeError(f"inputs must be {self.inputs_type.__name__}, got {type(inputs).__name__}")
        channels = latents.shape[1] + (0 if inputs.channel_concat is None else inputs.channel_concat.shape[1])
        if latents.ndim != 5 or channels != config.in_dim:
            raise RequestError(f"this network takes {config.in_dim} channels [B, C, T, H, W], got {channels}")
        if any(side % patch for side, patch in zip(latents.shape[2:], config.patch_size, strict=True)):
            raise RequestError(
                f"latent frames, height and width must be multiples of {config.patch_size}, "
                f"got {tuple(latents.shape[2:])}"
            )
        batch, frames = latents.shape[0], latents.shape[2]
        if timesteps.shape not in ((batch,), (batch, 1), (batch, frames)):
            raise RequestError(f"timesteps must be [{batch}] or [{batch}, {frames}], got {list(timesteps.shape)}")
        if inputs.context.shape[1] > config.text_len or inputs.context.shape[2] != config.text_dim:
            raise RequestError(
                f"context must be [B, up to {config.text_len}, {config.text_dim}], got {list(inputs.context.shape)}"
            )
        if (inputs.image_context is None) == (config.image_dim is not None):
            raise RequestError("image_context must be given exactly for networks with an image branch")
