"""``pi3 inspect`` and ``pi3 download``: weight files."""

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import click

from pi3.checkpoints import HUB_IDS, PI3, download_weights, find_weights
from pi3.config import Pi3XConfig
from wan_core.checkpoints import build_on_meta, check_fit, native_weights, read_weights
from wan_core.cli import PLACE, ErrorReporting, debug_option


def describe(path: Path) -> dict[str, Any]:
    """What a weight file holds, after its names and shapes have been checked against the model."""
    weights = native_weights(read_weights(path), PI3)
    config = PI3.read_config(path, weights)
    check_fit(build_on_meta(partial(PI3.build, config)), weights)
    return {
        "file": str(path),
        "model": "Pi3X" if isinstance(config, Pi3XConfig) else "Pi3",
        "megabytes": round(path.stat().st_size / 1e6, 2),
        "tensors": len(weights),
        "million_values": round(weights.num_parameters / 1e6, 3),
        "dtypes": dict(Counter(weights.storage(name) for name in weights)),
        "patch_size": config.patch_size,
        "pixel_limit": config.pixel_limit,
        "width": config.encoder.dim,
        "encoder_layers": config.encoder.num_layers,
        "decoder_layers": config.decoder_layers,
        "scores": json.loads(weights.metadata.get("scores", "null")),
        "recipe": weights.metadata.get("recipe"),
    }


@click.command("inspect", cls=ErrorReporting)
@click.argument("checkpoint", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect_command(checkpoint: str | None, as_json: bool) -> None:
    """Check CHECKPOINT (file, folder or hub id; default: the bundled weights) and print what it holds."""
    facts = describe(find_weights(checkpoint))
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        if value is not None:
            click.echo(f"{name.replace('_', ' ') + ':':<16} {value}")


@click.command("download", cls=ErrorReporting)
@click.argument("name", default="pi3")
@click.option("--to", "folder", type=PLACE, help="A folder; default: the hub's cache.")
@click.option("--revision", help="Branch, tag or commit of the repository.")
@click.option("--token", help="Access token; default: HF_TOKEN or the saved one.")
def download_command(name: str, folder: Path | None, revision: str | None, token: str | None) -> None:
    """Fetch the weights NAME: pi3 (3.8 GB), pi3x (5.4 GB) or OWNER/NAME. The published ones are CC BY-NC 4.0."""
    repository = HUB_IDS.get(name.lower(), name)
    path = download_weights(repository, folder=folder, revision=revision, token=token)
    click.echo(f"{path}: weights of {repository}; use them with --checkpoint {folder or name}")


for _command in (inspect_command, download_command):
    _command.params.append(debug_option())
