"""Stage "encoders": a tiny CLIP and a tiny Qwen2.5-VL that say at their tokens what they see and read.

Linear heads, dropped afterwards, read shape, texture and colours from EVERY token of a picture, for the language model
also how that picture's subject moves and where, and from what follows the pictures all of it. So the transformer finds
a look wherever its attention falls (the same helped with captions, see `tools.tiny.text_stage`). The connector learns
with them: it turns a picture's tokens into what the bundled text encoder says of a plain figure that moves so, which
the bundled transformer can draw already.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from bindweave.dit import TextProjector
from bindweave.hidden_states import SeenPictures, positions, scaled, see_pixels, token_ids
from bindweave.mllm import MLLM
from bindweave.mllm_config import MLLMConfig
from bindweave.presets import TINY_BINDWEAVE, TINY_CLIP
from bindweave.prompts import MLLM_NEGATIVE_PROMPT
from bindweave.references import clip_input, letterbox
from tools.tiny.dit_stage import text_states
from tools.tiny.subjects import COLORS, FIGURES, GROUNDS, MOST_SUBJECTS, TEXTURES, WAYS, Cast, draw_cast
from tools.tiny.world import MOTIONS, Combination, write_caption
from wan_core.llm import picture_patches
from wan_core.models import CLIPVision, TextEncoder
from wan_core.training import build_optimizers

ENCODER_STEPS, BATCH = 1200, 32
MARKS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
_MERGES = 400
_LOOK = (len(FIGURES), len(TEXTURES), len(COLORS), len(COLORS))
_SUBJECT = (*_LOOK, len(WAYS))
_GROUND = len(GROUNDS) + 1  # or none that is named


@cache
def chat_tokenizer() -> Any:
    """Qwen's way of cutting text into pieces of bytes, learned from this world's prompts; always the same."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    letters = sorted(ByteLevel.alphabet())
    plain = Qwen2Tokenizer(vocab=_numbered([*letters, *MARKS]), merges=[], extra_special_tokens=list(MARKS[1:]))
    rng = np.random.default_rng(60)
    prompts = [draw_cast(rng, 1 + index % MOST_SUBJECTS, held_back=False).prompt for index in range(600)]
    template = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * 50
    learned = plain.train_new_from_iterator(
        [*prompts, *[MLLM_NEGATIVE_PROMPT] * 3, *template], len(letters) + len(MARKS) + _MERGES, show_progress=False
    )
    merges = [tuple(pair) for pair in json.loads(learned.backend_tokenizer.to_str())["model"]["merges"]]
    words = dict.fromkeys([*letters, *("".join(pair) for pair in merges), *MARKS])
    return Qwen2Tokenizer(vocab=_numbered(words), merges=merges, extra_special_tokens=list(MARKS[1:]))


def _numbered(words: Any) -> dict[str, int]:
    return {word: number for number, word in enumerate(words)}


@cache
def mllm_config() -> MLLMConfig:
    """Dims of the tiny Qwen2.5-VL; a picture of 64 x 64 is four tokens."""
    ids = chat_tokenizer().get_vocab()
    return MLLMConfig(
        dim=TINY_BINDWEAVE.dit.mllm_dim,
        ffn_dim=160,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        vocab_size=len(ids),
        max_length=4096,
        mrope_section=(2, 4, 4),
        vision_dim=64,
        vision_ffn_dim=128,
        vision_layers=2,
        vision_heads=4,
        full_attention=(0, 1),
        picture_id=ids["<|image_pad|>"],
        video_id=ids["<|video_pad|>"],
        vision_start_id=ids["<|vision_start|>"],
        vision_end_id=ids["<|vision_end|>"],
    )


