"""What the commands share: options, the model on its device, and the checks that come before any work."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
import torch

from pi3.checkpoints import bundled_weights, load_pi3
from pi3.cli.sources import read_views
from pi3.edges import CONFIDENCE, DEPTH_RTOL
from pi3.scene import Scene, reconstruct
from wan_core import RequestError
from wan_core.cli import FINITE, PLACE, ErrorReporting, debug_option, reporter
from wan_core.runtime import DTYPES, resolve_device


@dataclass(frozen=True, kw_only=True)
class ReconstructOptions:
    """Everything that the reconstructing commands share. Raises RequestError for numbers that cannot work."""

    images: tuple[Path, ...]
    checkpoint: str | None
    revision: str | None
    interval: int | None
    pixel_limit: int | None
    conf: float
    edge_rtol: float
    device: str | None
    dtype: str | None
    quiet: bool

    def __post_init__(self) -> None:
        if self.interval is not None and self.interval < 1:
            raise RequestError(f"--interval must be at least 1, got {self.interval}")
        if self.pixel_limit is not None and self.pixel_limit < 196:
            raise RequestError(f"--pixel-limit must be at least 196, one patch, got {self.pixel_limit}")
        if not 0 <= self.conf <= 1:
            raise RequestError(f"--conf is a probability from 0 to 1, got {self.conf}")
        if self.edge_rtol < 0:
            raise RequestError(f"--edge-rtol must be at least 0, got {self.edge_rtol}")

    def files(self) -> list[Path]:
        """The pictures, those of a folder one by one, or the video."""
        return [path for given in self.images for path in (given.iterdir() if given.is_dir() else [given])]

    def log(self, text: str) -> None:
        """Tell the user, on standard error, unless that is not wanted."""
        reporter(self.quiet)(text)


def run_options() -> list[click.Parameter]:
    """Images in, which model, where and how it computes."""
    return [
        click.Argument(["images"], nargs=-1, required=True, type=PLACE, metavar="PICTURES"),
        click.Option(
            ["--checkpoint", "--ckpt"],
            help="File, folder, pi3, pi3x or OWNER/NAME; default: the bundled tiny model of rendered rooms.",
        ),
        click.Option(["--revision"], help="Revision of a hub checkpoint."),
        click.Option(
            ["--interval"], type=int, help="Take every k-th picture or frame; default 10 for a video, else 1."
        ),
        click.Option(["--pixel-limit"], type=int, help="Pixels of a view at most; default: the model's, 255000."),
        click.Option(
            ["--conf"], type=FINITE, default=CONFIDENCE, show_default=True, help="Keep what is at least this certain."
        ),
        click.Option(
            ["--edge-rtol"],
            type=FINITE,
            default=DEPTH_RTOL,
            show_default=True,
            help="Drop depth edges steeper than this share of the depth; 0 keeps all.",
        ),
        click.Option(["--device"], help="Where to compute, such as cpu; default: the accelerator, where there is one."),
        click.Option(
            ["--dtype"],
            type=click.Choice(list(DTYPES)),
            help="Of the network; heads stay float32. Default: bfloat16 where the accelerator has it, else float32.",
        ),
        click.Option(["--quiet"], is_flag=True, help="No messages but errors."),
        debug_option(),
    ]


def pick_autocast(name: str | None, device: torch.device) -> torch.dtype | None:
    """The dtype to run the network in, None for float32."""
    if name is not None:
        return None if name == "float32" else DTYPES[name]
    if device.type == "cpu":
        return None
    has_bfloat16 = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return torch.bfloat16 if has_bfloat16 is not None and has_bfloat16() else None


def run_model(options: ReconstructOptions) -> Scene:
    """Read the images, load the model and reconstruct."""
    device = resolve_device(options.device)
    if options.checkpoint is None:
        bundled_weights()  # fails before the images are read
    model = load_pi3(options.checkpoint, device=device, revision=options.revision)
    views = read_views(
        options.images,
        interval=options.interval,
        pixel_limit=options.pixel_limit or model.config.pixel_limit,
        patch_size=model.config.patch_size,
        warn=lambda text: options.log(f"note: {text}"),
    )
    size = f"{views.images.shape[-1]}x{views.images.shape[-2]}"
    options.log(f"{len(views.names)} views of {size} on {device}")
    return reconstruct(
        model,
        views.images,
        views.names,
        confidence=options.conf,
        edge_rtol=options.edge_rtol or None,
        autocast=pick_autocast(options.dtype, device),
    )


def command(name: str, help: str, options: list[click.Parameter], run: Callable[..., None]) -> click.Command:
    """A command of the shared options and its own; ``run`` gets the former as one, the latter by name."""

    def call(**values: Any) -> None:
        shared = {field.name: values.pop(field.name) for field in fields(ReconstructOptions)}
        run(ReconstructOptions(**shared), **values)

    shared = run_options()
    return ErrorReporting(name, params=[shared[0], *options, *shared[1:]], callback=call, help=help)
