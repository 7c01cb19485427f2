"""``pi3 reconstruct``: images or a video to a scene file, with previews."""

from pathlib import Path

import click

from pi3.cli import film
from pi3.cli.film import check_max_points
from pi3.cli.options import ReconstructOptions, command, run_model
from pi3.exports import check_colmap, scene_kind, write_scene
from pi3.splat import Orbit
from wan_core.cli import PLACE
from wan_core.files import check_place
from wan_core.media import check_output, check_own_files, write_image, write_video

ORBIT_FPS = 24


def run_reconstruct(
    options: ReconstructOptions, out: Path, max_points: int | None, preview: Path | None, orbit: Path | None
) -> None:
    """Check everything, reconstruct, write."""
    check_max_points(max_points)
    kind = scene_kind(out)
    check_place(out, is_folder=not out.suffix)
    if preview is not None:
        check_output(preview, num_frames=1)
    if orbit is not None:
        check_output(orbit, fps=ORBIT_FPS)
    outputs = [path for path in (out, preview, orbit) if path is not None]
    if kind == "colmap":
        check_colmap(out)
        outputs = [*outputs[1:], *(out / "images" / path.name for path in options.files())]
    check_own_files(outputs, options.images)
    scene = run_model(options)
    count = write_scene(scene, out, max_points=max_points)
    options.log(f"{out}: {count:,} points from {len(scene.names)} views")
    if not scene.keep.any():
        options.log("note: no pixel is certain enough; lower --conf or set --edge-rtol 0")
    if preview is None and orbit is None:
        return
    cloud = scene.cloud()
    path = Orbit.around(cloud[0], scene.poses)
    if preview is not None:
        write_image(film.frame(cloud, path)[:, 0], preview)
        options.log(f"{preview}: preview")
    if orbit is not None:
        write_video(film.swing(cloud, path, ORBIT_FPS), orbit, fps=ORBIT_FPS)
        options.log(f"{orbit}: {film.SECONDS} s around the scene")


reconstruct_command = command(
    "reconstruct",
    "Reconstruct PICTURES (pictures, one folder, or one video) as a 3D scene.",
    [
        click.Option(
            ["--out", "-o"],
            required=True,
            type=PLACE,
            help="scene.ply, .glb, .npz, or a folder for COLMAP text.",
        ),
        click.Option(["--max-points"], type=int, help="Points in the file at most, chosen evenly."),
        click.Option(["--preview"], type=PLACE, help="Also draw the cloud as a .png."),
        click.Option(["--orbit"], type=PLACE, help="Also film the cloud, .mp4, .gif or .webp."),
    ],
    run_reconstruct,
)