def patches_of(pictures: Sequence[Any]) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Rows of patches and grids of pictures [H, W, 3] uint8, as ``bindweave extract`` makes them."""
    rows, grids = zip(*(picture_patches(scaled(Image.fromarray(np.asarray(each)))) for each in pictures), strict=True)
    return torch.cat(rows), list(grids)


def clip_pixels_of(pictures: Sequence[Any]) -> Tensor:
    """Pictures [H, W, 3] uint8 as the tiny CLIP takes them in: [N, 3, S, S]."""
    side = TINY_BINDWEAVE.sampling.width
    frames = torch.stack([letterbox(Image.fromarray(np.asarray(each)), side, side).pixels for each in pictures])
    return clip_input(frames, TINY_CLIP.image_size)


@dataclass(frozen=True)
class Read:
    """What the language model makes of prompts with pictures: ``states`` [B, S, dim], of which ``lengths`` are real,
    and ``owners`` [B, S], the number of the picture that a token is of, -1 before the pictures and -2 after them."""

    states: Tensor
    lengths: list[int]
    owners: Tensor


def read_all(mllm: nn.Module, prompts: Sequence[str], seen: Tensor, grids: Sequence[tuple[int, int, int]]) -> Read:
    """Read every prompt with as many of the pictures in turn, whose tokens ``seen`` [tokens, dim] are."""
    parts: Any = mllm
    count = len(grids) // len(prompts)
    merge = mllm_config().merge_size
    rows = [
        SeenPictures(seen, tuple(grids[index * count : (index + 1) * count]), merge) for index in range(len(prompts))
    ]
    ids = [token_ids(chat_tokenizer(), text, row.lengths)[0] for text, row in zip(prompts, rows, strict=True)]
    padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    is_picture = padded == mllm_config().picture_id
    places = [positions(each[None] == mllm_config().picture_id, row) for each, row in zip(ids, rows, strict=True)]
    longest = padded.shape[1]
    places = [functional.pad(each, (0, longest - each.shape[2]), mode="replicate") for each in places]
    tokens = parts.language_model.embed_tokens(padded)
    tokens = tokens.masked_scatter(is_picture[..., None], seen.to(tokens))
    states = parts.language_model(
        inputs_embeds=tokens, position_ids=torch.cat(places, dim=1), use_cache=False
    ).last_hidden_state
    starts = (padded == mllm_config().vision_start_id).cumsum(1)
    last = (padded == mllm_config().vision_end_id).cumsum(1)
    owners = torch.where((starts == count) & (last == count), -2, starts - 1)
    is_end = padded == mllm_config().vision_end_id
    owners = torch.where(is_picture | is_end, starts - 1, owners.clamp_max(-1))
    return Read(states, [len(each) for each in ids], owners)


class SubjectEncoders(nn.Module):
    """CLIP, language model and connector with the heads that teach them, for `wan_core.training.train`."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.mllm = MLLM.build(mllm_config())
        self.clip = CLIPVision(TINY_CLIP)
        self.connector = TextProjector(mllm_config().dim, TINY_BINDWEAVE.dit.text_dim)
        self.own = nn.Linear(mllm_config().dim, sum(_SUBJECT) + _GROUND)
        self.every = nn.Linear(mllm_config().dim, MOST_SUBJECTS * sum(_SUBJECT) + _GROUND)
        self.of_clip = nn.Linear(TINY_CLIP.dim, sum(_LOOK))
        self.optimizers = build_optimizers(self, "adamw", 2e-3, weight_decay=0.01)
        self._wanted = plain_states(encoder)

    def loss(self, step: int, _: int) -> Tensor:
        """Cross-entropy of all heads, and the connector's distance, on casts of one, two or three subjects."""
        rng = np.random.default_rng([61, step])
        count = (1, 2, 2, 3)[step % 4]
        casts = [draw_cast(rng, count, held_back=False) for _ in range(BATCH)]
        of_clip, read = self._see(casts)
        looks, subjects, grounds = labels_of(casts)
        total = _entropy(self.of_clip(of_clip), _LOOK, looks.flatten(0, 1)[:, None].expand(-1, of_clip.shape[1], -1))
        index = torch.arange(BATCH)[:, None].expand_as(read.owners)
        is_own = read.owners >= 0
        own = subjects[index[is_own], read.owners[is_own]]
        scores = self.own(read.states[is_own])
        total = total + _entropy(scores, (*_SUBJECT, _GROUND), torch.cat([own, grounds[index[is_own], None]], dim=1))
        is_last = self._after(read)
        wanted = torch.cat([subjects.flatten(1), grounds[:, None]], dim=1)[index[is_last]]
        slots = self.every(read.states[is_last])
        slots = torch.cat([slots[:, : count * sum(_SUBJECT)], slots[:, -_GROUND:]], dim=1)
        total = total + _entropy(slots, (*_SUBJECT * count, _GROUND), wanted)
        return total + 4 * self._distance(read, is_own, index, subjects, grounds)

    def _see(self, casts: Sequence[Cast]) -> tuple[Tensor, Read]:
        pictures = [picture for cast in casts for picture in cast.pictures]
        states = self.clip.hidden_states(clip_pixels_of(pictures), TINY_CLIP.num_layers - 1)
        rows, grids = patches_of(pictures)
        seen = see_pixels(self.mllm, rows, grids)
        return states, read_all(self.mllm, [cast.prompt for cast in casts], seen.embeddings, grids)

    def _after(self, read: Read) -> Tensor:
        """Which tokens follow the pictures."""
        real = torch.arange(read.states.shape[1]) < torch.tensor(read.lengths)[:, None]
        return (read.owners == -2) & real

    def _distance(self, read: Read, is_own: Tensor, index: Tensor, subjects: Tensor, grounds: Tensor) -> Tensor:
        """How far the connector is from plain figures, where the prompt names the background."""
        chosen = is_own & (grounds[index] < len(GROUNDS))
        own = subjects[index[chosen], read.owners[chosen]]
        wanted = self._wanted[own[:, 0], own[:, 2], own[:, 4], grounds[index[chosen]]]
        return functional.mse_loss(self.connector(read.states[chosen]), wanted) / self._wanted.square().mean()

    @torch.no_grad()
    def accuracy(self, count: int = 2, casts: int = 120) -> dict[str, float]:
        """Percentages of tokens that tell a held-back look, or a motion, right; seeds are not those of the scores."""
        rng = np.random.default_rng([62, count])
        drawn = [draw_cast(rng, count, held_back=True) for _ in range(casts)]
        of_clip, read = self._see(drawn)
        looks, subjects, _ = labels_of(drawn)
        index = torch.arange(casts)[:, None].expand_as(read.owners)
        is_own = read.owners >= 0
        own = subjects[index[is_own], read.owners[is_own]]
        right = _right(self.own(read.states[is_own]), _SUBJECT, own)
        clip = _right(self.of_clip(of_clip), _LOOK, looks.flatten(0, 1)[:, None].expand(-1, of_clip.shape[1], -1))
        last = self._after(read)
        every = _right(self.every(read.states[last]), _SUBJECT * count, subjects.flatten(1)[index[last]])
        named = {
            "clip_look": clip.all(-1),
            "own_look": right[:, :4].all(-1),
            "own_motion": right[:, 4],
            "every": every.all(-1),
        }
        return {name: round(100 * float(each.float().mean()), 1) for name, each in named.items()}


