"""What is asked for of a causal video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from selfforcing_unianimate.pose_options import PosedRequest
from wan_core import RequestError
from wan_core.tasks import SamplingSettings

_MAX_TIME = 1000


def parse_timesteps(text: str) -> tuple[float, ...]:
    """Read times that are separated by commas. Raises RequestError for anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise RequestError(f"times are numbers with commas between, such as 1000,750,500,250; got {text!r}") from error


@dataclass(frozen=True, kw_only=True)
class CausalRequest(PosedRequest):
    """A prompt, and if wanted a picture, a video to ``continue_from`` and a motion.

    Behind a video ``num_frames`` count from its last frame on. ``timesteps`` are the times of the solver ``renoise``,
    shifted as the usual ones are, or as the network sees them if ``unwarped``. ``window`` and ``sink`` are latent
    frames, as of ``FrameBlocks``. The motion goes to both branches of guidance unless ``pose_branch`` says otherwise.
    """

    image: Path | None = field(
        default=None,
        metadata={"option": ("--image",), "help": "The picture that the video starts with, or of who moves."},
    )
    continue_from: Path | None = field(
        default=None,
        metadata={
            "option": ("--continue", "--continue-from"),
            "help": "A video to go on from: what comes next is made.",
        },
    )
    timesteps: tuple[float, ...] | None = field(
        default=None,
        metadata={
            "option": ("--timesteps",),
            "parse": parse_timesteps,
            "metavar": "T,T,...",
            "help": "Times of the steps of renoise, falling from 1000, before the shift; default: evenly spaced.",
        },
    )
    unwarped: bool = field(
        default=False,
        metadata={"option": ("--unwarped",), "help": "--timesteps are what the network sees; they are not shifted."},
    )
    window: int | None = field(
        default=None,
        metadata={"option": ("--window",), "help": "Latent frames that a block looks back on, its own too."},
    )
    sink: int | None = field(
        default=None, metadata={"option": ("--sink",), "help": "First latent frames that always stay in sight."}
    )

    def validate(self) -> None:
        super().validate()
        if self.timesteps is None:
            if self.unwarped:
                raise RequestError("--unwarped says what --timesteps are, and none are given")
            return
        falls = all(one > other for one, other in pairwise((*self.timesteps, 0.0)))
        if not (self.timesteps and falls and self.timesteps[0] <= _MAX_TIME):
            times = ", ".join(f"{time:g}" for time in self.timesteps)
            raise RequestError(f"--timesteps fall from at most {_MAX_TIME} and end above 0, got {times}")
        if self.num_inference_steps not in (None, len(self.timesteps)):
            raise RequestError(
                f"{len(self.timesteps)} timesteps are as many steps, and {self.num_inference_steps} are asked for; "
                "leave --sample-steps out"
            )

    @property
    def solver_options(self) -> Mapping[str, Any]:
        """What the solver takes beside the number of steps and the shift."""
        if self.timesteps is None:
            return {}
        return {"timesteps": self.timesteps, "shift_timesteps": not self.unwarped}

    def timed(self, settings: SamplingSettings) -> SamplingSettings:
        """The settings with the number of steps that ``timesteps`` make. Raises RequestError for another solver."""
        if self.timesteps is None:
            return settings
        if settings.solver != "renoise":
            raise RequestError(f"--timesteps are those of --sample-solver renoise, and the solver is {settings.solver}")
        return replace(settings, num_inference_steps=len(self.timesteps))
