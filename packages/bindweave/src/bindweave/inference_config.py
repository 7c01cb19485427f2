"""The original's ``inference_model_s2v.json``: its keys as our options, and those that say nothing here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bindweave.samples import read_object, safe_path
from wan_core import RequestError
from wan_core.files import plain_text

_FOLDERS = {"ae": "vae", "text_encoder": "text_encoder", "tokenizer": "tokenizer", "image_encoder": "image_encoder",
            "predictor": "dit"}  # fmt: skip
_WITHOUT_EFFECT = (
    "save_path", "prompt", "image", "use_prompt_preprocess", "device", "frame_interval", "model_id", "num_frames",
)  # fmt: skip
_LARGEST = 2**31
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """``values`` are options of the command by their names, ``parts`` places of parts, ``notes`` what was not used."""

    samples: Path
    base_img_dir: Path
    output_dir: Path
    values: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_inference_config(path: Path) -> InferenceConfig:
    """Read a config of the original. Paths are relative to where the command runs, as there.

    Raises RequestError for a file that is no such config, for values of another type, and for paths with ``..``.
    """
    shown = plain_text(path)
    content = read_object(path, "META_PATH, BASE_IMG_DIR, OUT_DIR and more")
    reader = _Reader(shown, content)
    places = {key: reader.path(key) for key in ("META_PATH", "BASE_IMG_DIR", "OUT_DIR")}
    values = {**reader.size(), **reader.diffusion(), **reader.runtime()}
    known = {*places, *_FOLDERS, *_WITHOUT_EFFECT, "pipeline_config", "fps", "dtype", "diffusion"}
    unknown = sorted(set(content) - known)
    notes = (f"{shown}: {', '.join(map(plain_text, unknown[:5]))} say nothing here",) if unknown else ()
    return InferenceConfig(
        samples=places["META_PATH"],
        base_img_dir=places["BASE_IMG_DIR"],
        output_dir=places["OUT_DIR"],
        values=values,
        parts=reader.parts(),
        notes=notes,
    )


class _Reader:
    """The values of a config, each checked, with messages that name the key."""

    def __init__(self, shown: str, content: Mapping[str, Any]) -> None:
        self.shown, self.content = shown, content

    def path(self, key: str) -> Path:
        value = self.content.get(key)
        if not isinstance(value, str) or not value:
            raise RequestError(f"{self.shown}: {key} must be a path, got {value!r}")
        return safe_path(value, f"{self.shown}: {key}")

    def section(self, key: str) -> Mapping[str, Any]:
        value = self.content.get(key, {})
        if not isinstance(value, dict):
            raise RequestError(f"{self.shown}: {key} must be an object, got {str(value)[:60]!r}")
        return value

    def number(self, section: str, key: str, kind: type[int] | type[float]) -> Any:
        """A number of a section ("": the top), or None where it is left out."""
        values = self.section(section) if section else self.content
        value = values.get(key)
        if value is None:
            return None
        is_number = type(value) in (int, float) and abs(value) <= _LARGEST
        if not is_number or (kind is int and value != int(value)):
            raise RequestError(f"{self.shown}: {key} must be a number, got {str(value)[:60]!r}")
        return kind(value)

    def size(self) -> dict[str, Any]:
        size = self.section("pipeline_config").get("input_size")
        if size is None:
            return {}
        if not isinstance(size, list) or len(size) != 3 or not all(type(side) is int and side > 0 for side in size):
            raise RequestError(f"{self.shown}: input_size must be [frames, height, width], got {str(size)[:60]!r}")
        return {"num_frames": size[0], "size": (size[2], size[1])}

    def diffusion(self) -> dict[str, Any]:
        names = {"num_inference_steps": int, "guidance_scale": float, "flow_shift": float}
        found = {name: self.number("diffusion", name, kind) for name, kind in names.items()}
        method = self.section("diffusion").get("model_id", self.section("diffusion").get("method"))
        if method is not None and "unipc" not in str(method).lower():
            raise RequestError(f"{self.shown}: the diffusion is UniPC, got {str(method)[:60]!r}; see --sample-solver")
        return {name: value for name, value in found.items() if value is not None}

    def runtime(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        fps, interval = self.number("", "fps", int), self.number("", "frame_interval", int) or 1
        if fps is not None:
            found["fps"] = fps // max(interval, 1)
        dtype = self.content.get("dtype")
        if dtype is not None:
            found["dtype"] = _DTYPES.get(str(dtype), str(dtype))
        offload = self.section("pipeline_config").get("cpu_offload")
        if offload is not None:
            if not isinstance(offload, bool):
                raise RequestError(f"{self.shown}: cpu_offload must be true or false, got {str(offload)[:60]!r}")
            found["offload"] = offload
        return found

    def parts(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for key, name in _FOLDERS.items():
            place = self.section(key).get("from_pretrained")
            if place is None:
                continue
            if not isinstance(place, str) or not place:
                raise RequestError(f"{self.shown}: {key}.from_pretrained must be a path, got {str(place)[:60]!r}")
            found[name] = safe_path(place, f"{self.shown}: {key}.from_pretrained")
        return found
