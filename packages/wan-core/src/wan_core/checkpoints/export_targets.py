"""Where each network of a checkpoint goes in each layout, under which names, and the small files beside it."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from wan_core.checkpoints.contents import TOKENIZER_FILES, Contents
from wan_core.checkpoints.convert import in_format
from wan_core.checkpoints.readers.sources import DerivedSource, Recipe, TensorInfo, TensorSource
from wan_core.checkpoints.written_configs import (
    PipelineFacts,
    diffusers_config,
    image_processor,
    model_index,
    official_config,
    scheduler,
    unsaid,
)
from wan_core.drafts import write_text
from wan_core.models import CLIPConfig, VAEConfig, WanDiTConfig

if TYPE_CHECKING:
    from wan_core.checkpoints.export import Network

Layout = Literal["official", "diffusers", "single"]
Container = Literal["shards", "file", "torch"]

TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
CLIP_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
TOKENIZER_FOLDER = "google/umt5-xxl"
PIECES = "spiece_model"
_DIFFUSERS_FOLDERS = {"vae": "vae", "umt5": "text_encoder", "clip": "image_encoder"}
_SINGLE_FOLDERS = {"dit": "diffusion_models", "vae": "vae", "umt5": "text_encoders", "clip": "clip_vision"}
_SINGLE_FORMATS = {"dit": "official", "vae": "official", "umt5": "diffusers", "clip": "diffusers"}
_STEMS = {"dit": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "umt5": "model", "clip": "model"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """One network as it is written: tensors under their final names, and a path below the output folder."""

    source: TensorSource
    path: str
    container: Container
    stem: str
    metadata: Mapping[str, str]


class CastSource(DerivedSource):
    """The tensors of another source in other dtypes."""

    def __init__(self, base: TensorSource, dtypes: Mapping[str, torch.dtype]) -> None:
        super().__init__(base, {name: _cast(base, name, dtypes) for name in base})


def _cast(base: TensorSource, name: str, dtypes: Mapping[str, torch.dtype]) -> Recipe:
    info = base.info(name)
    dtype = dtypes.get(name, info.dtype)
    if dtype == info.dtype:
        return Recipe((name,), info)
    return Recipe((name,), TensorInfo(info.shape, dtype), lambda tensors: tensors[0].to(dtype))


class WrittenSource(DerivedSource):
    """A source that tells ``done`` the bytes of each tensor when it has been written."""

    def __init__(self, base: TensorSource, done: Callable[[int], object]) -> None:
        super().__init__(base, {name: Recipe((name,), base.info(name)) for name in base})
        self._done = done

    def release(self, name: str) -> None:
        super().release(name)
        self._done(self.info(name).nbytes)


def place(network: "Network", layout: Layout, *, is_file: bool, is_alone: bool, pieces: Tensor | None = None) -> Target:
    """How a network is written in a layout; ``is_alone`` when it is all there is to write.

    ``pieces`` is the tokenizer's sentencepiece model as bytes, which single files of text encoders carry along.
    """
    form = _SINGLE_FORMATS[network.family] if layout == "single" else layout
    container: Container = "file" if is_file or layout == "single" else "shards"
    if layout == "official" and network.family != "dit" and not is_file:
        container = "torch"
    extra = unsaid(network.config)
    return Target(
        source=_renamed(network, form, layout, pieces),
        path=_path(network, layout, is_alone=is_alone),
        container=container,
        stem=_STEMS[network.family],
        metadata={"format": "pt", **({"config": json.dumps(extra)} if extra else {})},
    )


def _renamed(network: "Network", form: str, layout: Layout, pieces: Tensor | None) -> TensorSource:
    native = network.native
    if network.family == "clip" and network.format == form == "official":
        # With the halves of the file that no Wan network uses: the original code loads them all the same.
        return _with_left_out(network.weights.source, network.dtypes)
    cast = CastSource(native, network.dtypes)
    named: TensorSource = in_format(cast, network.family, form)
    if layout != "single":
        return named
    if network.family == "clip":
        recipes = {f"vision_model.{name}": Recipe((name,), named.info(name)) for name in named}
        return DerivedSource(named, recipes)
    return _with_pieces(named, pieces) if network.family == "umt5" and pieces is not None else named


def _with_left_out(source: TensorSource, dtypes: Mapping[str, torch.dtype]) -> TensorSource:
    wanted = set(dtypes.values())
    floats = [name for name in source if source.info(name).dtype.is_floating_point]
    return CastSource(source, dict.fromkeys(floats, wanted.pop()) if len(wanted) == 1 else {})


def tokenizer_pieces(networks: Sequence["Network"], contents: Contents) -> Tensor | None:
    """The sentencepiece model of the text encoder's tokenizer: from its file, or from the tokenizer's folder."""
    for network in networks:
        source = network.weights.source
        if network.family == "umt5" and PIECES in source:
            return source.read(PIECES)
    for folder in contents.tokenizers:
        if "roberta" not in folder.name and (folder / "spiece.model").is_file():
            return torch.frombuffer(bytearray((folder / "spiece.model").read_bytes()), dtype=torch.uint8)
    return None


def _with_pieces(named: TensorSource, pieces: Tensor) -> TensorSource:
    recipes = {name: Recipe((name,), named.info(name)) for name in named}
    recipes[PIECES] = Recipe((), TensorInfo(tuple(pieces.shape), pieces.dtype), lambda _: pieces)
    return DerivedSource(named, recipes)


def _path(network: "Network", layout: Layout, *, is_alone: bool) -> str:
    family, expert = network.family, network.expert
    if layout == "single":
        return f"{_SINGLE_FOLDERS[family]}/{_single_name(network)}.safetensors"
    if layout == "diffusers":
        if is_alone:
            return ""
        return (
            ("transformer_2" if expert == "low" else "transformer") if family == "dit" else _DIFFUSERS_FOLDERS[family]
        )
    if family == "dit":
        return f"{expert}_noise_model" if expert else ""
    if isinstance(network.config, VAEConfig):
        return f"{_vae_version(network.config)}_VAE.pth"
    return TEXT_ENCODER_FILE if family == "umt5" else CLIP_FILE


def _single_name(network: "Network") -> str:
    config = network.config
    if isinstance(config, WanDiTConfig):
        kind = official_config(config)["model_type"]
        return f"wan_{kind}" + (f"_{network.expert}_noise" if network.expert else "")
    if isinstance(config, VAEConfig):
        return f"{_vae_version(config).lower()}_vae"
    return "umt5_xxl" if network.family == "umt5" else "clip_vision_h"


def _vae_version(config: VAEConfig) -> str:
    return "Wan2.2" if config.residual else "Wan2.1"


def write_companions(
    folder: Path, networks: Sequence["Network"], contents: Contents, layout: Layout, facts: PipelineFacts
) -> None:
    """Configs, tokenizer and ``model_index.json``. Raises MediaError when the disk refuses."""
    is_alone = len(networks) == 1
    for network in networks:
        config = network.config
        path = folder / _path(network, layout, is_alone=is_alone)
        if layout == "diffusers":
            _write_json(path / "config.json", diffusers_config(config))
        elif layout == "official" and isinstance(config, WanDiTConfig):
            _write_json(path / "config.json", official_config(config))
    if is_alone:
        return
    _copy_tokenizers(folder, contents, layout)
    transformers = [network.config for network in networks if isinstance(network.config, WanDiTConfig)]
    if layout == "diffusers" and transformers:
        clip = next((network.config for network in networks if isinstance(network.config, CLIPConfig)), None)
        index = model_index(transformers[0], facts, num_networks=len(transformers), has_clip=clip is not None)
        _write_json(folder / "model_index.json", index)
        _write_json(folder / "scheduler" / "scheduler_config.json", scheduler(facts))
        if clip is not None:
            _write_json(folder / "image_processor" / "preprocessor_config.json", image_processor(clip))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def _copy_tokenizers(folder: Path, contents: Contents, layout: Layout) -> None:
    """The text encoder's tokenizer; that of CLIP's text half goes with the official layout only."""
    for source in contents.tokenizers:
        is_clip = "roberta" in source.name
        if is_clip and layout != "official":
            continue
        target = folder / (source.name if is_clip else TOKENIZER_FOLDER if layout == "official" else "tokenizer")
        target.mkdir(parents=True, exist_ok=True)
        for name in (
            *TOKENIZER_FILES,
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "config.json",
        ):
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
