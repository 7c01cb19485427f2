"""A checkpoint written again, in another layout or dtype: one tensor in memory at a time, whole or not at all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from wan_core.checkpoints.contents import FAMILY_NAMES, PARTS, Contents, Weights
from wan_core.checkpoints.convert import native_weights
from wan_core.checkpoints.export_targets import (
    Layout,
    Target,
    WrittenSource,
    place,
    tokenizer_pieces,
    write_companions,
)
from wan_core.checkpoints.inspection import NetworkConfig, network_config
from wan_core.checkpoints.load import check_fit
from wan_core.checkpoints.lora.merge import Expert
from wan_core.checkpoints.meta import build_on_meta
from wan_core.checkpoints.readers.sources import DerivedSource, Recipe, TensorSource
from wan_core.checkpoints.torch_writer import write_torch_file
from wan_core.checkpoints.writer import DEFAULT_SHARD_BYTES, write_file, write_shards
from wan_core.checkpoints.written_configs import PipelineFacts
from wan_core.drafts import whole_folder
from wan_core.errors import CheckpointError, RequestError
from wan_core.files import check_space, plain_text
from wan_core.hub.manifest import Progress

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

    ``format`` is the naming of its file.
    """

    weights: Weights
    native: TensorSource
    format: str
    config: NetworkConfig
    dtypes: Mapping[str, torch.dtype]
    expert: Expert | None = None

    @property
    def family(self) -> str:
        """``dit``, ``vae``, ``umt5`` or ``clip``."""
        return self.weights.family


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """``layout`` None keeps that of the source. ``dtype`` None keeps what is stored, 8-bit weights become bfloat16."""

    layout: Layout | None = None
    dtype: torch.dtype | None = None
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    overwrite: bool = False


def networks_in(contents: Contents, *, dtype: torch.dtype | None = None, merge: Merge | None = None) -> list[Network]:
    """The networks of a model, each compared with its config; ``merge`` changes the transformers.

    A VAE beside other parts keeps its dtype: it runs in float32, and what it makes shows every rounding. Raises
    CheckpointError for files that cannot be read, that fit no network, or that belong to several models.
    """
    if contents.unreadable:
        raise CheckpointError("; ".join(problem for _, problem in contents.unreadable[:3]))
    networks: list[Network] = []
    for family in PARTS:
        found = _of_one_model(contents, family)
        experts = _experts(found) if len(found) == 2 else [None] * len(found)
        networks += [_network(weights, expert, merge) for weights, expert in zip(found, experts, strict=True)]
    if not networks:
        raise CheckpointError(f"{contents.path} holds no network that can be converted")
    transformers = {network.config for network in networks if network.family == "dit"}
    if len(transformers) > 1:
        raise CheckpointError(f"the two transformers in {contents.path} differ in size; they are of different models")
    return [_with_dtype(network, dtype, is_alone=len(networks) == 1) for network in networks]


def _with_dtype(network: Network, dtype: torch.dtype | None, *, is_alone: bool) -> Network:
    return replace(network, dtypes=_dtypes(network, dtype if is_alone or network.family != "vae" else None))


def _of_one_model(contents: Contents, family: str) -> list[Weights]:
    found = contents.of(family)
    if len(found) > (2 if family == "dit" else 1):
        names = ", ".join(weights.name for weights in found[:5])
        raise CheckpointError(f"{contents.path} holds {FAMILY_NAMES[family]} {len(found)} times ({names}); name one")
    return found


def _network(weights: Weights, expert: Expert | None, merge: Merge | None) -> Network:
    native = native_weights(weights.source, weights.family)
    config = network_config(weights, native)
    model = build_on_meta(config.build)
    check_fit(model, native)
    merged = merge(native, expert) if merge is not None and weights.family == "dit" else native
    # In the network's order, so that equal weights give equal files.
    recipes = {name: Recipe((name,), merged.info(name)) for name in model.state_dict()}
    return Network(
        weights=weights,
        native=DerivedSource(merged, recipes),
        format=native.report.format,
        config=config,
        dtypes={},
        expert=expert,
    )


