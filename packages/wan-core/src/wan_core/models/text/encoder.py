"""From prompts to the text states that a DiT attends to."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wan_core.errors import CheckpointError
from wan_core.models.text.tokenizer import Tokenizer
from wan_core.models.text.umt5 import UMT5Encoder


class TextEncoder(nn.Module):
    """A text model with its tokenizer; prompts become at most ``text_len`` states each.

    Raises CheckpointError when the tokenizer can make ids that the model has no embedding for.
    """

    def __init__(self, model: UMT5Encoder, tokenizer: Tokenizer, text_len: int = 512) -> None:
        super().__init__()
        if tokenizer.vocab_size > model.config.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} tokens but the text encoder embeds only "
                f"{model.config.vocab_size}; they belong to different models"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.text_len = text_len

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> list[Tensor]:
        """States [l_i, dim] of each prompt, l_i its token count with the end token; without gradients."""
        if not prompts:
            return []
        device = self.model.token_embedding.weight.device
        tokens = [self.tokenizer(prompt, self.text_len) for prompt in prompts]
        lengths = torch.tensor([len(ids) for ids in tokens])
        # Padding to the longest prompt instead of text_len changes nothing: padded keys have no weight.
        batch = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in tokens], batch_first=True)
        mask = torch.arange(batch.shape[1]) < lengths[:, None]
        states = self.model(batch.to(device), None if mask.all() else mask.to(device))
        return [row[:length] for row, length in zip(states, lengths.tolist(), strict=True)]
