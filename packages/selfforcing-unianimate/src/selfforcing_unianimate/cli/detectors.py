"""The options of every command that looks for persons: where the detectors lie, and where they run."""

from pathlib import Path

import click

from wan_core.cli import PLACE

detector_dir = click.option(
    "--detector-dir",
    type=PLACE,
    default=Path("checkpoints/detectors"),
    show_default=True,
    help="Folder with yolox_l.onnx and dw-ll_ucoco_384.onnx.",
)
detector_device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu"]),
    default="auto",
    show_default=True,
    help="cpu keeps networks off an accelerator.",
)
