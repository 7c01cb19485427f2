"""``wan inspect PATH``: what a file or folder of weights is. Nothing but headers is read, and nothing is ever run."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from wan_core.checkpoints import (
    CheckpointLayout,
    Contents,
    Inspection,
    LoRASummary,
    find_weights,
    inspect_weights,
    tensor_rows,
    title_of,
)
from wan_core.cli.group import PLACE, ErrorReporting
from wan_core.errors import CheckpointError
from wan_core.files import gigabytes
from wan_core.media import plain_text
from wan_core.models import WanDiTConfig
from wan_core.presets import get_preset
from wan_core.presets.fit import fitting_presets, lora_presets, part_presets

_SHOWN = 12
_LONGEST = 160


@click.command(cls=ErrorReporting)
@click.argument("path", type=PLACE)
@click.option("--keys", is_flag=True, help="List every tensor with its dtype and shape.")
@click.option("--json", "as_json", is_flag=True, help="Print machine-readable JSON.")
def inspect(path: Path, keys: bool, as_json: bool) -> None:
    """Say what PATH is: a file of weights, the folder of one network, or a whole checkpoint.

    Printed are format, fitting models, dtypes, parameters, size and metadata; of a LoRA its rank and targets. Only
    headers are read, and nothing in a file is ever run.
    """
    contents = find_weights(path)
    found = [inspect_weights(weights) for weights in contents.weights]
    models = fitting_models(contents, found)
    if as_json:
        click.echo(json.dumps(report(contents, found, models, keys=keys), indent=2, ensure_ascii=False))
    else:
        for line in lines(contents, found, models, keys=keys):
            click.echo(line)
    if contents.unreadable:
        raise CheckpointError(f"{len(contents.unreadable)} of the files in {path} cannot be read, as listed")


def fitting_models(contents: Contents, found: list[Inspection]) -> dict[str, list[str]]:
    """The presets that the transformers, or the LoRA, here are for: name, and what a whole checkpoint lacks for it."""
    configs = [item.config for item in found if isinstance(item.config, WanDiTConfig)]
    if not configs:
        return _models_of_a_part(found)
    networks = [item for item in found if item.weights.family == "dit"]
    if any(item.missing or item.unexpected or item.config != configs[0] for item in networks):
        return {}
    is_whole = contents.path.is_dir() and len(found) > len(networks)
    names = fitting_presets(configs[0], len(networks) if is_whole or _are_experts(networks) else None).names
    return {name: _lacking(contents.path, name) if is_whole else [] for name in names}


def _are_experts(networks: list[Inspection]) -> bool:
    return any(item.weights.expert is not None for item in networks)


def _models_of_a_part(found: list[Inspection]) -> dict[str, list[str]]:
    if len(found) != 1:
        return {}
    config, lora, halves = found[0].config, found[0].lora, len(found[0].experts) == 2
    names: tuple[str, ...] = ()
    if lora is not None and not found[0].problem:
        names = lora_presets(lora.width, lora.num_blocks, lora.has_image_branch, has_halves=halves)
    elif config is not None:
        names = part_presets(config)
    return {name: [] for name in names}


def _lacking(folder: Path, name: str) -> list[str]:
    layout = CheckpointLayout(folder)
    missing = layout.missing(get_preset(name).parts)
    return [part.file or "diffusion_pytorch_model*.safetensors" for part in missing]


def report(
    contents: Contents, found: list[Inspection], models: Mapping[str, list[str]], *, keys: bool
) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "path": str(contents.path),
        "models": {name: {"missing_parts": missing} for name, missing in models.items()},
        "bytes": total_bytes(found),
        "parameters": sum(item.num_parameters for item in found),
        "weights": [item.to_json(keys=keys) for item in found],
        "tokenizers": [str(folder.relative_to(contents.path)) for folder in contents.tokenizers],
        "unreadable": [{"name": name, "problem": problem} for name, problem in contents.unreadable],
    }


def total_bytes(found: list[Inspection]) -> int:
    """Bytes of all files; one that holds several networks counts once."""
    return sum({item.weights.files: item.num_bytes for item in found}.values())


def lines(contents: Contents, found: list[Inspection], models: Mapping[str, list[str]], *, keys: bool) -> Iterator[str]:
    """The report for people."""
    total = total_bytes(found)
    yield _row(plain_text(contents.path), f"{len(found)} networks, {gigabytes(total)}" if len(found) != 1 else "")
    loras = [item.lora for item in found if item.lora is not None and not item.problem]
    is_untold = [lora.width for lora in loras] == [None]
    yield from _model_rows(models, "a model that its layers do not tell; --lora compares them" if is_untold else None)
    if len(loras) == len(found) == 1:
        yield from _use_rows(contents.path, next(iter(models), "MODEL"))
    for folder in contents.tokenizers:
        yield _row("tokenizer", plain_text(folder.relative_to(contents.path).as_posix()))
    for item in found:
        yield ""
        yield from _weight_rows(item)
        if keys:
            for row in tensor_rows(item.weights.source):
                yield f"  {plain_text(row['name'])}  {row['dtype']} {row['shape']}"
    for name, problem in contents.unreadable:
        yield ""
        yield _row("cannot be read", plain_text(f"{name}: {problem}"))


def _model_rows(models: Mapping[str, list[str]], otherwise: str | None) -> Iterator[str]:
    whole = [name for name, missing in models.items() if not missing]
    if whole:
        yield _row("fits", ", ".join(whole))
    for name, missing in models.items():
        if missing and not whole:
            yield _row("fits", f"{name}, but lacks {', '.join(missing)}")
    if not models:
        yield _row("fits", otherwise or "no model that is known here")


def _use_rows(path: Path, model: str) -> Iterator[str]:
    """The commands that use a LoRA."""
    weights = " --ckpt-dir FOLDER" if model == "MODEL" or get_preset(model).bundled is None else ""
    lora = plain_text(shlex.quote(str(path)))
    yield _row("used by", f"wan generate {model}{weights} --lora {lora} --prompt TEXT")
    yield _row("merged by", f"wan merge-lora WEIGHTS OUT --lora {lora}")


def _weight_rows(item: Inspection) -> Iterator[str]:
    weights = item.weights
    what = title_of(weights.family) + (f", {item.format} names" if item.format else "")
    yield _row(plain_text(weights.name), what)
    files = f"{len(weights.files)} files, " if len(weights.files) > 1 else ""
    yield _row("  stored as", f"{item.kind}, {files}{gigabytes(item.num_bytes)}")
    yield _row("  parameters", f"{item.num_parameters:,} in {len(weights.source)} tensors")
    yield _row("  dtypes", ", ".join(f"{name} {count:,}" for name, count in item.storage.items()))
    if item.config is not None:
        yield _row("  dims", ", ".join(_dims(item.config)))
    if item.lora is not None:
        yield from _lora_rows(item.lora)
        if item.experts:
            yield _row("  for", " and ".join(f"the {expert}-noise expert" for expert in item.experts))
    if len(item.groups) > 1:
        taken = "" if item.problem else f"; {item.groups[0]} is taken"
        yield _row("  models in it", f"{', '.join(item.groups)}{taken}")
    for note in item.notes:
        yield _row("  note", plain_text(note.removeprefix("note: ")))
    for what, names in (("missing", item.missing), ("unexpected", item.unexpected)):
        if names:
            yield _row(f"  {what}", f"{len(names)}: {plain_text(', '.join(names[:5]))}{', ...' if names[5:] else ''}")
    if item.problem:
        yield _row("  problem", plain_text(item.problem))
    yield from _metadata_rows(weights.source.metadata)


def _dims(config: Any) -> Iterator[str]:
    for name, value in asdict(config).items():
        if value not in (None, (), 0.0) and not isinstance(value, Mapping) and not name.startswith("latents_"):
            yield f"{name} {value}"


def _metadata_rows(metadata: Mapping[str, str]) -> Iterator[str]:
    for key, value in sorted(metadata.items()):
        text = plain_text(value)
        yield _row("  metadata", f"{plain_text(key)}: {text[:_LONGEST]}{' ...' if text[_LONGEST:] else ''}")


def _lora_rows(lora: LoRASummary) -> Iterator[str]:
    yield _row("  rank", ", ".join(f"{rank} ({count} layers)" for rank, count in lora.ranks.items()) or "none")
    targets = [f"{plain_text(name)} ({count})" for name, count in lora.targets.items()]
    more = f", {len(targets) - _SHOWN} more" if targets[_SHOWN:] else ""
    yield _row("  targets", ", ".join(targets[:_SHOWN]) + more)
    if lora.other:
        yield _row("  besides", ", ".join(f"{name} ({count})" for name, count in lora.other.items()))


def _row(name: str, text: str) -> str:
    return f"{name:<18} {text}".rstrip()
