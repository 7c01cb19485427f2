"""The names in LoRA files: which layer a tensor belongs to, and what it is there.

Spellings: peft (``base_model.model.L.lora_A.weight``), diffusers (``transformer.L.lora_A.weight`` and
``.lora.down.weight``), kohya and musubi (``lora_unet_L.lora_down.weight`` with underscores in L), ComfyUI
(``diffusion_model.L``), lightx2v (``L.diff``, ``L.diff_b``, ``L.diff_m``). Layer names are official or diffusers',
decided once per file.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from wan_core.checkpoints.formats import CheckpointFormat, detect_format, rename
from wan_core.checkpoints.prefixes import unwrapped

Role = Literal["down", "up", "bias", "alpha", "diff", "diff_b", "diff_m", "whole", "whole_b"]
"""The halves of an update, the change of the bias that goes with it, and its scale; changes; and whole new values."""

_ADAPTER = r"(?:\.(?!weight$|bias$)[^.]+)?"  # peft puts the adapter's name there
_ENDINGS: tuple[tuple[Role, str], ...] = (
    ("down", rf"lora_A{_ADAPTER}(?:\.weight)?|lora_down\.weight|lora(?:_linear_layer)?\.down\.weight"),
    ("up", rf"lora_B{_ADAPTER}(?:\.weight)?|lora_up\.weight|lora(?:_linear_layer)?\.up\.weight"),
    ("bias", rf"lora_B{_ADAPTER}\.bias|lora_up\.bias"),
    ("alpha", "alpha"),
    ("diff_b", "diff_b"),
    ("diff_m", "diff_m"),
    ("diff", "diff"),
    ("whole", rf"modules_to_save{_ADAPTER}\.weight"),
    ("whole_b", rf"modules_to_save{_ADAPTER}\.bias"),
)
_ROLES = tuple((role, re.compile(rf"(?P<layer>.+)\.(?:{ending})")) for role, ending in _ENDINGS)

OTHER_KINDS: Mapping[str, str] = {
    r"dora_scale$|lora_magnitude_vector": "DoRA",
    r"\.hada_w[12]": "LoHa",
    r"\.lokr_w[12]": "LoKr",
    r"\.oft_(?:blocks|diag)": "OFT",
    r"\.lora_mid\.": "LoCon with a middle tensor",
}
"""Adapters that are no plain low-rank updates, by a pattern that only their names match."""

_DOTTED = (
    "base_model.model.", "base_model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "transformer_2.",
    "pipe.dit.", "dit.", "unet.", "model.", "generator_ema.", "generator.", "state_dict.", "module.",
)  # fmt: skip
_JOINED = ("lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_")


@dataclass(frozen=True)
class LayerPart:
    """What one tensor of a LoRA file is: its layer, in the file's spelling without prefixes, and its role there."""

    layer: str
    role: Role


def part_of(name: str) -> LayerPart | None:
    """The part that a tensor of this name is, or None when it belongs to no LoRA."""
    name = unwrapped(name)
    for role, pattern in _ROLES:
        match = pattern.fullmatch(name)
        if match is not None:
            return LayerPart(without_prefixes(match["layer"]), role)
    return None


def without_prefixes(name: str) -> str:
    """A name without what programs put in front of it."""
    while True:
        prefix = next((prefix for prefix in (*_DOTTED, *_JOINED) if name.startswith(prefix)), None)
        if prefix is None:
            return name
        name = name.removeprefix(prefix)


def is_lora(names: Iterable[str]) -> bool:
    """Whether a file with these tensor names is a LoRA, of any kind, also one that cannot be merged."""
    return any(part_of(name) is not None or other_kind([name]) is not None for name in names)


def other_kind(names: Iterable[str]) -> tuple[str, str] | None:
    """The kind of adapter that a file holds instead of a plain LoRA, with a name that shows it."""
    for name in names:
        for pattern, kind in OTHER_KINDS.items():
            if re.search(pattern, name):
                return kind, name
    return None


class LayerNames:
    """From the layers of a file, in its ``format``, to those of a network whose tensors are called ``names``."""

    def __init__(self, layers: Collection[str], names: Collection[str], formats: Sequence[CheckpointFormat]) -> None:
        self.format = detect_format([f"{layer}.weight" for layer in layers], formats)
        self._rules = dict(self.format.table(layers))
        self._joined = _joined_layers(names, formats) if any(_is_joined(layer) for layer in layers) else {}

    def native(self, layer: str) -> str | None:
        """The native layer, perhaps one that the network lacks; None for one that networks leave out on purpose."""
        return self._joined.get(layer, layer) if _is_joined(layer) else rename(layer, self._rules)


def _is_joined(layer: str) -> bool:
    """Whether underscores may stand for dots; names that are so anyway (``patch_embedding``) are in the table, too."""
    return "." not in layer and "_" in layer


def _joined_layers(names: Collection[str], formats: Sequence[CheckpointFormat]) -> dict[str, str]:
    """Native layers by every spelling with underscores: of native names and of each format's."""
    layers = {name.rpartition(".")[0] for name in names} | {name for name in names if name.endswith(".modulation")}
    found: dict[str, str] = {}
    for candidate in formats:
        rules = {ours: theirs for theirs, ours in reversed(candidate.table(names)) if ours is not None}
        for layer in layers:
            found[(rename(layer, rules) or layer).replace(".", "_")] = layer
    return {**found, **{layer.replace(".", "_"): layer for layer in layers}}
