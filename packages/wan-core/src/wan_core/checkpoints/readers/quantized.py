"""Weights stored in few bits with scales beside them, as plain weights: dequantised one by one when they are read.

A file that describes its layers (ComfyUI's ``X.comfy_quant``, or ``_quantization_metadata`` in the header) is read as
it says. Without a description: ComfyUI's older ``X.scale_weight`` with a ``scaled_fp8`` marker and ``X.scale_input``,
``X.weight_scale`` for a tensor or each row (LightX2V), and musubi-tuner's scales for parts of rows.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wan_core.checkpoints.readers.packings import PACKINGS, Packing, UnfitError, has_scale_shape, is_scale, multiplied
from wan_core.checkpoints.readers.sources import DerivedSource, Recipe, TensorInfo, TensorSource
from wan_core.errors import CheckpointError
from wan_core.files import unique_keys

_SCALES = (".scale_weight", ".weight_scale")
_MARK = ".comfy_quant"
# Scales of activations, marks, and which kernel ComfyUI prefers for attention: nothing that changes a weight.
_NOT_NEEDED = (".scale_input", ".input_scale", _MARK, "scaled_fp8", ".comfy_attention.config")
_STORED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
DESCRIPTIONS = "_quantization_metadata"
"""The key of a header's metadata with the descriptions of all layers."""

_MAX_MARK_BYTES = 4_096
# How ComfyUI computes with a layer, and from which dtype it was made: its values do not depend on them.
_IDLE = frozenset({"format", "full_precision_matrix_mult", "orig_dtype"})

_PACKERS: Mapping[str, str] = {
    r"\.weight\._(?:data|scale|shift)$": "quanto",
    r"\.(?:nested_)?(?:absmax|quant_map)$|\.quant_state\.|\.SCB$": "bitsandbytes",
    r"\._weight_(?:qdata|zero_point)$|[.:](?:tensor_impl|layout_tensor)\b": "torchao",
    r"\.(?:wscales|wtscale|wcscales|smooth_factor(?:_orig)?)$": "nunchaku (SVDQuant)",
    r"\.int8_weight$": "TurboDiffusion",
    r"\.g_idx$": "GPTQ",
    r"\.qzeros$|\.qweight$": "AWQ or GPTQ",
    r"\.W_q$": "HQQ",
    r"\.weight_packed$": "compressed-tensors",
    r"\.weight_scale_inv$": "a tool for blockwise fp8",
    r"\.weight_scale_2$|\.weight_quantizer\.": "ModelOpt",
}
"""Other tools that pack weights, by names that only their files have."""


def dequantized(source: TensorSource) -> TensorSource:
    """A view of ``source`` without scales: plain weights in float32. Files without scales come back as they are.

    Raises CheckpointError for descriptions that are damaged or ask for what is not known, for scales without a weight
    or that do not fit it, and for files that another tool has packed.
    """
    described = _described(source)
    _refuse_packers(source, described)
    if not described and not any(name.endswith((*_SCALES, *_NOT_NEEDED)) for name in source):
        return source
    unpacked = {f"{layer}.weight": _unpacked(source, layer, settings) for layer, settings in described.items()}
    return DerivedSource(source, _recipes(source, unpacked))


