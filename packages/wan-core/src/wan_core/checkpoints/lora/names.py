"""The names in LoRA files: which layer a tensor belongs to, and what it is there.

Spellings: peft (``base_model.model.L.lora_A.weight``), diffusers (``transformer.L.lora_A.weight`` and
``.lora.down.weight``), kohya and musubi (``lora_unet_L.lora_down.weight`` with underscores in L), ComfyUI
(``diffusion_model.L``), lightx2v (``L.diff``, ``L.diff_b``, ``L.diff_m``), lycoris (``L.lokr_w1``, ``L.hada_w1_a``).
Layer names are official or diffusers', decided once per file; what stands before them is found.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wan_core.checkpoints.formats import CheckpointFormat, detect_format, rename
from wan_core.checkpoints.prefixes import by_prefix, known_layers, unwrapped
from wan_core.errors import CheckpointError

if TYPE_CHECKING:
    from wan_core.checkpoints.readers.sources import TensorSource

Role = str
"""What a tensor is to its layer.

Halves of a pair (``down``, ``up``), the bias that goes with it, ``alpha``; factors of a LoHa or LoKr under lycoris'
names; DoRA's ``magnitude`` of outputs and ``dora_scale`` of either axis; changes (``diff``, ``diff_b`` of the bias,
``diff_m`` of the modulation); whole new values (``whole``, ``whole_b``).
"""

_ADAPTER = r"(?:\.(?!weight$|bias$)[^.]+)?"  # peft puts the adapter's name there
_ENDINGS: tuple[tuple[Role, str], ...] = (
    ("down", rf"lora_A{_ADAPTER}(?:\.weight)?|lora_down\.weight|lora(?:_linear_layer)?\.down\.weight"),
    ("up", rf"lora_B{_ADAPTER}(?:\.weight)?|lora_up\.weight|lora(?:_linear_layer)?\.up\.weight"),
    ("bias", rf"lora_B{_ADAPTER}\.bias|lora_up\.bias"),
    ("alpha", "alpha"),
    ("diff_b", "diff_b|b_norm"),
    ("diff_m", "diff_m"),
    ("diff", "diff|w_norm"),
    ("whole", rf"modules_to_save{_ADAPTER}\.weight|set_weight"),
    ("whole_b", rf"modules_to_save{_ADAPTER}\.bias|base_layer\.bias"),
    ("magnitude", rf"lora_magnitude_vector{_ADAPTER}(?:\.weight)?"),
    ("dora_scale", "dora_scale"),
    ("", rf"(?P<factor>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)){_ADAPTER}"),
)
_ROLES = tuple((role, re.compile(rf"(?P<layer>.+)\.(?:{ending})")) for role, ending in _ENDINGS)

_COPY = re.compile(r"(?<=\.)modules_to_save\.(?:(?!weight$|bias$)[^.]+\.)?")

OTHER_KINDS: Mapping[str, str] = {
    r"\.oft_[rR]|\.oft_s|\.boft_[RPs]": "OFT or BOFT",
    r"\.oft_(?:blocks|diag)": "OFT or BOFT",
    r"\.a1\.weight$|\.glora_": "GLoRA",
    r"\.on_input$|\.ia3_l": "IA3",
    r"vera_lambda_|vera_[AB]\b": "VeRA",
    r"\.lora_mid\.": "LoCon with a middle tensor",
    r"\.lora_E\b|\.ranknum": "AdaLoRA",
    r"\.hra_u\b": "HRA",
    r"\.lora_embedding_[AB]\b": "a LoRA of an embedding",
    r"\.reshape_weight$": "a LoRA that widens layers",
}
"""Adapters that are not merged, by a pattern that only their names match."""

# Parts of other Wan networks whose layers are called as ours are, where underscores hide where they begin.
_OTHER_PARTS = ("vace_", "pose_", "face_")


@dataclass(frozen=True)
class LayerPart:
    """What one tensor of a LoRA file is: its layer, in the file's spelling, and its role there."""

    layer: str
    role: Role


def part_of(name: str) -> LayerPart | None:
    """The part that a tensor of this name is, or None when it belongs to no LoRA."""
    name = unwrapped(name)
    for role, pattern in _ROLES:
        match = pattern.fullmatch(name)
        if match is not None:
            return LayerPart(match["layer"], role or match["factor"])
    return None


