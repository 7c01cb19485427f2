"""``wan convert SRC OUT``: weights in another layout, dtype or number of files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wan_core.cli.group import PLACE, ErrorReporting
from wan_core.cli.loras import LoRAMerge, lora_options
from wan_core.cli.options import ParsedType
from wan_core.cli.progress import byte_progress, reporter
from wan_core.errors import CheckpointError, RequestError
from wan_core.files import plain_text

if TYPE_CHECKING:
    from wan_core.checkpoints import Contents, Layout, Network, PipelineFacts

_DTYPES = ("float32", "bfloat16", "float16")

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """``5GB``, ``500MB``, ``2GiB`` or a plain number as bytes. Raises RequestError."""
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise RequestError(f"{text!r} is no size; write for instance 5GB or 500MB")
    return int(float(match[1]) * unit)


def writing_options() -> list[click.Option]:
    """How weights are written; for every command that writes some, in the order of their help."""
    return [
        click.Option(
            ["--dtype"], type=click.Choice(_DTYPES), help="Default: as stored; 8-bit weights become bfloat16."
        ),
        click.Option(
            ["--shard-size"],
            type=ParsedType("SIZE", parse_bytes),
            default="5GB",
            help="Largest safetensors file of a transformer; default 5GB.",
        ),
        click.Option(["--overwrite"], is_flag=True, help="Replace OUT when it exists."),
        click.Option(["--quiet"], is_flag=True, help="No progress."),
    ]


@click.command(cls=ErrorReporting)
@click.argument("source", metavar="SRC", type=PLACE)
@click.argument("out", type=PLACE)
@click.option(
    "--to",
    "layout",
    type=click.Choice(["official", "diffusers", "single"]),
    help="Layout of OUT; single: one .safetensors file a network, as ComfyUI reads. Default: that of SRC.",
)
def convert(source: Path, out: Path, layout: Layout | None, **values: Any) -> None:
    """Write the weights in SRC to OUT in another layout, dtype or file size, perhaps with LoRAs merged in.

    SRC is a file, the folder of one network, or a whole checkpoint folder, in any format that is read. A network alone
    becomes a folder with its config.json, or one file when OUT ends with .safetensors. OUT appears when it is whole.
    """
    write_again(source, out, layout, values)


convert.params += [
    *lora_options(),
    click.Option(
        ["--group"],
        metavar="NAME",
        help="Which of several transformers in a trainer's file; default: averaged weights.",
    ),
    *writing_options(),
]


def write_again(source: Path, out: Path, layout: Layout | None, values: Mapping[str, Any]) -> None:
    """Write the weights in ``source`` to ``out``; ``values`` are the parsed options of :func:`writing_options` and of
    :func:`lora_options`, perhaps with a ``device`` for sums. Raises RequestError, CheckpointError and MediaError;
    nothing half-written stays."""
    from wan_core.checkpoints import ExportOptions, export_networks, find_weights, networks_in
    from wan_core.runtime import DTYPES

    log = reporter(values["quiet"])
    dtype = DTYPES[values["dtype"]] if values["dtype"] else None
    contents = find_weights(source)
    merge = None
    if values["loras"]:
        merge = LoRAMerge(values["loras"], force=values["force_lora"], dtype=dtype, device=values.get("device"))
    if merge is not None:
        merge.check_out(out)
    networks = networks_in(contents, dtype=dtype, merge=merge, group=values.get("group"))
    for note in dict.fromkeys(note for network in networks for note in network.notes):
        log(plain_text(note))
    left_out = [weights.name for weights in contents.weights if weights.family in ("", "lora")]
    if left_out:
        log(f"left out: {plain_text(', '.join(left_out[:5]))}, which no model here has")
    if merge is not None:
        merge.report(source, log)
    options = ExportOptions(
        layout=layout, dtype=dtype, max_shard_bytes=values["shard_size"], overwrite=values["overwrite"]
    )
    facts = pipeline_facts(contents, networks)
    progress = byte_progress("writing", quiet=values["quiet"])
    names = export_networks(networks, contents, out, options, facts=facts, progress=progress)
    click.echo(f"{plain_text(out)}: {len(names)} files written" if len(names) > 1 else f"{plain_text(out)} written")


def pipeline_facts(contents: Contents, networks: list[Network]) -> PipelineFacts:
    """What a diffusers pipeline must know, from the first preset that the transformers fit.

    Raises CheckpointError for two transformers of no known model.
    """
    from wan_core.checkpoints import PipelineFacts
    from wan_core.models import WanDiTConfig
    from wan_core.presets import get_preset
    from wan_core.presets.fit import fitting_presets

    configs = [network.config for network in networks if isinstance(network.config, WanDiTConfig)]
    if not configs:
        return PipelineFacts(flow_shift=1.0)
    names = fitting_presets(configs[0], len(configs)).names
    if not names:
        if len(configs) > 1:
            raise CheckpointError(f"the two transformers in {contents.path} are of no model that is known here")
        return PipelineFacts(flow_shift=5.0)
    preset = get_preset(names[0])
    return PipelineFacts(
        flow_shift=preset.sampling.flow_shift,
        boundary=preset.boundary,
        frame_timesteps=configs[0].in_dim == configs[0].out_dim == 48,
    )
