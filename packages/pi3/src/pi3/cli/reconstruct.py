"""``pi3 reconstruct``: images or a video to a scene file, with previews."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from pi3.cli.options import check_run, command, message, run_model, split_options
from pi3.exports import scene_kind, write_scene
from pi3.scene import Scene
from pi3.splat import Orbit, draw_points
from wan_core import RequestError
from wan_core.files import check_place
from wan_core.media import check_output, write_image, write_video

PREVIEW_SIZE = 480, 640
ORBIT_SECONDS, ORBIT_FPS, ORBIT_DEGREES = 5, 24, 35.0
_MIN_CLOUD_FOR_SMALL_POINTS = 60_000


def run_reconstruct(**values: Any) -> None:
    """Check everything, reconstruct, write."""
    options = split_options(values)
    out, preview, orbit = values["out"], values["preview"], values["orbit"]
    check_run(options)
    check_max_points(values["max_points"])
    scene_kind(out)
    check_place(out, is_folder=not out.suffix)
    if preview is not None:
        check_output(preview, num_frames=1)
    if orbit is not None:
        check_output(orbit, fps=ORBIT_FPS)
    scene = run_model(options)
    count = write_scene(scene, out, max_points=values["max_points"])
    message(options, f"{out}: {count:,} points from {len(scene.names)} views")
    if not scene.keep.any():
        message(options, "note: no pixel is certain enough; lower --conf or set --edge-rtol 0")
    if preview is not None:
        write_image(draw_preview(scene), preview)
        message(options, f"{preview}: preview")
    if orbit is not None:
        write_video(orbit_frames(scene), orbit, fps=ORBIT_FPS)
        message(options, f"{orbit}: {ORBIT_SECONDS} s around the scene")


def check_max_points(count: int | None) -> None:
    """Raise RequestError for a limit below one point."""
    if count is not None and count < 1:
        raise RequestError(f"--max-points must be at least 1, got {count}")


def point_size(num_points: int) -> int:
    """Pixels per point, so that small clouds do not look empty."""
    return 2 if num_points > _MIN_CLOUD_FOR_SMALL_POINTS else 3


def draw_preview(scene: Scene) -> Tensor:
    """The cloud from the middle of the cameras' side, uint8 [3, H, W]."""
    points, colours = scene.cloud()
    viewpoint = Orbit.around(points, scene.poses).viewpoint(0.0, *PREVIEW_SIZE)
    image = draw_points(points, colours, viewpoint, point_size=point_size(len(points)))
    return torch.from_numpy(image).permute(2, 0, 1)


def orbit_frames(scene: Scene) -> Iterator[Tensor]:
    """Frames [3, 1, H, W] in [-1, 1] of a swing around the cloud."""
    points, colours = scene.cloud()
    path = Orbit.around(points, scene.poses).swing(ORBIT_SECONDS * ORBIT_FPS, ORBIT_DEGREES, *PREVIEW_SIZE)
    for viewpoint in path:
        image = draw_points(points, colours, viewpoint, point_size=point_size(len(points)))
        yield frame_tensor(torch.from_numpy(image))


def frame_tensor(image: Tensor) -> Tensor:
    """An image uint8 [H, W, 3] as a chunk of video, [3, 1, H, W] in [-1, 1]."""
    return image.permute(2, 0, 1)[:, None].float() / 127.5 - 1


reconstruct_command = command(
    "reconstruct",
    "Reconstruct PICTURES (pictures, one folder, or one video) as a 3D scene.",
    [
        click.Option(
            ["--out", "-o"],
            required=True,
            type=click.Path(path_type=Path),
            help="scene.ply, .glb, .npz, or a folder for COLMAP text.",
        ),
        click.Option(["--max-points"], type=int, help="Points in the file at most, chosen evenly."),
        click.Option(["--preview"], type=click.Path(path_type=Path), help="Also draw the cloud as a .png."),
        click.Option(["--orbit"], type=click.Path(path_type=Path), help="Also film the cloud, .mp4, .gif or .webp."),
    ],
    run_reconstruct,
)
