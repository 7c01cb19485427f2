"""What goes with the tensors of an adapter: alpha, rank, and the settings that peft and diffusers keep beside them."""

import contextlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan_core.checkpoints.lora.patterns import PatternTable
from wan_core.checkpoints.readers.sources import TensorSource
from wan_core.errors import CheckpointError
from wan_core.files import unique_keys

PEFT_CONFIG = "adapter_config.json"
_METADATA = "lora_adapter_metadata"  # where diffusers keeps peft's settings
_MAX_BYTES = 4_000_000
_PEFT_ROOT = "base_model.model."

_TOLD = re.compile(r"(?:^|\.)(?:lora_|network_)?alphas?(?:\.|$)")

_MERGED_TYPES = ("LORA", "LOHA", "LOKR")
# Ways to start a training that leave the weights as they were; others (pissa, olora, corda, loftq, lora_ga) take what
# the pair starts with out of them, so that the file changes weights which nobody else has.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "true", "false")
_PLAIN_FLAGS = ("use_rslora", "use_dora", "use_effective_conv2d")
# Settings whose presence changes what is computed, beside every use_... and ..._config that is not known.
_NOT_MERGED = ("layer_replication", "alora_invocation_tokens", "target_parameters", "trainable_token_indices")
_NO_EFFECT = ("runtime_config", "loftq_config", "eva_config", "megatron_config", "megatron_core")


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """peft's settings of an adapter, as far as they say how its tensors change weights.

    ``whole`` are the ends of names of modules that are saved whole, ``has_biases`` says that biases are, ``decomposed``
    that every layer has a magnitude (DoRA).
    """

    alpha: float | None = None
    alphas: PatternTable | None = None
    rank: float | None = None
    ranks: PatternTable | None = None
    by_root: bool = False
    decomposed: bool = False
    has_biases: bool = False
    whole: tuple[str, ...] = ()

    def factor(self, module: str, rank: int | None, stored_alpha: float | None) -> float:
        """``alpha / rank`` of a module, with the alpha stored beside its tensors first; 1 where nothing is known.

        ``module`` is its name as peft knows it; ``rank`` None means that the tensors have none, as a LoKr of two whole
        matrices, whose stored alpha lycoris and ComfyUI pass over while peft takes the settings' alpha and rank.
        """
        if stored_alpha is not None:
            return 1.0 if rank is None else stored_alpha / rank
        alpha = _first(self.alphas, module, self.alpha)
        divisor = _first(self.ranks, module, self.rank) if rank is None else rank
        if alpha is None or not divisor:
            return 1.0
        return alpha / math.sqrt(divisor) if self.by_root else alpha / divisor

    def times_whole(self, module: str) -> int:
        """How many of a module and those that it is in were saved whole: peft compares the ends of names."""
        parts = module.split(".")
        return sum(".".join(parts[: index + 1]).endswith(self.whole) for index in range(len(parts)))


