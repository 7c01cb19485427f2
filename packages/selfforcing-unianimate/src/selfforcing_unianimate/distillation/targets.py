"""What a teacher made for a student: finished latents, states on the way, and the conditions of both.

A folder of targets is a cache of ``wan_core.training``, made by ``sfu make-targets``. Its examples have the names of
the teacher's training (``pose_training``), so that it can be trained on as any cache; ``states`` come on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfforcing_unianimate.pose_training import MOTION, REFERENCE, unpack_poses
from wan_core import CheckpointError, RequestError
from wan_core.files import plain_text
from wan_core.training import Cache

COMMAND = "sfu make-targets"
VERSION = 1
LATENTS, STATES, CONTEXT, EMPTY, CHANNELS, IMAGE, NEGATIVE = (
    "latents", "states", "context", "empty", "channels", "image", "negative",
)  # fmt: skip
"""Names of tensors; ``negative`` is that of all examples together."""
_REMEDY = f"make it anew with '{COMMAND}'"


@dataclass(frozen=True, kw_only=True)
class TargetExample:
    """One example, on the CPU.

    ``latents`` [C, T, h, w] are the teacher's result and ``states`` [S, C, T, h, w] its latents before the steps of
    `Targets.seen`, float32. ``context`` [L, dim] are text states of the ``prompt`` and ``empty`` [1, dim] those of no
    text. ``channels`` [stride + C, T, h, w] are mask and encoded picture without any skeleton, ``image`` [tokens, dim]
    its CLIP states where the teacher has them. ``motion`` [3, F, H, W] and ``reference`` [H, W, 3] are skeletons,
    uint8, None where the teacher had none.
    """

    latents: Tensor
    states: Tensor
    context: Tensor
    empty: Tensor
    channels: Tensor
    image: Tensor | None
    motion: Tensor | None
    reference: Tensor | None
    prompt: str
    seed: int

    @property
    def picture(self) -> Tensor:
        """The picture as a latent frame [C, 1, h, w]: encoded alone, as the first frame of a video is."""
        return self.channels[-len(self.latents) :, :1]


class Targets:
    """A finished folder of targets: ``len``, and `TargetExample` by number.

    ``expected`` are settings that it must have. Raises RequestError for a folder that is none or is not finished,
    CheckpointError for a damaged one, ConfigError for other settings.
    """

    def __init__(self, folder: str | Path, expected: Mapping[str, Any] | None = None) -> None:
        folder = Path(folder)
        if not (folder / "cache.json").is_file():
            raise RequestError(f"{plain_text(folder)} holds no targets; make them with '{COMMAND}'")
        self.cache = Cache(folder, expected)
        settings = self.cache.settings
        if settings.get("made_by") != COMMAND:
            raise RequestError(
                f"{plain_text(folder)} is a cache of examples, not of targets; make those with '{COMMAND}'"
            )
        if settings.get("version") != VERSION:
            raise RequestError(
                f"{plain_text(folder)} has targets of version {settings.get('version')!r:.40}, and {VERSION} is read "
                f"here; {_REMEDY}"
            )
        self._check_lists()

    def _check_lists(self) -> None:
        settings, where = self.cache.settings, plain_text(self.cache.folder)
        kinds: dict[str, tuple[type | tuple[type, ...], int | None]] = {
            "prompts": (str, len(self)), "seeds": (int, len(self)), "timesteps": ((int, float), None),
            "seen": ((int, float), None),
        }  # fmt: skip
        for name, (kind, count) in kinds.items():
            values = settings.get(name)
            is_list = isinstance(values, list) and all(isinstance(value, kind) for value in values)
            if not is_list or not values or len(values) != (count or len(values)):
                raise CheckpointError(f"{where} is damaged: its {name} are no such list; {_REMEDY}")
        if len(settings["timesteps"]) != len(settings["seen"]):
            raise CheckpointError(f"{where} is damaged: timesteps and states differ in number; {_REMEDY}")

    @property
    def settings(self) -> dict[str, Any]:
        """How they were made: model, fingerprints of weights, sampling, versions, ``settings_hash``."""
        return self.cache.settings

    @property
    def timesteps(self) -> Tensor:
        """The student's timesteps that were asked for, [S] float32 from noisy to clean."""
        return torch.tensor(self.settings["timesteps"], dtype=torch.float32)

    @property
    def seen(self) -> Tensor:
        """The teacher's timesteps [S] float32 nearest to them: the noise levels of the states are ``seen / 1000``."""
        return torch.tensor(self.settings["seen"], dtype=torch.float32)

    def negative(self) -> Tensor | None:
        """Text states [L, dim] of the negative prompt; None of a teacher without guidance."""
        return self.cache.common().get(NEGATIVE)

    def row(self, number: int) -> dict[str, Tensor]:
        """The tensors of one example by name, skeletons as pixels, as ``Task.training_inputs`` takes stacked ones."""
        return {
            name: value.float() if name in (LATENTS, STATES, CHANNELS, IMAGE) else value
            for name, value in unpack_poses(self.cache[number]).items()
        }

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, number: int) -> TargetExample:
        row = self.row(number)
        missing = [name for name in (LATENTS, STATES, CONTEXT, EMPTY, CHANNELS) if name not in row]
        if missing or row[STATES].shape != (len(self.settings["seen"]), *row[LATENTS].shape):
            what = f"no {missing[0]}" if missing else f"states {list(row[STATES].shape)}"
            raise CheckpointError(f"example {number} of {plain_text(self.cache.folder)} has {what}; {_REMEDY}")
        return TargetExample(
            latents=row[LATENTS],
            states=row[STATES],
            context=row[CONTEXT],
            empty=row[EMPTY],
            channels=row[CHANNELS],
            image=row.get(IMAGE),
            motion=row.get(MOTION),
            reference=row.get(REFERENCE),
            prompt=self.settings["prompts"][number],
            seed=self.settings["seeds"][number],
        )
