"""What a user asks for: a prompt, one to four reference pictures, and the language model's states of both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from wan_core import RequestError
from wan_core.tasks import GenerationRequest

MAX_REFERENCES = 4
"""How many pictures the model was trained with; the first ones are taken."""

SCHEDULES = ("wan", "diffusers")
"""The grids of UniPC."""


@dataclass(frozen=True, kw_only=True)
class SubjectRequest(GenerationRequest):
    """A prompt and the pictures of its subjects, in the order in which the prompt's states were made from them.

    ``hidden_states`` and ``hidden_states_negative`` are files of Qwen2.5-VL's states, [1, S, dim].
    """

    images: tuple[Path, ...] = field(
        default=(),
        metadata={"option": ("--image", "--images"), "help": "Pictures of who or what appears: one to four."},
    )
    hidden_states: Path | None = field(
        default=None,
        metadata={
            "option": ("--hidden-states",),
            "help": "The language model's states of prompt and pictures: a file.",
        },
    )
    hidden_states_negative: Path | None = field(
        default=None,
        metadata={"option": ("--hidden-states-negative",), "help": "The same of the negative prompt; for guidance."},
    )
    connector: Path | None = field(
        default=None,
        metadata={
            "option": ("--connector",),
            "part": "connector",
            "help": "A connector in place of the network's own, as 'bindweave train' writes.",
        },
    )
    all_in_branch: bool = field(
        default=False,
        metadata={
            "option": ("--all-in-branch",),
            "help": "CLIP tokens of all pictures go through the image branch; the release knows those of the first.",
        },
    )

    schedule: str = field(
        default="wan",
        metadata={
            "option": ("--schedule",),
            "help": "How UniPC spaces its steps: as Wan does, or as diffusers does in newer releases (diffusers).",
        },
    )

    def validate(self) -> None:
        super().validate()
        if self.schedule not in SCHEDULES:
            raise RequestError(f"schedule must be {' or '.join(SCHEDULES)}, got {self.schedule!r}")
        if not self.images:
            raise RequestError("a picture of the subject is needed: --image FILE, one to four times")
        if self.hidden_states is None:
            raise RequestError(
                "the language model's states are needed: --hidden-states FILE, which 'bindweave extract' writes"
            )
