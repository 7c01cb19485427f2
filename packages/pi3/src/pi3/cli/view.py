"""``pi3 view``: a point cloud, or a sequence of them, as a video."""

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pi3.cli.reconstruct import (
    ORBIT_DEGREES,
    ORBIT_SECONDS,
    PREVIEW_SIZE,
    check_max_points,
    frame_tensor,
    point_size,
)
from pi3.ply import read_ply
from pi3.splat import Orbit, Viewpoint, draw_points
from wan_core import RequestError
from wan_core.cli import ErrorReporting, debug_option
from wan_core.files import folder_files, natural_order
from wan_core.media import check_output, write_video

Cloud = tuple[NDArray[np.float32], NDArray[np.uint8]]


def find_clouds(sequence: str) -> list[Path]:
    """The PLY files of a name, a folder or a pattern, in counting order. Raises RequestError when there is none."""
    path = Path(sequence)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = folder_files(path, (".ply",))
    else:
        parent = path.parent
        found = [one for one in parent.glob(path.name) if one.is_file()] if parent.is_dir() else []
    if not found:
        raise RequestError(f"{sequence}: no .ply file there; give a file, a folder or a pattern such as 'clouds/*.ply'")
    return sorted(found, key=natural_order)


def read_cloud(path: Path, max_points: int) -> Cloud:
    """Points and colours of a file, thinned out evenly."""
    points, colours = read_ply(path)
    if len(points) > max_points:
        chosen = np.random.default_rng(0).choice(len(points), max_points, replace=False)
        points, colours = points[chosen], colours[chosen]
    return points, colours


def sequence_frames(paths: list[Path], max_points: int, fps: float) -> Iterator[Tensor]:
    """Frames [3, 1, H, W]: a swing around a single cloud, or the clouds one after the other from one place."""
    first = read_cloud(paths[0], max_points)
    orbit = Orbit.around(first[0])
    if len(paths) == 1:
        for viewpoint in orbit.swing(max(1, round(ORBIT_SECONDS * fps)), ORBIT_DEGREES, *PREVIEW_SIZE):
            yield _frame(first, viewpoint)
        return
    for index, path in enumerate(paths):
        cloud = first if index == 0 else read_cloud(path, max_points)
        yield _frame(cloud, orbit.viewpoint(0.0, *PREVIEW_SIZE))


def _frame(cloud: Cloud, viewpoint: Viewpoint) -> Tensor:
    return frame_tensor(torch.from_numpy(draw_points(*cloud, viewpoint, point_size=point_size(len(cloud[0])))))


@click.command("view", cls=ErrorReporting, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("sequence")
@click.option("--save", required=True, type=click.Path(path_type=Path), help=".mp4, .gif, .webp or frames/%04d.png.")
@click.option("--max-points", type=int, default=200_000, show_default=True, help="Per cloud at most.")
@click.option("--fps", type=float, default=24.0, show_default=True, help="Frames per second.")
def view_command(sequence: str, save: Path, max_points: int, fps: float) -> None:
    """Film SEQUENCE: a single PLY file (a swing around it), or a folder or pattern of them (one frame each)."""
    check_max_points(max_points)
    check_output(save, fps=fps)
    paths = find_clouds(sequence)
    write_video(sequence_frames(paths, max_points, fps), save, fps=fps)
    click.echo(f"{save}: {len(paths)} clouds" if len(paths) > 1 else f"{save}: around {paths[0]}", err=True)


view_command.params.append(debug_option())
