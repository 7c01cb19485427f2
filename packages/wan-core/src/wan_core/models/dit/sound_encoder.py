"""From states of a speech model, frame by frame, to a few tokens for each latent frame.

Source: the released Wan2.2-S2V-14B (``casual_audio_encoder``, spelled so there); the code is our own.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from wan_core.models.dit.causal_conv1d import CausalConv1d, coarser
from wan_core.models.dit.config import S2VConfig


class SoundTower(nn.Module):
    """Three causal convolutions that take four frames to one, for ``num_tokens`` tokens and for one of the whole."""

    def __init__(self, config: S2VConfig) -> None:
        super().__init__()
        dim, width = config.dim, config.dim // 4
        self.num_tokens = config.num_audio_token
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.conv1_local = CausalConv1d(config.audio_dim, width * self.num_tokens)
        if config.enable_adain:
            self.conv1_global = CausalConv1d(config.audio_dim, width)
        self.conv2 = CausalConv1d(width, dim // 2, stride=2)
        self.conv3 = CausalConv1d(dim // 2, dim, stride=2)
        if config.enable_adain:
            self.final_linear = nn.Linear(dim, dim)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, C, T] to the tokens [B, T', num_tokens + 1, dim] and, where a norm follows the sound, [B, T', 1, dim].

        T' is ``ceil(ceil(T / 2) / 2)``; token i sees frames up to ``4 * i``.
        """
        batch = states.shape[0]
        parts = rearrange(self.conv1_local(states), "b (n c) t -> (b n) c t", n=self.num_tokens)
        tokens = rearrange(coarser(parts, (self.conv2, self.conv3)), "(b n) c t -> b t n c", b=batch)
        padding = self.padding_tokens.to(tokens).expand(batch, tokens.shape[1], -1, -1)
        local = torch.cat([tokens, padding], dim=2)
        if not hasattr(self, "final_linear"):
            return local, None
        whole = coarser(self.conv1_global(states), (self.conv2, self.conv3)).transpose(1, 2)
        return local, self.final_linear(whole).unsqueeze(2)


class CausalSoundEncoder(nn.Module):
    """A learned mixture of the speech model's layers, then the tower."""

    def __init__(self, config: S2VConfig) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((1, config.audio_layers, 1, 1), 0.01))
        self.encoder = SoundTower(config)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, layers, C, T] to what :class:`SoundTower` gives, in the dtype of the weights."""
        shares = functional.silu(self.weights)
        mixed = (features.to(shares) * (shares / shares.sum())).sum(1)
        encoded: tuple[Tensor, Tensor | None] = self.encoder(mixed)
        return encoded
