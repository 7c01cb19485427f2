"""``pi3 depth`` and ``pi3 poses``: one part of a reconstruction, as files."""

from pathlib import Path

import click

from pi3.cli.options import ReconstructOptions, command, run_model
from pi3.depth_maps import DEPTH_NAMES, write_depth
from pi3.exports import check_poses_kind, poses_json, write_poses
from wan_core import RequestError
from wan_core.cli import PLACE
from wan_core.files import check_place
from wan_core.media import check_own_files


def run_depth(options: ReconstructOptions, out: Path) -> None:
    """Check everything, reconstruct, write the depth maps."""
    if out.suffix or out.is_file():
        raise RequestError(f"depth maps go into a folder; {out} looks like a file")
    check_place(out, is_folder=not out.suffix)
    check_own_files((out / f"{each.stem}{end}.png" for each in options.files() for end in DEPTH_NAMES), options.images)
    scene = run_model(options)
    scale = write_depth(scene, out)
    options.log(f"{out}: {len(scene.names)} depth maps, depth = level * {scale:.6g}")


def run_poses(options: ReconstructOptions, out: Path | None) -> None:
    """Check everything, reconstruct, write or print the cameras."""
    if out is not None:
        check_poses_kind(out)
        check_place(out, is_folder=not out.suffix)
    scene = run_model(options)
    if out is None:
        click.echo(poses_json(scene), nl=False)
    else:
        write_poses(scene, out)
        options.log(f"{out}: {len(scene.names)} cameras")


depth_command = command(
    "depth",
    "Depth maps of PICTURES (pictures, one folder, or one video): 16-bit PNG, colours, and the scale.",
    [click.Option(["--out", "-o"], required=True, type=PLACE, help="A folder.")],
    run_depth,
)
poses_command = command(
    "poses",
    "Camera-to-world matrices and intrinsics of PICTURES (pictures, one folder, or one video).",
    [click.Option(["--out", "-o"], type=PLACE, help=".json, .txt (TUM) or .npz; default: print JSON.")],
    run_poses,
)
