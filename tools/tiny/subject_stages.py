"""Stage "dit": the bundled text-to-video transformer learns to show the subjects of pictures.

It starts with what it can draw from captions: channels for pictures are zero at first, the image branch adds nothing,
and the connector says of a picture what the text encoder would (`tools.tiny.subject_encoders`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bindweave.dit import BindWeaveDiT, BindWeaveInputs
from bindweave.hidden_states import see_pixels
from bindweave.presets import TINY_BINDWEAVE, TINY_CLIP
from bindweave.prompts import MLLM_NEGATIVE_PROMPT
from bindweave.request import MAX_REFERENCES
from tools.tiny.dit_stage import stacked, text_states
from tools.tiny.family import load_bundled
from tools.tiny.subject_encoders import SubjectEncoders, chat_tokenizer, clip_pixels_of, patches_of, read_all
from tools.tiny.subjects import Cast, reworded, subjects_in, training_cast
from wan_core.models import TextEncoder
from wan_core.training import Cache, NoiseLevels, make_flow_batch

LEVELS = NoiseLevels(shift=3.0, std=1.2)
_DROPPED = 0.1
_TRIES = 4  # wordings of a prompt before another scene is taken


def new_dit(encoders: SubjectEncoders) -> BindWeaveDiT:
    """The bundled transformer with BindWeave's inputs, which change nothing at first, and the taught connector."""
    config = TINY_BINDWEAVE.part("dit").config
    torch.manual_seed(4)
    dit = BindWeaveDiT(config)
    tensors = dit.state_dict() | load_bundled("dit").state_dict()
    patch = tensors["patch_embedding.weight"]
    more = patch.new_zeros(patch.shape[0], config.in_dim - patch.shape[1], *patch.shape[2:])
    tensors["patch_embedding.weight"] = torch.cat([patch, more], dim=1)
    dit.load_state_dict(tensors)
    dit.text_projector.load_state_dict(encoders.connector.state_dict())
    for block in dit.blocks:
        nn.init.zeros_(block.cross_attn.v_img.weight)
        nn.init.zeros_(block.cross_attn.v_img.bias)
    return dit


@dataclass(frozen=True)
class Pictures:
    """What frozen encoders make of the pictures of every scene, by its number: CLIP tokens [tokens, dim] as if there
    were four pictures, tokens of the language model's vision half [tokens, dim], and the grids of its patches."""

    clip: list[Tensor]
    seen: list[Tensor]
    grids: list[list[tuple[int, int, int]]]

    @classmethod
    @torch.no_grad()
    def of(cls, encoders: SubjectEncoders, scenes: Cache) -> Pictures:
        """Every scene's."""
        made = cls([], [], [])
        for number in range(len(scenes)):
            pictures = list(scenes[number]["pictures"])
            tokens = encoders.clip.hidden_states(clip_pixels_of(pictures), TINY_CLIP.num_layers - 1)
            missing = (MAX_REFERENCES - len(pictures)) * TINY_CLIP.num_tokens
            rows, grids = patches_of(pictures)
            made.clip.append(functional.pad(tokens.flatten(0, 1), (0, 0, 0, missing)))
            made.seen.append(see_pixels(encoders.mllm, rows, grids).embeddings)
            made.grids.append(grids)
        return made


@dataclass(frozen=True)
class SubjectStage:
    """Flow matching on scenes, for `wan_core.training.train`; the samples of a step have equally many subjects and
    prompts of one length, because nothing may be padded."""

    dit: BindWeaveDiT
    encoders: SubjectEncoders
    encoder: TextEncoder
    scenes: Cache
    pictures: Pictures
    blank: Tensor
    weights: Tensor
    batch: int
    rank: int = 0
    _numbers: dict[int, list[int]] = field(default_factory=dict)

    def loss(self, step: int, _: int) -> Tensor:
        """The loss of one step."""
        rng = np.random.default_rng([55, step, self.rank])
        count = subjects_in(int(rng.integers(len(self.scenes))))
        numbers, prompts = self._draw(count, rng)
        texts = prompts
        if rng.random() < _DROPPED:
            prompts, texts = [MLLM_NEGATIVE_PROMPT] * self.batch, [TINY_BINDWEAVE.sampling.negative_prompt] * self.batch
        examples = [self.scenes[number] for number in numbers]
        latents = stacked(examples, "latents")
        references = functional.pad(stacked(examples, "references"), (0, 0, 0, 0, 0, MAX_REFERENCES - count))
        batch = make_flow_batch(latents, LEVELS.sample(self.batch), torch.randn_like(latents))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                states = self._states(numbers, prompts)
                context = text_states(self.encoder, texts)
            inputs = BindWeaveInputs(
                context=context,
                hidden_states=states,
                image_context=torch.stack([self.pictures.clip[number] for number in numbers]),
                channel_concat=self.blank.expand(self.batch, -1, -1, -1, -1),
                references=references,
            )
            velocity = self.dit(batch.latents, batch.timesteps, inputs)
        return batch.loss(velocity, self.weights)

    def _states(self, numbers: Sequence[int], prompts: Sequence[str]) -> Tensor:
        seen = torch.cat([self.pictures.seen[number] for number in numbers])
        grids = [grid for number in numbers for grid in self.pictures.grids[number]]
        return read_all(self.encoders.mllm, prompts, seen, grids).states

    def _draw(self, count: int, rng: np.random.Generator) -> tuple[list[int], list[str]]:
        """Scenes of ``count`` subjects, and wordings of their prompts that have as many tokens as the first one's."""
        if not self._numbers:
            for number in range(len(self.scenes)):
                self._numbers.setdefault(subjects_in(number), []).append(number)
        known = self._numbers[count]
        numbers: list[int] = []
        prompts: list[str] = []
        while len(numbers) < self.batch:
            number = known[rng.integers(len(known))]
            for _ in range(_TRIES):
                prompt = reworded(cast_of(number), rng)
                if not prompts or token_count(prompt) == token_count(prompts[0]):
                    numbers.append(number)
                    prompts.append(prompt)
                    break
        return numbers, prompts


@cache
def cast_of(number: int) -> Cast:
    """What training scene ``number`` was asked to show."""
    return training_cast(number)


@cache
def token_count(prompt: str) -> int:
    """How many tokens a prompt is to the language model."""
    return len(chat_tokenizer()(prompt)["input_ids"])