def _recipes(source: TensorSource, unpacked: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """All tensors but scales and marks, in the order of the file."""
    scales = _scales(source)
    done = {name for recipe in unpacked.values() for name in recipe.inputs}
    recipes: dict[str, Recipe] = {}
    for name in source:
        if name in unpacked:
            recipes[name] = unpacked[name]
        elif name not in done and not name.endswith((*_SCALES, *_NOT_NEEDED)):
            if unpacked and name in scales and source.info(name).dtype is torch.int8:
                raise CheckpointError(
                    f"{source.path} describes how {len(unpacked)} layers are packed, and not how {name} is, which has "
                    "a scale; whether it is rotated is not known. Get the file as it was published"
                )
            recipes[name] = _plain(source, name, scales.get(name))
    orphans = [scale for weight, scale in scales.items() if weight not in recipes]
    if orphans:
        raise CheckpointError(
            f"{source.path}: {len(orphans)} scales have no weight ({', '.join(orphans[:5])}); fetch it again"
        )
    return recipes


def _scales(source: TensorSource) -> dict[str, str]:
    scales: dict[str, str] = {}
    for name in source:
        if name.endswith(_SCALES) and scales.setdefault(_weight_of(name), name) != name:
            raise CheckpointError(f"{source.path}: {scales[_weight_of(name)]} and {name} are two scales of one weight")
    return scales


def joined_descriptions(texts: Sequence[str]) -> str:
    """What the headers of several shards say together; the first that is damaged, so that it is refused later."""
    layers: dict[str, Any] = {}
    for text in texts:
        try:
            content = json.loads(text)
            layers |= content["layers"]
        except (ValueError, RecursionError, TypeError, KeyError):
            return text
        if not _is_known(content.get("format_version")):
            return text
    return json.dumps(content | {"layers": layers})


def described_formats(source: TensorSource) -> dict[str, int]:
    """The formats that a file describes, with the number of their layers. Raises CheckpointError as above."""
    counts: dict[str, int] = {}
    for settings in _described(source).values():
        name = f"{settings['format']} with ConvRot" if settings.get("convrot") else str(settings["format"])
        counts[name] = counts.get(name, 0) + 1
    return counts


# -- descriptions ------------------------------------------------------------------------------------------------------


def _described(source: TensorSource) -> dict[str, dict[str, Any]]:
    """What the file says of its layers, by their own names."""
    found = dict(_in_metadata(source))
    packed = (name for name in source if name.endswith(_SCALES) or source.info(name).dtype in _STORED)
    if DESCRIPTIONS in source.metadata and not found and any(packed):
        raise CheckpointError(
            f"{source.path}: its header describes packed layers, and it holds none of them; get the file as published"
        )
    for name in source:
        if not name.endswith(_MARK):
            continue
        layer, settings = name.removesuffix(_MARK), _settings(source, name, _mark(source, name))
        if found.setdefault(layer, settings) != settings:
            raise CheckpointError(f"{source.path}: {name} and the header say different things; fetch it again")
    return found


def _mark(source: TensorSource, name: str) -> Any:
    info = source.info(name)
    if info.dtype not in (torch.uint8, torch.int8) or not 0 < info.numel <= _MAX_MARK_BYTES:
        raise CheckpointError(f"{source.path}: {name} is no description of a layer; fetch it again")
    return _json(source, name, bytes(source.read(name).view(torch.uint8).flatten().tolist()))


def _in_metadata(source: TensorSource) -> Iterator[tuple[str, dict[str, Any]]]:
    text = source.metadata.get(DESCRIPTIONS)
    if text is None:
        return
    content = _json(source, DESCRIPTIONS, text)
    version, layers = content.get("format_version"), content.get("layers")
    if not _is_known(version):
        raise CheckpointError(
            f"{source.path}: {DESCRIPTIONS} has format_version {str(version)[:20]!r}, and only 1.0 is known here; get "
            "the 16-bit, fp8 or GGUF file of the model"
        )
    if not isinstance(layers, dict):
        raise CheckpointError(f"{source.path}: {DESCRIPTIONS} is damaged: it has no layers by name; fetch it again")
    stems = dict.fromkeys(name.removesuffix(".weight") for name in source if name.endswith(".weight"))
    ends: dict[str, list[str]] = {}
    for stem in stems:
        for end in _ends(stem):
            ends.setdefault(end, []).append(stem)
    for layer, content in layers.items():
        settings = _settings(source, layer, content)
        # Names may lack what stands in front of all names in the file, or have what was taken away there.
        places = [layer] if layer in stems else ends.get(layer) or [end for end in _ends(layer) if end in stems]
        if len(places) > 1:
            raise CheckpointError(
                f"{source.path}: its header describes the layer {layer[:80]!r}, and there are {len(places)} of that "
                "name; get the file as it was published"
            )
        if places:
            yield places[0], settings


def _is_known(version: Any) -> bool:
    """Whether a description has the one version that there is; without a word it is that."""
    return version is None or (
        isinstance(version, str | int | float) and re.fullmatch(r"1(\.\d+)*", str(version)) is not None
    )


def _ends(stem: str) -> list[str]:
    parts = stem.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _json(source: TensorSource, name: str, text: str | bytes) -> dict[str, Any]:
    try:
        content = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{source.path}: {name} is damaged: it holds no JSON object; fetch it again")
    return content


def _settings(source: TensorSource, name: str, content: Any) -> dict[str, Any]:
    """A description whose format and flags are all known; nested ``params`` are taken as if they were outside."""
    inner = content.get("params", {}) if isinstance(content, dict) else None
    if not isinstance(inner, dict) or any(content.get(key, value) != value for key, value in inner.items()):
        raise CheckpointError(f"{source.path}: the description of {name} is damaged; fetch it again")
    settings = {**inner, **{key: value for key, value in content.items() if key != "params"}}
    form = settings.get("format")
    packing = PACKINGS.get(form) if isinstance(form, str) else None
    if packing is None:
        raise CheckpointError(
            f"{source.path}: {name} is packed as {str(form)[:60]!r}, which is not known here (known: "
            f"{', '.join(PACKINGS)}); get the 16-bit, fp8 or GGUF file of the model"
        )
    unknown = sorted(settings.keys() - _IDLE - set(packing.settings))
    if unknown:
        raise CheckpointError(
            f"{source.path}: {name} is packed as {form} with {unknown[0][:60]!r} = "
            f"{str(settings[unknown[0]])[:40]}, which is not known here; get the 16-bit, fp8 or GGUF file of the model"
        )
    if not isinstance(settings.get("convrot", False), bool):
        raise CheckpointError(f"{source.path}: {name} says convrot is {str(settings['convrot'])[:40]!r}, no yes or no")
    return settings


def _unpacked(source: TensorSource, layer: str, settings: Mapping[str, Any]) -> Recipe:
    packing = PACKINGS[settings["format"]]
    names = {part: f"{layer}.{part}" for part in ("weight", *packing.scales) if f"{layer}.{part}" in source}
    missing = [part for part in ("weight", *packing.scales) if part not in {*names, *packing.optional}]
    if missing:
        raise CheckpointError(f"{source.path}: {layer} is packed as {settings['format']} and lacks {missing[0]}")
    stored = source.info(names["weight"])
    try:
        if stored.dtype not in packing.stored:
            raise UnfitError(f"it is stored as {str(stored.dtype).removeprefix('torch.')}")
        shape = packing.shape({part: source.info(name) for part, name in names.items()}, settings)
    except UnfitError as error:
        raise CheckpointError(
            f"{source.path}: {layer} says that it is packed as {settings['format']}, but {error}; get the 16-bit, fp8 "
            "or GGUF file of the model"
        ) from error
    make = partial(_decode, packing, tuple(names), settings)
    return Recipe(tuple(names.values()), TensorInfo(shape, torch.float32), make)


def _decode(packing: Packing, parts: Sequence[str], settings: Mapping[str, Any], tensors: Sequence[Tensor]) -> Tensor:
    return packing.decode(dict(zip(parts, tensors, strict=True)), settings)


# -- without a description ---------------------------------------------------------------------------------------------


def _refuse_packers(source: TensorSource, described: Mapping[str, Any]) -> None:
    names = "\n".join(name for name in source if name.rpartition(".")[0] not in described)
    for pattern, tool in _PACKERS.items():
        match = re.search(pattern, names, re.MULTILINE)
        if match is not None:
            name = names[names.rfind("\n", 0, match.start()) + 1 : match.end()]
            raise CheckpointError(
                f"{source.path} was packed by {tool} ({name[-120:]}), which is not read here; get the 16-bit, fp8 or "
                "GGUF file of the model"
            )


def _weight_of(scale: str) -> str:
    return next(scale.removesuffix(suffix) for suffix in _SCALES if scale.endswith(suffix)) + ".weight"


def _plain(source: TensorSource, weight: str, scale: str | None) -> Recipe:
    if scale is None:
        return Recipe((weight,), source.info(weight))
    stored, factor = source.info(weight), source.info(scale)
    # ComfyUI's older files have scales beside all matrices, also those that are not packed.
    is_known = stored.dtype in _STORED or (is_scale(stored) and len(stored.shape) == 2)
    if not is_known or not is_scale(factor) or not has_scale_shape(stored.shape, factor.shape):
        raise CheckpointError(
            f"{source.path}: {weight} ({stored.dtype}, {list(stored.shape)}) has a scale {list(factor.shape)}; "
            "such packing is not known. Use the 16-bit or fp8 file of the model"
        )
    return Recipe((weight, scale), TensorInfo(stored.shape, torch.float32), _multiply)


def _multiply(tensors: Sequence[Tensor]) -> Tensor:
    return multiplied(tensors[0], tensors[1])
