"""The factor of a low-rank update: ``alpha / rank``, from the file's tensors or from the settings that go with it."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wan_core.checkpoints.readers.sources import TensorSource
from wan_core.errors import CheckpointError

PEFT_CONFIG = "adapter_config.json"
_METADATA = "lora_adapter_metadata"  # where diffusers keeps peft's settings
_MAX_BYTES = 4_000_000


@dataclass(frozen=True)
class ScaleSettings:
    """What peft's settings say of ``alpha``; ``patterns`` are regular expressions over the ends of layer names."""

    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)
    by_root: bool = False

    def factor(self, layer: str, rank: int, stored_alpha: float | None) -> float:
        """``alpha / rank``, with the alpha stored beside the tensors first, and alpha = rank where none is known."""
        alpha = stored_alpha
        if alpha is None:
            alpha = next((value for end, value in self.patterns.items() if _ends_with(layer, end)), self.alpha)
        if alpha is None:
            return 1.0
        return alpha / math.sqrt(rank) if self.by_root and stored_alpha is None else alpha / rank


def scale_settings(source: TensorSource) -> ScaleSettings:
    """The settings in a file's metadata (diffusers) or in ``adapter_config.json`` beside it (peft).

    Raises CheckpointError when they are there and make no sense.
    """
    text, where = source.metadata.get(_METADATA), str(source.path)
    beside = source.path.with_name(PEFT_CONFIG)
    if text is None and source.path.name.startswith("adapter_model") and beside.is_file():
        text, where = _text(beside), str(beside)
    if text is None:
        return ScaleSettings()
    try:
        loaded = json.loads(text)
        values: dict[str, Any] = {name.rpartition(".")[2]: value for name, value in loaded.items()}
        alpha = values.get("lora_alpha")
        return ScaleSettings(
            alpha=None if alpha is None else _finite(alpha),
            patterns={str(name): _finite(value) for name, value in (values.get("alpha_pattern") or {}).items()},
            by_root=bool(values.get("use_rslora")),
        )
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the LoRA settings in {where} are damaged; fetch the file again") from error


def stored_alpha(source: TensorSource, name: str) -> float:
    """An ``alpha`` tensor's value. Raises CheckpointError when it is no finite number."""
    info = source.info(name)
    value = source.read(name).float().reshape(-1)[0].item() if info.numel == 1 else math.nan
    if not math.isfinite(value):
        raise CheckpointError(f"{source.path}: {name} is not one finite number; the file is damaged, fetch it again")
    return float(value)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not finite")
    return number


def _ends_with(layer: str, pattern: str) -> bool:
    # Compared as text, too: a stranger's regular expression could be made to run for ever.
    plain = pattern.lstrip("^").rstrip("$").replace("\\", "")
    return re.fullmatch(rf"(?:.*\.)?{re.escape(plain)}", layer) is not None


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path} is larger than any settings of a LoRA; is it the right file?")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
