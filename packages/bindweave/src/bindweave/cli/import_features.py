"""``bindweave import-features``: samples that the original's feature extraction stored, as a cache to train on."""

from pathlib import Path
from typing import Any

import click

from wan_core.cli import FINITE, PLACE, ErrorReporting, debug_option, reporter


@click.command("import-features", cls=ErrorReporting, params=[debug_option()])
@click.argument("features", type=PLACE)
@click.argument("out", type=PLACE)
@click.option("--model", default="bindweave-14B", show_default=True, help="The model to train later.")
@click.option("--ckpt-dir", type=PLACE, help="Folder of its weights.")
@click.option("--dit", type=PLACE, help="BindWeave's weights, or plain Wan's.")
@click.option("--fps", type=FINITE, default=16.0, show_default=True, help="Of the stored clips.")
@click.option("--device", help="cpu, cuda, cuda:1, mps; default: the best one.")
@click.option("--quiet", is_flag=True, help="No notes.")
def import_features(**values: Any) -> None:
    """Make the cache OUT of the stored samples (.pt) in FEATURES, for 'bindweave train --cache OUT'.

    Called again it goes on where it stopped.
    """
    from bindweave.stored_features import import_features as make
    from wan_core.files import check_place
    from wan_core.loading import RuntimeOptions, load_pipeline
    from wan_core.training import Cache, check_apart

    out: Path = values["out"]
    parts = {} if values["dit"] is None else {"dit": values["dit"]}
    pipeline = load_pipeline(values["model"], values["ckpt_dir"], RuntimeOptions(device=values["device"], parts=parts))
    check_apart(out, [values["features"]])
    check_place(out, is_folder=True)
    make(values["features"], out, pipeline, fps=values["fps"])
    made = Cache(out)
    made.verify()
    reporter(values["quiet"])(f"{out}: {len(made)} examples")
