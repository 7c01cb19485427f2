"""Where each network of a checkpoint goes in each layout, under which names, and the small files beside it."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from wan_core.checkpoints.contents import Contents
from wan_core.checkpoints.convert import in_format
from wan_core.checkpoints.families.record import Container
from wan_core.checkpoints.layout import TOKENIZER_FILES, TOKENIZER_FOLDER
from wan_core.checkpoints.networks import Network
from wan_core.checkpoints.pipeline_files import PipelineFacts, image_processor, model_index, scheduler
from wan_core.checkpoints.readers.sources import DerivedSource, Recipe, TensorInfo, TensorSource, cast
from wan_core.drafts import write_text
from wan_core.models import CLIPConfig, WanDiTConfig

Layout = Literal["official", "diffusers", "single"]

PIECES = "spiece_model"
_BESIDE_A_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")


@dataclass(frozen=True, kw_only=True)
class Target:
    """One network as it is written: tensors under their final names, and a path below the output folder."""

    source: TensorSource
    path: str
    container: Container
    stem: str
    metadata: Mapping[str, str]


class WrittenSource(DerivedSource):
    """A source that tells ``done`` the bytes of each tensor when it has been written."""

    def __init__(self, base: TensorSource, done: Callable[[int], object]) -> None:
        super().__init__(base, {name: Recipe((name,), base.info(name)) for name in base})
        self._done = done

    def release(self, name: str) -> None:
        super().release(name)
        self._done(self.info(name).nbytes)


def place(network: Network, layout: Layout, *, is_file: bool, is_alone: bool, pieces: Tensor | None = None) -> Target:
    """How a network is written in a layout; ``is_alone`` when it is all there is to write.

    ``pieces`` is the tokenizer's sentencepiece model as bytes, which single files of text encoders carry along.
    """
    places = network.family.where
    form = _form(network, layout)
    container: Container = "file" if is_file or layout == "single" else "shards"
    if layout == "official" and not is_file:
        container = places.container
    config, usual = network.config, network.family.usual(network.config)
    extra = {name: getattr(config, name) for name, value in usual.items() if getattr(config, name) != value}
    return Target(
        source=_renamed(network, form, layout, pieces),
        path=_path(network, layout, is_alone=is_alone),
        container=container,
        stem=places.stem,
        metadata={"format": "pt", **({"config": json.dumps(extra)} if extra else {})},
    )


def _form(network: Network, layout: Layout) -> str:
    """The naming of the tensors in a layout; a family of one naming keeps it everywhere."""
    form = network.family.where.single_format if layout == "single" else layout
    known = [candidate.name for candidate in network.family.formats]
    return form if form in known else known[-1]


def _renamed(network: Network, form: str, layout: Layout, pieces: Tensor | None) -> TensorSource:
    native = network.native
    if network.family.keeps_rest and network.format == form == "official":
        return _with_left_out(network.weights.source, network.dtypes)
    named: TensorSource = in_format(cast(native, network.dtypes), network.family, form)
    if layout != "single":
        return named
    prefix = network.family.where.single_prefix
    if prefix:
        named = DerivedSource(named, {f"{prefix}{name}": Recipe((name,), named.info(name)) for name in named})
    return _with_pieces(named, pieces) if network.family.carries_tokenizer and pieces is not None else named


def _with_left_out(source: TensorSource, dtypes: Mapping[str, torch.dtype]) -> TensorSource:
    wanted = set(dtypes.values())
    floats = [name for name in source if source.info(name).dtype.is_floating_point]
    return cast(source, dict.fromkeys(floats, wanted.pop()) if len(wanted) == 1 else {})


def tokenizer_pieces(networks: Sequence[Network], contents: Contents) -> Tensor | None:
    """The sentencepiece model of the text encoder's tokenizer: from its file, or from the tokenizer's folder."""
    for network in networks:
        source = network.weights.source
        if network.family.carries_tokenizer and PIECES in source:
            return source.read(PIECES)
    for folder in contents.tokenizers:
        if "roberta" not in folder.name and (folder / "spiece.model").is_file():
            return torch.frombuffer(bytearray((folder / "spiece.model").read_bytes()), dtype=torch.uint8)
    return None


def _with_pieces(named: TensorSource, pieces: Tensor) -> TensorSource:
    recipes = {name: Recipe((name,), named.info(name)) for name in named}
    recipes[PIECES] = Recipe((), TensorInfo(tuple(pieces.shape), pieces.dtype), lambda _: pieces)
    return DerivedSource(named, recipes)


def _path(network: Network, layout: Layout, *, is_alone: bool) -> str:
    places, config, expert = network.family.where, network.config, network.expert
    if layout == "single":
        return f"{places.single}/{places.single_name(config, expert)}.safetensors"
    if layout == "diffusers":
        return "" if is_alone else places.second if expert == "low" else places.diffusers
    return places.official(config, expert)


def write_companions(
    folder: Path, networks: Sequence[Network], contents: Contents, layout: Layout, facts: PipelineFacts
) -> None:
    """Configs, tokenizer and ``model_index.json``. Raises MediaError when the disk refuses."""
    is_alone = len(networks) == 1
    for network in networks:
        config = network.config
        path = folder / _path(network, layout, is_alone=is_alone)
        family = network.family
        make = {"diffusers": family.diffusers_config, "official": family.official_config}.get(layout)
        if make is not None:
            write_json(path / "config.json", make(config))
    if is_alone:
        return
    _copy_tokenizers(folder, contents, layout)
    transformers = [network.config for network in networks if isinstance(network.config, WanDiTConfig)]
    if layout == "diffusers" and transformers:
        clip = next((network.config for network in networks if isinstance(network.config, CLIPConfig)), None)
        index = model_index(transformers[0], facts, num_networks=len(transformers), has_clip=clip is not None)
        write_json(folder / "model_index.json", index)
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler(facts))
        if clip is not None:
            write_json(folder / "image_processor" / "preprocessor_config.json", image_processor(clip))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file as every layout has them. Raises MediaError when the disk refuses."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def _copy_tokenizers(folder: Path, contents: Contents, layout: Layout) -> None:
    """The text encoder's tokenizer; that of CLIP's text half goes with the official layout only."""
    for source in contents.tokenizers:
        is_clip = "roberta" in source.name
        if is_clip and layout != "official":
            continue
        target = folder / (source.name if is_clip else TOKENIZER_FOLDER if layout == "official" else "tokenizer")
        target.mkdir(parents=True, exist_ok=True)
        for name in (*TOKENIZER_FILES, *_BESIDE_A_TOKENIZER):
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
