"""``pi3 view``: a point cloud, or a sequence of them, as a video."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import click
from torch import Tensor

from pi3.cli import film
from pi3.cli.film import check_max_points
from pi3.ply import read_ply
from pi3.scene import thinned
from pi3.splat import Orbit
from wan_core import RequestError
from wan_core.cli import FINITE, PLACE, ErrorReporting, debug_option
from wan_core.files import folder_files, natural_order
from wan_core.media import check_output, write_video


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


def sequence_frames(paths: list[Path], max_points: int, fps: float) -> Iterator[Tensor]:
    """Frames [3, 1, H, W]: a swing around a single cloud, or the clouds one after the other from one place."""
    clouds = (thinned(*read_ply(path), max_points) for path in paths)
    first = next(clouds)
    orbit = Orbit.around(first[0])
    if len(paths) == 1:
        yield from film.swing(first, orbit, fps)
        return
    for cloud in chain([first], clouds):
        yield film.frame(cloud, orbit)


@click.command("view", cls=ErrorReporting)
@click.argument("sequence")
@click.option("--save", required=True, type=PLACE, help=".mp4, .gif, .webp or frames/%04d.png.")
@click.option("--max-points", type=int, default=200_000, show_default=True, help="Per cloud at most.")
@click.option("--fps", type=FINITE, default=24.0, show_default=True, help="Frames per second.")
def view_command(sequence: str, save: Path, max_points: int, fps: float) -> None:
    """Film SEQUENCE: a single PLY file (a swing around it), or a folder or pattern of them (one frame each)."""
    check_max_points(max_points)
    check_output(save, fps=fps)
    paths = find_clouds(sequence)
    write_video(sequence_frames(paths, max_points, fps), save, fps=fps)
    click.echo(f"{save}: {len(paths)} clouds" if len(paths) > 1 else f"{save}: around {paths[0]}", err=True)


view_command.params.append(debug_option())
