"""``pi3 inspect`` and ``pi3 download``: weight files."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click
import torch

from pi3.checkpoints import HUB_IDS, download_weights, find_weights, open_weights, read_config
from pi3.checkpoints.load import check_fit
from pi3.config import Pi3XConfig
from wan_core.checkpoints import TensorSource
from wan_core.cli import debug_option


def describe(weights: TensorSource) -> dict[str, Any]:
    """What a weight file holds, after its names and shapes have been checked against the model."""
    config = read_config(weights)
    with torch.device("meta"):
        model = config.build()
    check_fit(weights, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    infos = [weights.info(name) for name in weights]
    return {
        "file": str(weights.path),
        "model": "Pi3X" if isinstance(config, Pi3XConfig) else "Pi3",
        "megabytes": round(weights.path.stat().st_size / 1e6, 2),
        "tensors": len(weights),
        "million_values": round(sum(info.numel for info in infos) / 1e6, 3),
        "dtypes": dict(Counter(weights.storage(name) for name in weights)),
        "patch_size": config.patch_size,
        "pixel_limit": config.pixel_limit,
        "width": config.encoder.dim,
        "encoder_layers": config.encoder.num_layers,
        "decoder_layers": config.decoder_layers,
        "scores": json.loads(weights.metadata.get("scores", "null")),
        "recipe": weights.metadata.get("recipe"),
    }


@click.command("inspect", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect_command(checkpoint: str | None, as_json: bool) -> None:
    """Check CHECKPOINT (file, folder or hub id; default: the bundled weights) and print what it holds."""
    facts = describe(open_weights(find_weights(checkpoint)))
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        if value is not None:
            click.echo(f"{name.replace('_', ' ') + ':':<16} {value}")


@click.command("download", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", default="pi3")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="A folder; default: the hub's cache.")
@click.option("--revision", help="Branch, tag or commit of the repository.")
@click.option("--token", help="Access token; default: HF_TOKEN or the saved one.")
def download_command(name: str, folder: Path | None, revision: str | None, token: str | None) -> None:
    """Fetch the weights NAME: pi3 (3.8 GB), pi3x (5.4 GB) or OWNER/NAME. The published ones are CC BY-NC 4.0."""
    repository = HUB_IDS.get(name.lower(), name)
    path = download_weights(repository, folder=folder, revision=revision, token=token)
    click.echo(f"{path}: weights of {repository}; use them with --checkpoint {folder or name}")


for _command in (inspect_command, download_command):
    _command.params.append(debug_option())
