"""First-last-frame video (Wan2.1-FLF2V-14B): a transformer that knows which of two images a CLIP token is of.

Source: the released checkpoint, whose one further tensor is ``img_emb.emb_pos``; the code is our own.
"""

import torch
from torch import Tensor, nn

from wan_core.models.dit.blocks import ImageEmbedding
from wan_core.models.dit.config import FLF2VConfig
from wan_core.models.dit.model import WanDiT


class TwoImageEmbedding(ImageEmbedding):
    """CLIP states of the first and the last image, joined along the tokens, to context tokens."""

    def __init__(self, image_dim: int, dim: int, image_tokens: int) -> None:
        super().__init__(image_dim, dim)
        self.emb_pos = nn.Parameter(torch.zeros(1, image_tokens, image_dim))

    def forward(self, states: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, image_tokens, image_dim] to [B, image_tokens, dim] in ``dtype``."""
        return super().forward(states + self.emb_pos.to(states), dtype)


class FLF2VDiT(WanDiT):
    """A Wan transformer whose image tokens carry a learned position."""

    def __init__(self, config: FLF2VConfig) -> None:
        super().__init__(config)
        self.img_emb = TwoImageEmbedding(config.image_dim or 0, config.dim, config.image_tokens)