def labels_of(casts: Sequence[Cast]) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of looks [B, N, 4], of subjects [B, N, 5] and of named backgrounds [B] of casts of N subjects."""
    shapes, colors = tuple(FIGURES), tuple(COLORS)
    subjects = torch.tensor(
        [
            [
                (
                    shapes.index(each.look.shape),
                    TEXTURES.index(each.look.texture),
                    colors.index(each.look.first),
                    colors.index(each.look.second),
                    WAYS.index(each.motion),
                )
                for each in cast.subjects
            ]
            for cast in casts
        ]
    )
    grounds = torch.tensor([GROUNDS.index(cast.background) if cast.is_named else len(GROUNDS) for cast in casts])
    return subjects[..., :4], subjects, grounds


@torch.no_grad()
def plain_states(encoder: TextEncoder) -> Tensor:
    """What the text encoder says of plain figures: mean states [shape, colour, motion, background, 96]."""
    wordings = [
        write_caption(Combination(color, shape, motion, ground))
        for shape in FIGURES
        for color in COLORS
        for motion in WAYS
        for ground in GROUNDS
    ]
    assert set(WAYS) <= set(MOTIONS)
    states = text_states(encoder, wordings)
    real = (states != 0).any(-1, keepdim=True)
    mean = states.sum(1) / real.sum(1)
    return mean.view(len(FIGURES), len(COLORS), len(WAYS), len(GROUNDS), -1)


def _entropy(logits: Tensor, sizes: Sequence[int], labels: Tensor) -> Tensor:
    """The mean cross-entropy of several choices, summed over them."""
    total = torch.zeros(())
    parts = logits.flatten(0, -2).split(list(sizes), dim=-1)
    for scores, label in zip(parts, labels.flatten(0, -2).T, strict=True):
        total = total + functional.cross_entropy(scores, label)
    return total


def _right(logits: Tensor, sizes: Sequence[int], labels: Tensor) -> Tensor:
    """Which of several choices are right: [..., choices]."""
    used = logits[..., : sum(sizes)]
    return torch.stack(
        [scores.argmax(-1) == labels[..., index] for index, scores in enumerate(used.split(list(sizes), dim=-1))],
        dim=-1,
    )
