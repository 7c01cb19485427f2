"""``wan prepare-animate``: a driving video and a picture of a character into the folder that animate-14B takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wan_core.cli.group import PLACE, ErrorReporting
from wan_core.cli.options import FINITE, debug_option
from wan_core.cli.progress import progress_unless, reporter


@click.command(cls=ErrorReporting, params=[debug_option()])
@click.option(
    "--ckpt-path", type=PLACE, required=True, help="process_checkpoint of Wan2.2-Animate-14B: detectors and editors."
)
@click.option("--video-path", "video", type=PLACE, required=True, help="The driving video: one person who moves.")
@click.option("--refer-path", "reference", type=PLACE, required=True, help="A picture of the character.")
@click.option("--save-path", type=PLACE, required=True, help="The folder to write.")
@click.option(
    "--resolution-area", type=(int, int), default=(1280, 720), show_default=True, metavar="W H",
    help="Width and height whose product is the area of what is written.",
)  # fmt: skip
@click.option("--fps", type=FINITE, default=30, show_default=True, help="Frames a second; -1: those of the video.")
@click.option("--replace-flag", "replace", is_flag=True, help="Replace the person of the video, and keep its scene.")
@click.option("--retarget-flag", "retarget", is_flag=True, help="Bring the motion to the character's proportions.")
@click.option("--use-flux", is_flag=True, help="Measure proportions in pictures that FLUX.1 Kontext edits.")
@click.option("--iterations", type=int, default=3, show_default=True, help="How often the mask grows; 0: as it is.")
@click.option("--k", "kernel", type=int, default=7, show_default=True, help="Pixels by which it grows, a square.")
@click.option("--w-len", "width_parts", type=int, default=1, show_default=True, help="Cells of the mask's box across.")
@click.option("--h-len", "height_parts", type=int, default=1, show_default=True, help="Cells of the mask's box down.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the edited pictures.")
@click.option("--preview", type=PLACE, help="Also write a strip of all that was made, .png.")
@click.option("--overwrite", is_flag=True, help="Replace files in the folder that were made otherwise.")
@click.option("--device", help="cpu, cuda, cuda:INDEX or mps; default: the best there is.")
@click.option("--dtype", help="float32, bfloat16 or float16; default: float32 on the CPU, else bfloat16.")
@click.option("--quiet", is_flag=True, help="No progress and no notes.")
def prepare_animate(ckpt_path: Path, preview: Path | None, overwrite: bool, quiet: bool, **values: Any) -> None:
    """Find the person in every frame of a video, and write what 'wan generate animate-14B' takes: src_pose.mp4,
    src_face.mp4 and src_ref.png, with --replace-flag also src_bg.mp4 and src_mask.mp4.

    A run that was stopped goes on with the same command.
    """
    from wan_core.animate import Preparation, PrepareModels, PrepareRequest, preview_sheet
    from wan_core.media import check_output, write_image
    from wan_core.runtime import resolve_device, resolve_dtype

    device = resolve_device(values.pop("device"))
    dtype = resolve_dtype(values.pop("dtype"), device)
    if preview is not None:
        check_output(preview, num_frames=1)
    preparation = Preparation(
        PrepareRequest(**values),
        PrepareModels(ckpt_path),
        device=device,
        dtype=dtype,
        progress=progress_unless(quiet),
        log=reporter(quiet),
        overwrite=overwrite,
        further=() if preview is None else (preview,),
    )
    files = preparation.run()
    if preview is not None:
        write_image(preview_sheet(preparation.video, files), preview)
    video = preparation.video
    for path in [*files.values(), *([] if preview is None else [preview])]:
        click.echo(str(path))
    reporter(quiet)(f"{len(video)} frames at {video.fps:g} a second")
