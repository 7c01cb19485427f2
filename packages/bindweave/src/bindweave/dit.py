"""BindWeave's transformer: Wan2.1 image-to-video that reads an MLLM's states and has reference frames in front.

Project: BindWeave (ByteDance), subject-to-video. State-dict names are Wan's own, and ``text_projector`` for what is
added; the code is our own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bindweave.config import BindWeaveConfig, ConnectorConfig
from wan_core import ConfigError, RequestError
from wan_core.models import DiTInputs, TimeRows, TokenSequence, WanDiT


@dataclass(frozen=True, kw_only=True)
class BindWeaveInputs(DiTInputs):
    """The conditions of a forward.

    ``hidden_states`` [B, S, mllm_dim], or of the width of text, are put before the text. ``references``
    [B, C, R, h, w] are the channels of R frames in front of the video, as ``channel_concat`` [B, C, T, h, w] are those
    of its own. ``num_tokens`` [B] counts the rows of states and text together that are real; later ones are zeroed.
    ``all_in_branch``: the CLIP tokens of all references go through the image branch, not those of the first alone.
    """

    context_fields: ClassVar[tuple[str, ...]] = (
        *DiTInputs.context_fields, "hidden_states", "num_tokens", "all_in_branch",
    )  # fmt: skip

    hidden_states: Tensor
    references: Tensor | None = None
    num_tokens: Tensor | None = None
    all_in_branch: bool = False

    @classmethod
    def batch(cls, parts: Any) -> BindWeaveInputs:
        """Not for these: the states of two prompts differ in length, and none may be padded. Raises ConfigError."""
        raise ConfigError("the branches of guidance have hidden states of different lengths; leave out --cfg batched")


def count_tokens(hidden_mask: Tensor, text_mask: Tensor) -> Tensor:
    """The ``num_tokens`` [B] of masks [B, S] and [B, L] that are 1 on real rows, as training has them.

    Raises RequestError where the states have padding: it lies before the text, where no count can leave it out.
    """
    if not bool((hidden_mask == 1).all()):
        raise RequestError("all hidden states of a sample are real: their mask must be ones; cut the padding off")
    return hidden_mask.flatten(1).sum(1) + text_mask.flatten(1).sum(1)


class TextProjector(nn.Module):
    """The connector: states of the language model to the width of text states."""

    def __init__(self, mllm_dim: int, text_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(mllm_dim, text_dim)
        self.gelu = nn.GELU(approximate="tanh")
        self.linear_2 = nn.Linear(text_dim, text_dim)

    def forward(self, states: Tensor) -> Tensor:
        """[B, S, mllm_dim] to [B, S, text_dim]."""
        projected: Tensor = self.linear_2(self.gelu(self.linear_1(states)))
        return projected


class Connector(nn.Module):
    """The connector as a network of its own, beside a transformer; its names are those that it has inside of one."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.config = config
        self.text_projector = TextProjector(config.dim, config.text_dim)

    def forward(self, states: Tensor) -> Tensor:
        """[B, S, dim] of any dtype to [B, S, text_dim] in that of the weights."""
        projected: Tensor = self.text_projector(states.to(self.text_projector.linear_1.weight.dtype))
        return projected


class BindWeaveDiT(WanDiT):
    """Velocity of the video's latent frames, which see reference frames in front of them."""

    inputs_type: ClassVar[type[DiTInputs]] = BindWeaveInputs

    def __init__(self, config: BindWeaveConfig) -> None:
        super().__init__(config)
        self.bindweave = config
        if config.mllm_dim is not None:
            self.text_projector = TextProjector(config.mllm_dim, config.text_dim)

    def embed_latents(
        self, latents: Tensor, inputs: DiTInputs, start: tuple[int, int, int] = (0, 0, 0)
    ) -> TokenSequence:
        """Tokens of the references, whose latents are zero, then those of the video, which follow them in time."""
        references = cast(BindWeaveInputs, inputs).references
        if references is None:
            return super().embed_latents(latents, inputs, start)
        channels = inputs.channel_concat
        if channels is None or references.shape != (*channels.shape[:2], references.shape[2], *channels.shape[3:]):
            wanted = "there are none" if channels is None else f"those are {list(channels.shape)}"
            raise RequestError(
                f"references must differ from channel_concat in frames only: {wanted}, got {list(references.shape)}"
            )
        count = references.shape[2]
        blank = latents.new_zeros(*latents.shape[:2], count, *latents.shape[3:])
        joined = replace(inputs, channel_concat=torch.cat([references, channels.to(references)], dim=2))
        sequence = super().embed_latents(torch.cat([blank, latents], dim=2), joined, start)
        frames, rows, columns = sequence.grid
        return replace(sequence, grid=(frames - count, rows, columns), start=count * rows * columns)

    def embed_timesteps(self, timesteps: Tensor, sequence: TokenSequence, inputs: DiTInputs) -> TimeRows:
        """One row for all tokens: references share the time of the video, which is one for all its frames."""
        if timesteps.ndim > 1 and timesteps.shape[1] > 1:
            raise RequestError(f"all frames share one timestep here: [B], got {list(timesteps.shape)}")
        return super().embed_timesteps(timesteps, sequence, inputs)

    def text_states(self, inputs: DiTInputs) -> Tensor:
        """The projected states of the language model, then the text: [B, S + text_len, text_dim]."""
        inputs = cast(BindWeaveInputs, inputs)
        states, text = inputs.hidden_states.to(self.dtype), super().text_states(inputs)
        known = self.bindweave.mllm_dim, self.bindweave.text_dim
        if states.ndim != 3 or states.shape[0] != text.shape[0] or states.shape[2] not in known or not states.shape[1]:
            wanted = f"[{text.shape[0]}, S, {known[0] or known[1]}]"
            raise RequestError(f"hidden_states must be {wanted}, got {list(states.shape)}")
        if states.shape[2] != known[1]:
            states = self.text_projector(states)
        joined = torch.cat([states, text], dim=1)
        if inputs.num_tokens is None:
            return joined
        real = torch.arange(joined.shape[1], device=joined.device) < inputs.num_tokens.to(joined.device)[:, None]
        return joined.masked_fill(~real[:, :, None], 0)

    def branch_tokens(self, inputs: DiTInputs) -> int:
        """The tokens of the first reference, or all."""
        if cast(BindWeaveInputs, inputs).all_in_branch and inputs.image_context is not None:
            return inputs.image_context.shape[1]
        return super().branch_tokens(inputs)
