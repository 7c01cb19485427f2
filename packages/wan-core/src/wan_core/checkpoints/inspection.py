"""A report on weights from their headers: what they are, in which format, of which size and dtype."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from wan_core.checkpoints.contents import Weights
from wan_core.checkpoints.convert import native_weights
from wan_core.checkpoints.families import Expert, get_family
from wan_core.checkpoints.families.relatives import notes_of, relative_of
from wan_core.checkpoints.lora.merge import read_lora
from wan_core.checkpoints.lora.summary import LoRASummary, lora_summary
from wan_core.checkpoints.members import labels, members_of
from wan_core.checkpoints.meta import build_on_meta
from wan_core.checkpoints.readers.quantized import described_formats
from wan_core.checkpoints.readers.reader import file_kind
from wan_core.checkpoints.readers.sources import TensorSource
from wan_core.errors import CheckpointError

KINDS = {"safetensors": "safetensors", "torch": "torch pickle", "gguf": "GGUF"}


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """One model's weights, as their headers describe them.

    ``format`` is the naming of the tensors; ``storage`` counts elements by stored dtype; ``groups`` are models beside
    each other in one file; ``missing`` and ``unexpected`` are tensors, against the network of ``config``; ``problem``
    says why there is no config, the frozen dataclass of the family. ``notes`` are sentences on how the weights are
    packed, and on what only a name tells; ``experts`` are those that a LoRA's names say it is for. Sizes in bytes, of
    files.
    """

    weights: Weights
    kind: str
    storage: Mapping[str, int]
    num_parameters: int
    num_bytes: int
    format: str = ""
    config: Any = None
    groups: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    problem: str = ""
    notes: tuple[str, ...] = ()
    lora: LoRASummary | None = None
    experts: tuple[Expert, ...] = ()

    def to_json(self, *, keys: bool = False) -> dict[str, Any]:
        """Plain values; ``keys`` adds every tensor."""
        weights = self.weights
        values: dict[str, Any] = {
            "name": weights.name,
            "family": weights.family,
            "format": self.format,
            "kind": self.kind,
            "files": [path.name for path in weights.files],
            "bytes": self.num_bytes,
            "tensors": len(weights.source),
            "parameters": self.num_parameters,
            "dtypes": dict(self.storage),
            "config": None if self.config is None else asdict(self.config),
            "groups": list(self.groups),
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "problem": self.problem,
            "notes": list(self.notes),
            "lora": None if self.lora is None else {**asdict(self.lora), "experts": list(self.experts)},
            "metadata": dict(weights.source.metadata),
        }
        return values | ({"keys": tensor_rows(weights.source)} if keys else {})


def inspect_weights(weights: Weights) -> Inspection:
    """Describe weights. Raises CheckpointError when a file of theirs cannot be read."""
    source = weights.source
    storage = Counter[str]()
    for name in source:
        storage[source.storage(name)] += source.info(name).numel
    common: dict[str, Any] = {
        "weights": weights,
        "kind": KINDS[file_kind(weights.files[0])],
        "storage": dict(storage.most_common()),
        "num_parameters": source.num_parameters,
        "num_bytes": sum(path.stat().st_size for path in weights.files),
    }
    if weights.family == "lora":
        try:
            file = read_lora(weights.path)
        except CheckpointError as error:
            return Inspection(**common, lora=lora_summary(source), problem=str(error))
        return Inspection(**common, lora=lora_summary(source), notes=tuple(file.notes), experts=tuple(file.halves()))
    if not weights.family:
        relative = relative_of(source.keys())
        return Inspection(**common, problem=f"it looks like a part of {relative}" if relative else "")
    family = get_family(weights.family)
    common["groups"] = _groups(weights)
    try:
        native = native_weights(source, family)
    except CheckpointError as error:
        return Inspection(**common, problem=str(error))
    common |= {"format": native.format, "num_parameters": native.num_parameters, "notes": _notes(weights, native.notes)}
    try:
        config = family.read_config(weights.files[0], native)
    except CheckpointError as error:
        return Inspection(**common, problem=str(error))
    wanted = {
        name: tuple(tensor.shape) for name, tensor in build_on_meta(partial(family.build, config)).state_dict().items()
    }
    return Inspection(
        **common,
        config=config,
        missing=tuple(name for name, shape in wanted.items() if name not in native or native.info(name).shape != shape),
        unexpected=tuple(name for name in native if name not in wanted),
    )


def _notes(weights: Weights, taken: Sequence[str]) -> tuple[str, ...]:
    packed = described_formats(weights.source)
    said = notes_of(weights.files[0]) if weights.family == "dit" else ()
    notes = [*taken, *(each for each in said if each not in taken)]
    listed = ", ".join(f"{form} ({count} layers)" for form, count in packed.items())
    return (*([f"packed as {listed}"] if packed else []), *notes)


def _groups(weights: Weights) -> tuple[str, ...]:
    """The networks of one kind beside each other in a file, the one that is taken first."""
    members = [member for member in members_of(weights.source) if member.families[0] == weights.family]
    return tuple(labels(members)) if len(members) > 1 else ()


def tensor_rows(source: TensorSource) -> list[dict[str, Any]]:
    """Name, stored dtype and shape of every tensor, in order of name."""
    return [
        {"name": name, "dtype": source.storage(name), "shape": list(source.info(name).shape)} for name in sorted(source)
    ]
