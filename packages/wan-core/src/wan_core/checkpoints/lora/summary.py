"""LoRA files by the names of their tensors: rank, targets, which network they are for. Nothing but headers is read."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from wan_core.checkpoints.families.dit import DIT
from wan_core.checkpoints.lora.changes import PAIR, change_in
from wan_core.checkpoints.lora.names import LayerPart, Role, other_kind, part_of, prefixes_in
from wan_core.checkpoints.readers.sources import TensorSource

_INDEX = re.compile(r"(?<=blocks[._])\d+")
# Layers whose outputs, and whose inputs, are as wide as the network, in official and in diffusers' names.
_WIDE_OUT = re.compile(r"attn[12]?[._](?:to_)?(?:[qkvo]|out[._]0)$|ffn[._](?:net[._])?2$")
_WIDE_IN = re.compile(r"ffn[._](?:net[._])?0(?:[._]proj)?$|head[._]head$|proj_out$")


@dataclass(frozen=True)
class LoRASummary:
    """What a LoRA changes: layers by rank, kinds of layers by count; ``width`` and ``num_blocks`` of its network.

    ``width`` is None when the file does not tell. ``other`` counts layers of a LoHa or LoKr, and tensors besides those
    of the change by kind (``alpha``, ``diff`` ...).
    """

    ranks: Mapping[int, int]
    targets: Mapping[str, int]
    other: Mapping[str, int]
    width: int | None
    num_blocks: int
    has_image_branch: bool


def lora_summary(source: TensorSource) -> LoRASummary:
    """What the names and shapes of a LoRA file tell."""
    parts = {name: part for name in source if (part := part_of(name)) is not None}
    prefixes = prefixes_in({part.layer for part in parts.values()}, DIT.formats)
    layers = [_layer(source, own.removeprefix(prefixes[own]), names) for own, names in _by_layer(parts).items()]
    other = Counter(_other_name(name) for name in source if name not in parts)
    ranks, widths, blocks = Counter[int](), set[int](), {-1}
    for layer in layers:
        other.update(layer.other)
        ranks.update(layer.rank)
        widths.update(layer.width)
        blocks.update(int(index) for index in _INDEX.findall(layer.target))
    return LoRASummary(
        ranks=dict(sorted(ranks.items())),
        targets=dict(Counter(_INDEX.sub("N", layer.target) for layer in layers)),
        other=dict(sorted(other.items())),
        width=widths.pop() if len(widths) == 1 else None,
        num_blocks=max(blocks) + 1,
        has_image_branch=any(re.search("k_img|add_k_proj", layer.target) for layer in layers),
    )


@dataclass(frozen=True)
class _Layer:
    """What one layer adds to a summary; ``rank`` and ``width`` hold one number or none."""

    target: str
    other: tuple[str, ...]
    rank: tuple[int, ...] = ()
    width: tuple[int, ...] = ()


def _layer(source: TensorSource, target: str, names: Mapping[Role, str]) -> _Layer:
    change = change_in(names)
    roles = None if change is None else change.roles(names)
    if change is None or roles is None:
        return _Layer(target, tuple(names))
    other = tuple(role for role in names if role not in roles)
    if change is not PAIR:
        other = (change.name, *other)
    try:
        shape, rank = change.shape({role: source.info(names[role]).shape for role in roles})
    except ValueError:
        return _Layer(target, other)
    width = shape[:1] if _WIDE_OUT.search(target) else shape[1:2] if _WIDE_IN.search(target) else ()
    return _Layer(target, other, () if rank is None else (rank,), width)


def _by_layer(parts: Mapping[str, LayerPart]) -> dict[str, dict[Role, str]]:
    layers: dict[str, dict[Role, str]] = {}
    for name, part in parts.items():
        layers.setdefault(part.layer, {})[part.role] = name
    return layers


def _other_name(name: str) -> str:
    kind = other_kind([name])
    return "whole tensors" if kind is None else kind[0]
