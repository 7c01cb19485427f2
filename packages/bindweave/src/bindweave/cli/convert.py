"""``bindweave convert``: the release as MindSpeed-MM reads it, and back. Nothing here needs it: both load directly."""

from __future__ import annotations

from pathlib import Path

import click

from wan_core import RequestError
from wan_core.cli import PLACE, ErrorReporting, debug_option, reporter

MODES = ("convert_to_mm", "convert_to_hf")


@click.command(cls=ErrorReporting, params=[debug_option()])
@click.option("--source_path", type=PLACE, required=True, help="The weights: the release, MM's folder, or native ones.")
@click.option("--target_path", type=PLACE, required=True, help="A new folder; that of the source: one below it.")
@click.option("--mode", type=click.Choice(MODES), default=MODES[0], show_default=True, help="The direction.")
@click.option("--pp_vpp_layers", metavar="JSON", help="Layers of each pipeline stage: [10,10,10,10]; [[5,5],[5,5]].")
@click.option("--ckpt_path", type=PLACE, help="convert_to_hf: write shards as this folder's index lists them.")
@click.option("--quiet", is_flag=True, help="No notes.")
def convert(
    source_path: Path, target_path: Path, mode: str, pp_vpp_layers: str | None, ckpt_path: Path | None, quiet: bool
) -> None:
    """Write BindWeave's weights under the names and in the files of MindSpeed-MM, or back under the release's.

    Tensors are copied one at a time and stay as they are. No command here needs a conversion: 'bindweave infer' reads
    the release, MM's folders and native weights alike.
    """
    from bindweave.conversion import StageLayers, convert_to_hf, convert_to_mm, fresh_target

    if mode == "convert_to_mm" and ckpt_path is not None:
        raise RequestError("--ckpt_path lists the release's shards; it belongs to --mode convert_to_hf")
    if mode == "convert_to_hf" and pp_vpp_layers:
        raise RequestError("--pp_vpp_layers cuts the weights of MM; it belongs to --mode convert_to_mm")
    stages = StageLayers.parse(pp_vpp_layers)
    target = fresh_target(source_path, target_path, mode)
    if target != target_path:
        reporter(quiet)(f"note: source and target are one folder; the converted weights go into {target}")
    if mode == "convert_to_mm":
        done = convert_to_mm(source_path, target, stages)
    else:
        done = convert_to_hf(source_path, target, ckpt_path)
    click.echo(str(done))