def adapter_settings(source: TensorSource) -> Mapping[str, AdapterSettings]:
    """The settings in a file's metadata (diffusers) or in ``adapter_config.json`` beside it (peft), by component.

    The component is ``transformer`` or ``transformer_2`` in diffusers' files, empty in peft's. Raises CheckpointError
    when they are there and make no sense, or say that the adapter is one that cannot be merged.
    """
    text, where = source.metadata.get(_METADATA), str(source.path)
    beside = source.path.with_name(PEFT_CONFIG)
    if text is None and beside.is_file() and _belongs(source):
        text, where = _text(beside), str(beside)
    if text is None:
        return {}
    try:
        components: dict[str, dict[str, Any]] = {}
        for name, value in json.loads(text, object_pairs_hook=unique_keys).items():
            component, _, key = name.rpartition(".")
            components.setdefault(component, {})[key] = value
        return {component: _settings(values, where) for component, values in components.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the LoRA settings in {where} are damaged; fetch the file again") from error


def _belongs(source: TensorSource) -> bool:
    """Whether settings beside a file are its own: it has peft's name, or its tensors have, and no other file has."""
    named = [path.name for path in source.path.parent.glob("adapter_model*")]
    return source.path.name in named or (not named and any(name.startswith(_PEFT_ROOT) for name in source))


def module_name(layer: str, prefix: str, component: str) -> str:
    """A layer of a file as peft calls it: without peft's own root, or without the pipeline's component."""
    if component:
        return layer.removeprefix(prefix)
    return layer.rpartition(_PEFT_ROOT)[2]


def stored_alpha(source: TensorSource, name: str) -> float:
    """An ``alpha`` tensor's value. Raises CheckpointError when it is no finite number."""
    info = source.info(name)
    value = source.read(name).float().reshape(-1)[0].item() if info.numel == 1 else math.nan
    if not math.isfinite(value):
        raise CheckpointError(f"{source.path}: {name} is not one finite number; the file is damaged, fetch it again")
    return float(value)


def told_alpha(source: TensorSource) -> tuple[str, float] | None:
    """An alpha for all layers that a file states beside them, in a trainer's own way, with its name; else None.

    That it was used is not certain: programs that convert a LoRA take alpha into its tensors and copy such values.
    """
    for name in source:
        if _TOLD.search(name) and "." not in name and source.info(name).numel == 1:
            return name, stored_alpha(source, name)
    for name, text in source.metadata.items():
        if _TOLD.search(name):
            with contextlib.suppress(ValueError):
                return name, _finite(text)
    return None


def _settings(values: Mapping[str, Any], where: str) -> AdapterSettings:
    _check_kind(values, where)
    # A LoRA's is lora_alpha, a LoHa's and a LoKr's alpha.
    alpha = next((values[key] for key in ("lora_alpha", "alpha") if values.get(key) is not None), None)
    return AdapterSettings(
        alpha=None if alpha is None else _finite(alpha),
        alphas=_patterns(values, "alpha_pattern", where),
        rank=None if values.get("r") is None else _finite(values["r"]),
        ranks=_patterns(values, "rank_pattern", where),
        by_root=bool(values.get("use_rslora")),
        decomposed=bool(values.get("use_dora")),
        has_biases=values.get("bias", "none") not in ("none", None),
        whole=tuple(str(name) for name in values.get("modules_to_save") or ()),
    )


def _check_kind(values: Mapping[str, Any], where: str) -> None:
    kind = str(values.get("peft_type") or "LORA").rpartition(".")[2].upper()
    if kind not in _MERGED_TYPES:
        raise CheckpointError(f"{where} says that this is {kind}, which cannot be merged; get it as a plain LoRA")
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{where} says init_lora_weights {start[:40]!r}: it changes weights that peft altered at the start of its "
            "training; save it as a plain LoRA (peft's path_initial_model_for_weight_conversion)"
        )
    unknown = [key for key, value in values.items() if value and value != [] and _changes(key)]
    if unknown:
        value = str(values[unknown[0]])[:60]
        raise CheckpointError(f"{where} says {unknown[0]} = {value}, which cannot be merged; get it as a plain LoRA")


def _changes(key: str) -> bool:
    is_variant = (key.startswith("use_") and key not in _PLAIN_FLAGS) or key.endswith("_config")
    return key in _NOT_MERGED or (is_variant and key not in _NO_EFFECT)


def _patterns(values: Mapping[str, Any], key: str, where: str) -> PatternTable | None:
    found = values.get(key) or {}
    table = {str(pattern): _finite(value) for pattern, value in found.items()}
    return PatternTable(table, f"{key} in {where}") if table else None


def _first(table: PatternTable | None, module: str, otherwise: float | None) -> float | None:
    found = None if table is None else table.get(module)
    return otherwise if found is None else found


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not finite")
    return number


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path} is larger than any settings of a LoRA; is it the right file?")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
