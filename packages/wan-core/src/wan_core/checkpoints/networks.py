"""The networks of a checkpoint, checked and ready to be written again: native names, config, dtypes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from wan_core.checkpoints.contents import Contents, Weights, told
from wan_core.checkpoints.convert import native_weights
from wan_core.checkpoints.families import Expert, Family, families, get_family
from wan_core.checkpoints.families.relatives import relative_of
from wan_core.checkpoints.load import check_fit, stays_float32
from wan_core.checkpoints.lora.names import refuse_unmerged
from wan_core.checkpoints.members import members_of
from wan_core.checkpoints.meta import build_on_meta
from wan_core.checkpoints.readers.sources import DerivedSource, Recipe, TensorSource
from wan_core.errors import CheckpointError

Merge = Callable[[TensorSource, Expert | None], TensorSource]
"""Native weights of a transformer with LoRAs merged in, for one expert or for the only network."""

_EXPERT_FOLDERS: Mapping[str, Expert] = {
    "transformer": "high",
    "transformer_2": "low",
    "high_noise_model": "high",
    "low_noise_model": "low",
}


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network of a checkpoint, checked: its weights under native names, and the dtypes to write them in.

    ``format`` is the naming of its file, ``notes`` are sentences about what was taken of it.
    """

    weights: Weights
    native: TensorSource
    format: str
    config: Any
    dtypes: Mapping[str, torch.dtype]
    expert: Expert | None = None
    notes: tuple[str, ...] = ()

    @property
    def family(self) -> Family:
        """What kind of network it is."""
        return get_family(self.weights.family)


def networks_in(
    contents: Contents, *, dtype: torch.dtype | None = None, merge: Merge | None = None, group: str | None = None
) -> list[Network]:
    """The networks of a model, each compared with its config; ``merge`` changes the transformers.

    ``group`` names the one to take of several transformers in a trainer's file, otherwise averaged weights are taken.
    A VAE beside other parts keeps its dtype: it runs in float32, and what it makes shows every rounding. Raises
    CheckpointError for files that cannot be read, that fit no network, or that belong to several models.
    """
    if contents.unreadable:
        raise CheckpointError(told(contents.unreadable))
    members: list[tuple[Weights, Expert | None]] = []
    for family in families():
        found = _of_one_model(contents, family)
        if group is not None:  # of two experts in one file, too
            found = [each for each in found if each.expert is None or _lies_in(each, group)] or found
        members += zip(found, _experts(found) if len(found) == 2 else [None] * len(found), strict=True)
    networks = [_network(*member, merge, dtype, group, is_alone=len(members) == 1) for member in members]
    if not networks:
        raise CheckpointError(f"{contents.path} holds no network that can be converted{_instead(contents)}")
    transformers = {network.config for network in networks if network.family.is_denoiser}
    if len(transformers) > 1:
        raise CheckpointError(f"the two transformers in {contents.path} differ in size; they are of different models")
    return networks


def _lies_in(weights: Weights, group: str) -> bool:
    return any(member.prefix.startswith(f"{group}.") for member in members_of(weights.source))


def _instead(contents: Contents) -> str:
    for weights in contents.weights:
        refuse_unmerged(weights.path, weights.source)
    if contents.of("lora"):
        return ": it is a LoRA; merge it into a model with --lora"
    relatives = (relative_of(weights.source.keys()) for weights in contents.weights)
    return next((f": it looks like a part of {relative}" for relative in relatives if relative is not None), "")


def _of_one_model(contents: Contents, family: Family) -> list[Weights]:
    found = contents.of(family.name)
    if len(found) > (2 if family.is_denoiser else 1):
        names = ", ".join(weights.name for weights in found[:5])
        raise CheckpointError(f"{contents.path} holds {family.title} {len(found)} times ({names}); name one")
    return found


def _network(
    weights: Weights,
    expert: Expert | None,
    merge: Merge | None,
    dtype: torch.dtype | None,
    group: str | None,
    *,
    is_alone: bool,
) -> Network:
    family = get_family(weights.family)
    native = native_weights(weights.source, family, group=group if family.is_denoiser else None)
    config = family.read_config(weights.files[0], native)
    model = build_on_meta(partial(family.build, config))
    check_fit(model, native, family)
    merged = merge(native, expert) if merge is not None and family.is_denoiser else native
    # In the network's order, so that equal weights give equal files.
    ordered = DerivedSource(merged, {name: Recipe((name,), merged.info(name)) for name in model.state_dict()})
    stays = family.half_dtype == "float32" and not is_alone
    dtypes = _dtypes(model, ordered, None if stays else dtype)
    return Network(
        weights=weights, native=ordered, format=native.format, config=config, dtypes=dtypes, expert=expert,
        notes=native.notes,
    )  # fmt: skip


def _experts(found: Sequence[Weights]) -> list[Expert | None]:
    """Which of two transformers is which, by the names of folders or files."""
    experts = [weights.expert or _EXPERT_FOLDERS.get(weights.files[0].parent.name) for weights in found]
    if set(experts) != {"high", "low"}:
        names = [weights.name.lower() for weights in found]
        experts = ["high" if "high" in name else "low" if "low" in name else None for name in names]
    if set(experts) != {"high", "low"}:
        raise CheckpointError(
            f"{found[0].name} and {found[1].name} are two transformers; which is the high-noise expert? Put 'high' and "
            "'low' into their names"
        )
    return experts


def _dtypes(model: nn.Module, native: TensorSource, dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """What each tensor is written in; modules that must stay float32 keep what they have."""
    dtypes = {}
    for name in native:
        info, stored = native.info(name), native.stored_dtype(name)
        if not info.dtype.is_floating_point:
            continue
        own = stored if stored.is_floating_point and stored.itemsize > 1 else torch.bfloat16
        is_kept = stays_float32(model, name)
        dtypes[name] = own if dtype is None else torch.promote_types(own, dtype) if is_kept else dtype
    return dtypes
