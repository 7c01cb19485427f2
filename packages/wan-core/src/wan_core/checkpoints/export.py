"""A checkpoint written again, in another layout or dtype: one tensor in memory at a time, whole or not at all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from wan_core.checkpoints.contents import Contents
from wan_core.checkpoints.export_targets import (
    Layout,
    Target,
    WrittenSource,
    place,
    tokenizer_pieces,
    write_companions,
)
from wan_core.checkpoints.networks import Network
from wan_core.checkpoints.pipeline_files import PipelineFacts
from wan_core.checkpoints.torch_writer import write_torch_file
from wan_core.checkpoints.writer import DEFAULT_SHARD_BYTES, write_file, write_shards
from wan_core.drafts import whole_folder
from wan_core.errors import RequestError
from wan_core.files import check_space, plain_text
from wan_core.hub.manifest import Progress


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """``layout`` None keeps that of the source. ``dtype`` None keeps what is stored, 8-bit weights become bfloat16."""

    layout: Layout | None = None
    dtype: torch.dtype | None = None
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    overwrite: bool = False


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
    _check_layout(networks, layout)
    is_file = out.suffix == ".safetensors" or (layout == "single" and len(networks) == 1)
    if is_file:
        _check_file(networks, out)
    pieces, is_alone = tokenizer_pieces(networks, contents), len(networks) == 1
    targets = [place(network, layout, is_file=is_file, is_alone=is_alone, pieces=pieces) for network in networks]
    total = sum(target.source.nbytes for target in targets)
    check_space(out, total)
    with progress(total, 0) as done:
        if is_file:
            write_file(WrittenSource(targets[0].source, done), out, metadata=targets[0].metadata)
            return [out.name]
        with whole_folder(out, overwrite=options.overwrite) as draft:
            for target in targets:
                _write(target, draft, options.max_shard_bytes, done)
            write_companions(draft, networks, contents, layout, facts)
            return sorted(path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file())


def _write(target: Target, folder: Path, max_shard_bytes: int, done: Callable[[int], object]) -> None:
    source, place, metadata = WrittenSource(target.source, done), folder / target.path, target.metadata
    if target.container == "file":
        write_file(source, place, metadata=metadata)
    elif target.container == "torch":
        write_torch_file(source, place)
    else:
        write_shards(source, place, stem=target.stem, max_shard_bytes=max_shard_bytes, metadata=metadata)


def _own_layout(networks: Sequence[Network], out: Path) -> Layout:
    """The layout of the source; a file of its own is a single one."""
    if out.suffix == ".safetensors":
        return "single"
    return "diffusers" if networks[0].format == "diffusers" else "official"


def _check_layout(networks: Sequence[Network], layout: Layout) -> None:
    """diffusers has no class for some transformers, and would read their weights as another model's."""
    for network in networks:
        if layout == "diffusers" and network.family.is_denoiser and network.family.diffusers_config is None:
            raise RequestError(f"diffusers does not know {network.family.title}; take --layout official or single")


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