def _experts(found: Sequence[Weights]) -> list[Expert | None]:
    """Which of two transformers is which, by the names of folders or files."""
    experts = [_EXPERT_FOLDERS.get(weights.folder.name) for weights in found]
    if set(experts) != {"high", "low"}:
        names = [weights.name.lower() for weights in found]
        experts = ["high" if "high" in name else "low" if "low" in name else None for name in names]
    if set(experts) != {"high", "low"}:
        raise CheckpointError(
            f"{found[0].name} and {found[1].name} are two transformers; which is the high-noise expert? Put 'high' and "
            "'low' into their names"
        )
    return experts


def _dtypes(network: Network, dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """What each tensor is written in; modules that must stay float32 keep what they have."""
    kept = getattr(build_on_meta(network.config.build), "float32_modules", ())
    dtypes = {}
    for name in network.native:
        info, stored = network.native.info(name), network.native.stored_dtype(name)
        if not info.dtype.is_floating_point:
            continue
        own = stored if stored.is_floating_point and stored.itemsize > 1 else torch.bfloat16
        is_kept = any(f".{entry}." in f".{name}." for entry in kept)
        dtypes[name] = own if dtype is None else torch.promote_types(own, dtype) if is_kept else dtype
    return dtypes


def export_networks(
    networks: Sequence[Network],
    contents: Contents,
    out: Path,
    options: ExportOptions,
    *,
    facts: PipelineFacts,
    progress: Progress,
) -> list[str]:
    """Write networks and what goes with them to ``out``: a folder, or a file for a single network. Returns the names.

    Raises RequestError when ``out`` is taken or is part of the source, MediaError when the disk refuses or is too
    small; then nothing is left behind.
    """
    _check_out(contents, out, overwrite=options.overwrite)
    layout = options.layout or _own_layout(networks, out)
    is_file = out.suffix == ".safetensors" or (layout == "single" and len(networks) == 1)
    if is_file:
        _check_file(networks, out)
    pieces, is_alone = tokenizer_pieces(networks, contents), len(networks) == 1
    targets = [place(network, layout, is_file=is_file, is_alone=is_alone, pieces=pieces) for network in networks]
    total = sum(target.source.nbytes for target in targets)
    check_space(out, total)
    with progress(total, 0) as done:
        if is_file:
            _write(targets[0], out.parent, replace(options, layout=layout), done, name=out.name)
            return [out.name]
        with whole_folder(out, overwrite=options.overwrite) as draft:
            for target in targets:
                _write(target, draft, options, done)
            write_companions(draft, networks, contents, layout, facts)
            return sorted(path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file())


def _write(
    target: Target, folder: Path, options: ExportOptions, done: Callable[[int], object], *, name: str | None = None
) -> None:
    source = WrittenSource(target.source, done)
    if name is not None or target.container == "file":
        write_file(source, folder / (name or target.path), metadata=target.metadata)
    elif target.container == "torch":
        write_torch_file(source, folder / target.path)
    else:
        write_shards(
            source,
            folder / target.path,
            stem=target.stem,
            max_shard_bytes=options.max_shard_bytes,
            metadata=target.metadata,
        )


def _own_layout(networks: Sequence[Network], out: Path) -> Layout:
    """The layout of the source; a file of its own is a single one."""
    if out.suffix == ".safetensors":
        return "single"
    return "diffusers" if networks[0].format == "diffusers" else "official"


def _check_file(networks: Sequence[Network], out: Path) -> None:
    if len(networks) > 1:
        raise RequestError(f"{out} is one file, and there are {len(networks)} networks to write; name a folder")
    if out.suffix != ".safetensors":
        raise RequestError(f"a single network becomes one file: end the name with .safetensors, got {out}")


def _check_out(contents: Contents, out: Path, *, overwrite: bool) -> None:
    """The output must be new, and apart from what is read."""
    source, target = contents.path.resolve(), out.resolve()
    files = {file.resolve() for weights in contents.weights for file in weights.files}
    inside = contents.path.is_dir() and target.is_relative_to(source)
    if inside or target == source or any(file.is_relative_to(target) for file in files):
        raise RequestError(
            f"{plain_text(out)} is part of the source {plain_text(contents.path)}; choose a place outside of it"
        )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise RequestError(f"{plain_text(out)} exists already; choose another place, or replace it with --overwrite")
    if out.is_dir() == (out.suffix == ".safetensors"):
        raise RequestError(f"{plain_text(out)} is a {'folder' if out.is_dir() else 'file'}; choose another place")
