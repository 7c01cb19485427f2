"""What is asked for: the request as a user gives it, and its settings with nothing left open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from wan_core.errors import RequestError
from wan_core.files import damage_of, hash_file
from wan_core.sampling import SOLVERS

Value = TypeVar("Value")

_RANGES: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "num_inference_steps": (1, 1000),
    "flow_shift": (0.001, 1000),
    "fps": (1, 240),
}


@dataclass(frozen=True, kw_only=True)
class Experts(Generic[Value]):
    """A value for the high-noise and one for the low-noise expert of a two-expert model."""

    high: Value
    low: Value


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """A model's own settings; a request that leaves one open gets it from here. Sizes in pixels."""

    num_frames: int
    fps: float
    width: int
    height: int
    num_inference_steps: int
    flow_shift: float
    guidance_scale: float | Experts[float]
    negative_prompt: str
    solver: str = "unipc"


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(SamplingDefaults):
    """The settings of one video: a request's own where it has them, else the model's. Nothing is open."""

    seed: int


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What a user asks for. ``None`` means the model's default; ``negative_prompt=""`` means an empty one.

    ``width`` and ``height`` are pixels (image tasks: the area they span); ``guidance_scale`` is one number or one
    per expert; ``seed`` is a non-negative integer. Fields that a subclass adds become command-line options when
    their metadata has ``option`` (the option names) and ``help``; further metadata:

    - ``parse``, ``metavar``: the function that reads the option's text (raising ``RequestError``), and its name in help
    - ``output``: the field names a file to write, which several videos of one command number as they number theirs
    - ``part``: the field says where this part of the model comes from
    - ``lora``: the flag merges this LoRA file of the checkpoint's folder into the network
    - ``recorded``: ``False`` keeps the field out of the record of how an output was made, as ``output`` does
    """

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: int | None = None
    num_inference_steps: int | None = None
    flow_shift: float | None = None
    guidance_scale: float | Experts[float] | None = None
    solver: str | None = None
    seed: int = 0

    def sampling(self, defaults: SamplingDefaults) -> SamplingSettings:
        """The settings of this request, checked; what is open comes from ``defaults``. Raises ``RequestError``."""
        if (self.width is None) != (self.height is None):
            raise RequestError("width and height belong together: give both or neither")
        self.validate()
        own = {f.name: getattr(self, f.name) for f in fields(SamplingSettings)}
        return SamplingSettings(**{name: getattr(defaults, name) if own[name] is None else own[name] for name in own})

    def validate(self) -> None:
        """Check the values that need no model. Raises ``RequestError``."""
        if not self.prompt.strip():
            raise RequestError("prompt is empty; describe the video, e.g. --prompt 'a cat surfs a wave'")
        for name in ("prompt", "negative_prompt"):
            damage = damage_of(getattr(self, name) or "")
            if damage is not None:
                raise RequestError(f"{name}, character {damage[0] + 1}: {damage[1]}; write it again in UTF-8")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RequestError(f"{name} must be {low} to {high}, got {value}")
        if self.solver is not None and self.solver not in SOLVERS:
            raise RequestError(f"solver must be one of {', '.join(SOLVERS)}, got {self.solver!r}")
        scales = self.guidance_scale
        for scale in (scales.high, scales.low) if isinstance(scales, Experts) else (scales,):
            if scale is not None and not 0 <= scale <= 100:
                raise RequestError(f"guidance_scale must be 0 to 100, got {scale}")

    def record(self) -> dict[str, Any]:
        """Every given value as plain JSON data, for the record kept with an output; files by name only."""
        kept = [f for f in fields(self) if f.metadata.get("recorded", True) and not f.metadata.get("output")]
        return {f.name: plain(getattr(self, f.name)) for f in kept if getattr(self, f.name) is not None}


def plain(value: Any) -> Any:
    """A field's value as JSON data; a file by its name alone."""
    if isinstance(value, Experts):
        return {"high": value.high, "low": value.low}
    if isinstance(value, Path):
        return value.name
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def content_hashes(request: GenerationRequest) -> dict[str, str | list[str]]:
    """The content of the files that a request's recorded fields name: the first 16 digits of each one's SHA-256.

    Fields that name a part of the model, a folder or no file are left out. Raises ``CheckpointError`` for a file that
    cannot be read.
    """
    found: dict[str, str | list[str]] = {}
    for each in fields(request):
        value = getattr(request, each.name)
        paths = value if isinstance(value, tuple) else (value,)
        is_input = each.metadata.get("recorded", True) and not {"output", "part"} & set(each.metadata)
        if is_input and paths and all(isinstance(path, Path) and path.is_file() for path in paths):
            digests = [hash_file(path)[:16] for path in paths]
            found[each.name] = digests if isinstance(value, tuple) else digests[0]
    return found
