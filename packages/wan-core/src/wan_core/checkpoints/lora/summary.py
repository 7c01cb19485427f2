"""LoRA files by the names of their tensors: rank, targets, which network they are for. Nothing but headers is read."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from wan_core.checkpoints.lora.names import other_kind, part_of
from wan_core.checkpoints.readers.sources import TensorSource

_INDEX = re.compile(r"(?<=blocks[._])\d+")
_QUERY = re.compile(r"(?:self_attn|attn1)[._](?:to_)?q$")


@dataclass(frozen=True)
class LoRASummary:
    """What a LoRA changes: layers by rank, kinds of layers by count; ``width`` and ``num_blocks`` of its network.

    ``width`` is None when the file does not tell. ``other`` counts tensors besides low-rank pairs by kind (``alpha``,
    ``diff`` ...).
    """

    ranks: Mapping[int, int]
    targets: Mapping[str, int]
    other: Mapping[str, int]
    width: int | None
    num_blocks: int
    has_image_branch: bool


def lora_summary(source: TensorSource) -> LoRASummary:
    """What the names and shapes of a LoRA file tell."""
    ranks, targets, other = Counter[int](), Counter[str](), Counter[str]()
    widths, blocks, seen = set[int](), {-1}, set[str]()
    for name in source:
        part, kind = part_of(name), other_kind([name])
        if part is None:
            other["whole tensors" if kind is None else kind[0]] += 1
            continue
        target, shape = part.layer, source.info(name).shape
        if part.role == "down" and shape:
            ranks[shape[0]] += 1
        if part.role == "up" and shape and _QUERY.search(target):
            widths.add(shape[0])
        if part.role not in ("down", "up"):
            other[part.role] += 1
        if target not in seen:
            seen.add(target)
            targets[_INDEX.sub("N", target)] += 1
        blocks.update(int(index) for index in _INDEX.findall(target))
    image = any("k_img" in target or "add_k_proj" in target for target in targets)
    width = widths.pop() if len(widths) == 1 else None
    return LoRASummary(
        dict(sorted(ranks.items())), dict(targets), dict(sorted(other.items())), width, max(blocks) + 1, image
    )
