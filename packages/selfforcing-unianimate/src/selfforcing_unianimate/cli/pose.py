"""``sfu pose``: the motion of a video, and who is to move so, into a pose file and a preview."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from selfforcing_unianimate.cli.detectors import detector_device, detector_dir
from wan_core import MediaError, RequestError
from wan_core.cli import FINITE, PLACE, ErrorReporting, debug_option, progress_unless, reporter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from selfforcing_unianimate.keypoints import Poses
    from selfforcing_unianimate.pose_file import PoseFile

_FILE = PLACE
_TORSO = (1, 2, 5, 8, 11)
_PREVIEW_MULTIPLE = 16
_MAX_PREVIEW = 4096
_MIN_FPS = 0.01


@click.command(cls=ErrorReporting, params=[debug_option()])
@click.argument("video", type=_FILE)
@click.option("--reference", type=_FILE, help="A picture of the person who is to move.")
@click.option("--out", type=_FILE, required=True, help="The pose file to write, .npz.")
@click.option("--preview", type=_FILE, help="Also write the skeletons: .mp4, .gif, .webp or frames/%04d.png.")
@detector_dir
@click.option(
    "--align", type=click.Choice(["reference", "none"]),
    help="Bring the motion to the reference's proportions and place; default: if there is a reference.",
)  # fmt: skip
@click.option("--validated", is_flag=True, help="Align by joints that were seen only.")
@click.option("--start", type=FINITE, default=0.0, show_default=True, help="Seconds to leave out in front.")
@click.option("--end", type=FINITE, help="Second to stop at; default: the end.")
@click.option("--fps", type=FINITE, help="Frames a second to look at; default: all.")
@click.option("--max-frames", type=int, help="At most so many.")
@click.option("--size", metavar="W*H", help="Of the preview; default: about that of the video.")
@detector_device
@click.option("--quiet", is_flag=True, help="No progress and no notes.")
def pose(**values: Any) -> None:
    """Find the person in every frame of VIDEO, and write the poses to a file that 'sfu infer --pose' takes."""
    run(quiet=values.pop("quiet"), **values)


def run(
    *,
    video: Path,
    reference: Path | None,
    out: Path,
    preview: Path | None,
    detector_dir: Path,
    align: str | None,
    validated: bool,
    start: float,
    end: float | None,
    fps: float | None,
    max_frames: int | None,
    size: str | None,
    device: str,
    quiet: bool,
) -> None:
    """Check everything, detect, align, write. Raises what those raise."""
    from selfforcing_unianimate.detection import PoseDetector
    from selfforcing_unianimate.pose_file import PoseFile, write_pose_file
    from wan_core.media import Provenance, check_output, load_image, probe_video, stream_video

    alignment = _alignment(align, reference, validated=validated)
    _check_out(out, preview, [each for each in (video, reference, detector_dir) if each is not None])
    info = probe_video(video)
    rate = _rate(fps, info.fps, video)
    if preview is not None:
        check_output(preview, num_frames=max_frames or info.num_frames or 2, fps=rate)
    shown_size = _preview_size(info.width, info.height) if size is None else _asked_size(size, preview)
    frames = stream_video(video, start=start, end=end, fps=fps, max_frames=_limit(max_frames))
    log = reporter(quiet)
    for note in info.notes:
        log(f"{video} {note}")
    picture = None if reference is None else load_image(reference)
    detector = PoseDetector(detector_dir, device=device)
    log(f"looking for persons with {detector.providers[0]}")
    still = None if picture is None else _reference_pose(detector.poses, picture, reference)
    shown = progress_unless(quiet)((frame.permute(1, 2, 0).numpy() for frame in frames), "poses")
    raw = detector.poses(_counted(shown, max_frames))
    _note_gaps(raw, still, alignment, log)
    driving = raw if still is None else _aligned(raw, still, alignment)
    settings = {
        "video": video.name, "reference": reference and reference.name, "alignment": alignment, "start": start,
        "end": end, "fps": fps, "max_frames": max_frames,
    }  # fmt: skip
    made = PoseFile(
        driving=driving,
        reference=still,
        size=(info.width, info.height),
        fps=rate,
        alignment=alignment,
        provenance=Provenance.of(preset="sfu pose", settings=settings, record={"providers": detector.providers}),
    )
    write_pose_file(made, out)
    click.echo(f"{out}: {len(driving)} poses, {made.fps:g} a second, alignment {alignment}")
    if preview is not None:
        _write_preview(made, preview, shown_size)
        click.echo(str(preview))


def _alignment(align: str | None, reference: Path | None, *, validated: bool) -> str:
    if align == "reference" and reference is None:
        raise RequestError("--align reference needs the person to align to; give --reference PICTURE")
    if validated and (align == "none" or reference is None):
        raise RequestError("--validated is a way to align; give --reference PICTURE, and not --align none")
    return "none" if align == "none" or reference is None else "validated" if validated else "reference"


def _check_out(out: Path, preview: Path | None, inputs: list[Path]) -> None:
    from wan_core.files import check_place
    from wan_core.media import check_own_files

    if out.suffix.lower() != ".npz":
        raise RequestError(f"--out ends in .npz, got {out}")
    check_own_files([out, *([] if preview is None else [preview])], inputs)
    check_place(out)


def _rate(asked: float | None, fps: float, video: Path) -> float:
    from selfforcing_unianimate.pose_file import MAX_FPS

    rate, given = (fps, f"{video} has") if asked is None else (asked, "got")
    if not _MIN_FPS <= rate <= MAX_FPS:
        raise RequestError(f"give --fps from {_MIN_FPS:g} to {MAX_FPS:g}; {given} {rate:g}")
    return rate


def _limit(max_frames: int | None) -> int:
    """One more than a pose file holds, so that a longer video is told and not cut."""
    from selfforcing_unianimate.pose_file import MAX_FRAMES

    if max_frames is not None and not 1 <= max_frames <= MAX_FRAMES:
        raise RequestError(f"--max-frames must be 1 to {MAX_FRAMES}, got {max_frames}")
    return max_frames or MAX_FRAMES + 1


def _counted(pictures: Iterable[NDArray[np.uint8]], max_frames: int | None) -> Iterator[NDArray[np.uint8]]:
    from selfforcing_unianimate.pose_file import MAX_FRAMES

    for number, picture in enumerate(pictures):
        if number == MAX_FRAMES:
            raise RequestError(f"a pose file holds at most {MAX_FRAMES} poses; give --max-frames, or --start and --end")
        yield picture


def _reference_pose(detect: Callable[..., Poses], picture: Any, path: Path | None) -> Poses:
    import numpy as np

    try:
        return detect([np.asarray(picture)])
    except MediaError as error:
        raise MediaError(f"reference {path}: {error}") from error


def _note_gaps(raw: Poses, still: Poses | None, alignment: str, log: Callable[[str], None]) -> None:
    """Say what was not seen."""
    empty = int((~raw.has_person).sum())
    if empty:
        log(f"note: no person is seen in {empty} of {len(raw)} frames; their skeletons are empty")
    if still is not None and alignment == "reference":
        for name, one in (("the first frame", raw), ("the reference", still)):
            if (one.subset[0, list(_TORSO)] < 0).any():
                log(f"note: in {name} shoulders or hips are not seen, by which poses are aligned; try --validated")


def _aligned(raw: Poses, still: Poses, alignment: str) -> Poses:
    """The driving poses, aligned as asked. Raises MediaError where that leads nowhere."""
    import numpy as np

    from selfforcing_unianimate.alignment import align

    if alignment == "none":
        return raw
    driving = align(raw, still, validated=alignment == "validated")
    points = np.concatenate([driving.body.ravel(), driving.faces.ravel(), driving.hands.ravel()])
    if not (np.abs(points) <= 100).all():
        raise MediaError(
            "the poses cannot be aligned: a limb has no length in the first frame; use --validated, or another --start"
        )
    return driving


def _asked_size(size: str, preview: Path | None) -> tuple[int, int]:
    from wan_core.media import parse_size

    width, height = parse_size(size)
    if preview is None:
        raise RequestError("--size is that of the preview; give --preview, or leave it out")
    if max(width, height) > _MAX_PREVIEW:
        raise RequestError(f"a preview has sides of at most {_MAX_PREVIEW} pixels, got {size}")
    return width, height


def _preview_size(width: int, height: int) -> tuple[int, int]:
    """About that of the video, in whole patches, so that a preview can be a pose again."""
    unit = _PREVIEW_MULTIPLE * max(1.0, width / _MAX_PREVIEW, height / _MAX_PREVIEW)
    columns, rows = (max(1, int(side / unit)) for side in (width, height))
    return columns * _PREVIEW_MULTIPLE, rows * _PREVIEW_MULTIPLE


def _write_preview(made: PoseFile, path: Path, size: tuple[int, int]) -> None:
    from selfforcing_unianimate.drawing import model_picture
    from wan_core.media import image_to_tensor, write_video

    def drawn() -> Iterator[Tensor]:
        from PIL import Image

        for index in range(len(made.driving)):
            yield image_to_tensor(Image.fromarray(model_picture(made.driving[index : index + 1], *size)))[:, None]

    write_video(drawn(), path, fps=made.fps, provenance=made.provenance)
