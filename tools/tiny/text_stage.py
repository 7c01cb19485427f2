"""Stage "text": train the tiny family's text encoder to say at every token what the whole caption describes.

Four linear heads, dropped afterwards, read colour, shape, motion and background from EVERY token's state. So a DiT
finds each attribute wherever its attention falls, and need not learn the language with the images: with an encoder
trained together with the DiT, motions turned up after 25 minutes only. It takes under a minute on one core.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.tiny.drawing import SHAPES
from tools.tiny.family import DIT, SPECIAL_WORDS, WEIGHTS
from tools.tiny.world import (
    BACKGROUNDS,
    COLORS,
    MOTIONS,
    TEMPLATES,
    Combination,
    combinations,
    vocabulary,
    write_caption,
)
from wan_core.models import UMT5Encoder, load_tokenizer
from wan_core.training import build_optimizers

TEXT_STEPS = 700
_ATTRIBUTES = {"color": tuple(COLORS), "shape": SHAPES, "motion": tuple(MOTIONS), "background": tuple(BACKGROUNDS)}
ATTRIBUTE_SIZES = [len(names) for names in _ATTRIBUTES.values()]
_MOTION_WORDS = {word for phrases in MOTIONS.values() for phrase in phrases for word in phrase.split()}
_TELLING = {*COLORS, *SHAPES, *BACKGROUNDS, *_MOTION_WORDS}
_UNKNOWN = SPECIAL_WORDS.index("<unk>")


def draw_caption(combination: Combination, rng: np.random.Generator) -> str:
    """Describe a combination in a random wording."""
    phrase = int(rng.integers(len(MOTIONS[combination.motion])))
    return write_caption(combination, template=int(rng.integers(len(TEMPLATES))), phrase=phrase)


class TextStage(nn.Module):
    """The text encoder with four heads, and its loss, for `wan_core.training.train`."""

    def __init__(self, encoder: UMT5Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.Linear(encoder.config.dim, sum(ATTRIBUTE_SIZES))
        self.tokenizer = load_tokenizer(WEIGHTS / "tokenizer")
        self.words = (*SPECIAL_WORDS, *vocabulary())
        self.optimizers = build_optimizers(self, "adamw", 3e-3, weight_decay=0.01)

    def loss(self, step: int, _: int) -> Tensor:
        """Cross-entropy of all heads at all tokens, on 64 training captions."""
        logits, labels = self._logits(np.random.default_rng([6, step]), 64, held_back=False)
        total = torch.zeros(())
        for scores, label in zip(logits, labels.T, strict=True):
            total = total + functional.cross_entropy(scores, label)
        return total

    @torch.no_grad()
    def accuracy(self, count: int = 512) -> dict[str, float]:
        """Percentage of tokens that tell each attribute, on captions of held-back combinations."""
        logits, labels = self._logits(np.random.default_rng(7), count, held_back=True)
        right = [(scores.argmax(-1) == label).float().mean() for scores, label in zip(logits, labels.T, strict=True)]
        return {name: round(100 * float(share), 2) for name, share in zip(_ATTRIBUTES, right, strict=True)}

    def _logits(self, rng: np.random.Generator, count: int, *, held_back: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        states, labels = self.states(rng, count, held_back=held_back)
        return self.heads(states).split(ATTRIBUTE_SIZES, dim=-1), labels

    def states(self, rng: np.random.Generator, count: int, *, held_back: bool) -> tuple[Tensor, Tensor]:
        """States ``[N, 96]`` of all tokens of ``count`` random captions, and their attributes ``[N, 4]``."""
        known = combinations(held_back=held_back)
        ids, labels = [], []
        for _ in range(count):
            combination = known[rng.integers(len(known))]
            tokens = self.tokenizer(draw_caption(combination, rng), DIT.text_len)
            if not held_back:
                tokens = [self._forget(token, rng) for token in tokens]
            ids.append(torch.tensor(tokens))
            labels.append([names.index(getattr(combination, key)) for key, names in _ATTRIBUTES.items()])
        lengths = torch.tensor([len(tokens) for tokens in ids])
        batch = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        mask = torch.arange(batch.shape[1]) < lengths[:, None]
        return self.encoder(batch, mask)[mask], torch.tensor(labels).repeat_interleave(lengths, dim=0)

    def _forget(self, token: int, rng: np.random.Generator) -> int:
        """Hide one filler word in twenty, so that unknown words of a newcomer's prompt do no harm."""
        filler = token >= len(SPECIAL_WORDS) and self.words[token] not in _TELLING
        return _UNKNOWN if filler and rng.random() < 0.05 else token
