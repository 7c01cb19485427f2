"""What a user asks for: which images, and where in the video they stay."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wan_core import RequestError
from wan_core.tasks import GenerationRequest

if TYPE_CHECKING:
    from PIL import Image


class FrameRange(NamedTuple):
    """Frames ``start``, ``start + step``, ... before ``stop`` (``None``: the end), counted from 0."""

    start: int
    stop: int | None
    step: int


def parse_frames(text: str) -> FrameRange:
    """Read ``0:13``, ``8:``, ``:49:4``: first frame, end (left out), step. Raises ``RequestError``."""
    match = re.fullmatch(r"\s*(\d{0,9}):(\d{0,9})(?::(\d{1,9}))?\s*", text)
    found = FrameRange(int(match[1] or 0), int(match[2]) if match[2] else None, int(match[3] or 1)) if match else None
    if found is None or found.step < 1 or (found.stop is not None and found.stop <= found.start):
        raise RequestError(
            f"frames are START:STOP or START:STOP:STEP, counted from 0 without STOP itself, such as 0:13; got {text!r}"
        )
    return found


def parse_positions(text: str) -> tuple[int, ...]:
    """Read ``0,8,20``: latent frames, one per image. Raises ``RequestError``."""
    if not re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*)*", text):
        raise RequestError(f"latent frames are whole numbers joined by commas, such as 0,8,20; got {text!r}")
    return tuple(int(part) for part in text.split(","))


@dataclass(frozen=True, kw_only=True)
class MI2VRequest(GenerationRequest):
    """A prompt and the images that the video shows at fixed places.

    The images are ``images`` (a folder stands for the images in it, by name), the frames ``frames`` of ``clip``,
    or in Python ``pictures``; the first one sets the aspect ratio within the area ``width`` x ``height``. They become
    the first latent frames, or those that ``at`` names. Latent frame 0 is frame 0 of the video, latent frame k the
    four frames 4k-3 to 4k. ``joint`` encodes them as one clip instead: 4n+1 consecutive frames are n+1 latent frames.
    """

    images: tuple[Path, ...] = field(
        default=(),
        metadata={"option": ("--images",), "help": "Pictures, or folders of pictures in the order of their names."},
    )
    at: tuple[int, ...] | None = field(
        default=None,
        metadata={
            "option": ("--at",),
            "parse": parse_positions,
            "metavar": "N,N,...",
            "help": "The latent frame of each picture, counted from 0; default: the first ones in order.",
        },
    )
    joint: bool = field(
        default=False,
        metadata={
            "option": ("--joint",),
            "help": "Encode the pictures together, as 4n+1 consecutive frames: n+1 latent frames.",
        },
    )
    clip: Path | None = field(
        default=None, metadata={"option": ("--clip",), "help": "Take the pictures from this video."}
    )
    frames: str | None = field(
        default=None,
        metadata={"option": ("--frames",), "help": "Which frames of --clip: START:STOP or START:STOP:STEP."},
    )
    preview: Path | None = field(
        default=None,
        metadata={
            "option": ("--preview",),
            "output": True,
            "help": "Write a .png of the pictures beside the frames made of them, with the PSNR of each.",
        },
    )
    pictures: tuple[Image.Image, ...] = field(default=(), metadata={"recorded": False})

    def validate(self) -> None:
        super().validate()
        sources = [name for name in ("images", "clip", "pictures") if getattr(self, name)]
        if not sources:
            raise RequestError("pictures are needed: --images a.png b.png ..., --images FOLDER or --clip VIDEO")
        if len(sources) > 1:
            raise RequestError(f"give the pictures in one way, not by {' and '.join(sources)}")
        if self.frames is not None:
            if self.clip is None:
                raise RequestError(f"--frames {self.frames} chooses frames of a video; name it with --clip")
            parse_frames(self.frames)
        if self.joint and self.at is not None:
            raise RequestError(
                "--joint makes the beginning of the video of consecutive frames; leave out --at, or leave out --joint"
            )
