"""``sfu merge-lora``: the seed's command line over the core's merge, with a record of what went into the result."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from wan_core import RequestError
from wan_core.cli import PLACE, ErrorReporting, debug_option, reporter, write_again, writing_options
from wan_core.files import hash_file, plain_text

RECORD = "merge.json"
"""The record in a folder; beside a file it has the file's name before its own."""


def parse_alpha(context: click.Context, param: click.Parameter, value: float) -> float:
    """A strength; the core's range. Raises RequestError."""
    if not -100 <= value <= 100 or value == 0:
        raise RequestError(f"--alpha is a strength from -100 to 100 other than 0, got {value:g}")
    return value


@click.command("merge-lora", cls=ErrorReporting)
@click.option("--base", required=True, type=PLACE, help="A file, or the folder of a model.")
@click.option("--lora", required=True, type=PLACE, help="The LoRA, such as UniAnimate's .ckpt.")
@click.option("--out", required=True, type=PLACE, help="A new .safetensors file or folder.")
@click.option("--alpha", type=float, default=1.0, show_default=True, callback=parse_alpha, help="Its strength.")
@click.option("--device", default="cpu", show_default=True, help="Where sums are made: cpu, cuda, cuda:INDEX or mps.")
def merge_lora(base: Path, lora: Path, out: Path, alpha: float, device: str, **values: Any) -> None:
    """Write BASE to OUT with a LoRA merged into its transformer: W + alpha * (stored alpha / rank) * B A.

    Sums are in float32; a LoRA that stores no alpha has that of its rank. Every pair must have its place, or nothing is
    written. What went in is recorded as merge.json in OUT, or beside it. A pose encoder in the LoRA's file stays there.
    """
    from wan_core.checkpoints import LoRA, find_weights, inspect_weights, read_json, write_json
    from wan_core.runtime import resolve_device

    if not lora.exists():
        raise RequestError(f"there is no LoRA file {plain_text(lora)}; check the name after --lora")
    place = resolve_device(device)
    refuse_twice(base, [lora])
    record, earlier = record_of(out), record_of(base)
    # Hashed before, so that a merge that is stopped meanwhile leaves no result without its record.
    read = {"base": hashes(base), "lora": hashes(lora)}
    write_again(base, out, None, {**values, "device": place, "loras": (LoRA(lora, alpha),), "force_lora": False})
    summaries = [inspect_weights(weights).lora for weights in find_weights(lora).of("lora")]
    ranks = {rank: count for each in summaries if each is not None for rank, count in each.ranks.items()}
    write_json(
        record,
        {
            **read,
            "alpha": alpha,
            "ranks": sorted(ranks),
            "pairs": sum(ranks.values()),
            "dtype": values["dtype"] or "as stored",
            **({"earlier": read_json(earlier)} if earlier.is_file() else {}),
        },
    )
    reporter(values["quiet"])(f"{sum(ranks.values())} pairs merged; {plain_text(record)} says of what")


def record_of(place: Path) -> Path:
    """Where the record of a merge lies: in a folder, or beside a ``.safetensors`` file."""
    return place.with_name(f"{place.name}.{RECORD}") if place.suffix == ".safetensors" else place / RECORD


def refuse_twice(base: Path, loras: Iterable[Path]) -> None:
    """Raises RequestError for a LoRA that is in ``base`` already, by the record of a merge and those before it."""
    record = record_of(base)
    if not record.is_file():
        return
    from wan_core.checkpoints import read_json

    merged = set(_merged(read_json(record)))
    for lora in loras:
        if merged.intersection(hashes(lora).values()):
            raise RequestError(
                f"{plain_text(lora)} is merged into {plain_text(base)} already, says {plain_text(record)}; leave it "
                "out, or begin with the weights before that"
            )


def _merged(record: Mapping[str, Any]) -> Iterator[object]:
    """The hashes of the LoRAs of a record and of those before it; the record may be a stranger's."""
    known: object = record
    while isinstance(known, Mapping):
        files = known.get("lora")
        yield from (value for value in files.values() if isinstance(value, str)) if isinstance(files, Mapping) else ()
        known = known.get("earlier")


def hashes(path: Path) -> dict[str, str]:
    """The SHA-256 of a file, or of each file of weights in a folder, by name. Raises CheckpointError."""
    return {name: hash_file(file) for name, file in _weight_files(path)}


def _weight_files(path: Path) -> Iterator[tuple[str, Path]]:
    from wan_core.checkpoints import find_weights

    files = {file for weights in find_weights(path).weights for file in weights.files}
    for file in sorted(files):
        yield (file.relative_to(path).as_posix() if path.is_dir() else file.name), file


merge_lora.params += [*writing_options(), debug_option()]