def without_copy(name: str) -> str:
    """A name without the segments that peft puts before a module that it saves whole."""
    return _COPY.sub("", name)


def is_copy(name: str, names: Collection[str]) -> bool:
    """Whether a tensor is one that peft saved beside its trained value: what it was before, or the same again."""
    plain = (without_copy(name), name.replace(".modules_to_save.", "."))
    return ".original_module." in name or any(each != name and each in names for each in plain)


def prefixes_in(
    layers: Collection[str], formats: Sequence[CheckpointFormat], names: Collection[str] = ()
) -> dict[str, str]:
    """What stands before each of a file's layers: before those that the ``formats``, or tensors ``names``, have.

    A layer that is in neither has the longest prefix of another that it begins with.
    """
    further = _further_layers(formats, names)
    found = by_prefix(layers, known_layers(formats, further=further)) or _joined_prefixes(
        layers, known_layers(formats, further=further, joined=True)
    )
    prefixes = {layer: prefix for prefix, behind in found.items() for layer in behind}
    longest = sorted({*found, ""}, key=len, reverse=True)
    return {
        layer: prefixes[layer] if layer in prefixes else next(each for each in longest if layer.startswith(each))
        for layer in layers
    }


def _further_layers(formats: Sequence[CheckpointFormat], names: Collection[str]) -> set[str]:
    """Layers of a network beyond those of the tables, and whatever is in a block, with ``{}`` for an index."""
    own = (name.removesuffix(".weight") for name in names if name.endswith(".weight"))
    sides = [side for each in formats for rule in each.renames for side in rule if side]
    blocks = {f"{side.partition('{}')[0]}{{}}" for side in sides if "{}" in side}
    return {re.sub(r"(?<![^.])\d+(?![^.])", "{}", layer) for layer in own} | blocks


def _joined_prefixes(layers: Collection[str], known: re.Pattern[str]) -> dict[str, list[str]]:
    found = by_prefix(layers, known)
    # "lora_unet_pose_" before a patch_embedding: a layer of another name, behind "lora_unet_".
    longer = {one for one in found for other in found if one != other and one.startswith(other)}
    return {
        prefix: behind for prefix, behind in found.items() if prefix not in longer and not prefix.endswith(_OTHER_PARTS)
    }


def is_lora(names: Iterable[str]) -> bool:
    """Whether a file with these tensor names is a LoRA, of any kind, also one that cannot be merged."""
    return any(part_of(name) is not None or other_kind([name]) is not None for name in names)


def refuse_unmerged(path: Path, names: Iterable[str]) -> None:
    """Refuse a network that peft has wrapped, with the adapter beside each layer's weight: nothing there tells how
    strong the adapter is. Raises CheckpointError."""
    name = next((name for name in names if name.endswith(".base_layer.weight")), None)
    if name is not None:
        raise CheckpointError(
            f"{path} is a network with an adapter of peft that is not merged into it ({name}), and does not say how "
            "strong that is; save it after model.merge_and_unload(), or save the adapter alone with "
            "model.save_pretrained() and give it with --lora"
        )


def other_kind(names: Iterable[str]) -> tuple[str, str] | None:
    """The kind of adapter that a file holds and that is not merged, with a name that shows it."""
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

    def rows(self, native: "TensorSource") -> dict[str, tuple[str, tuple[int, int]]]:
        """Layers of this format that are some rows, from and to, of a layer that ``native`` has fused."""
        import torch

        found: dict[str, tuple[str, tuple[int, int]]] = {}
        made = {} if self.format.join is None else self.format.join(native.keys())
        for name, (inputs, part) in made.items():
            layer, _, kind = name.rpartition(".")
            if kind != "weight" or len(inputs) > 1 or not native.info(inputs[0]).shape:
                continue
            count = native.info(inputs[0]).shape[0]
            rows = part(torch.arange(count)).tolist()
            if len(rows) < count and rows == [*range(rows[0], rows[0] + len(rows))]:
                found[layer] = inputs[0].removesuffix(".weight"), (rows[0], rows[-1] + 1)
        return found


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
