"""What is evaluated: videos with prompts and reference pictures, by the manifest beside them or by a sample file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindweave.batch import MANIFEST
from bindweave.samples import read_object, read_samples, safe_path, sample_of
from wan_core import RequestError
from wan_core.files import existing_file, plain_text


@dataclass(frozen=True)
class SampleVideo:
    """A video that was made for ``prompt`` and ``references``, the pictures in order; ``name`` is its sample's id."""

    name: str
    video: Path
    prompt: str
    references: tuple[Path, ...]

    def check(self) -> None:
        """Raises RequestError or MediaError where the video or a picture is not there."""
        existing_file(self.video, "video")
        for reference in self.references:
            existing_file(reference, "reference")


def read_cases(folder: Path, samples: Path | None, images: Path) -> tuple[list[SampleVideo], list[str]]:
    """The videos of ``folder`` in the order of their ids, and the ids of which there is no video.

    They are those of a sample file as ``ID.mp4``, or without one those of the folder's manifest. Pictures are relative
    to ``images``. Raises RequestError for a folder that is none, a list that cannot be read, and where no video is
    there.
    """
    if not folder.is_dir():
        raise RequestError(f"{plain_text(folder)} is no folder; name the one that holds the videos")
    if samples is not None:
        cases = [
            SampleVideo(name, folder / f"{name}.mp4", sample.prompt, tuple(images / each for each in sample.images))
            for name, sample in read_samples(samples).items()
        ]
    else:
        cases = _listed(folder, images)
    there = [case for case in cases if case.video.exists()]
    if not there:
        raise RequestError(
            f"{plain_text(folder)} holds no video of {len(cases)} samples, such as {plain_text(cases[0].video.name)}"
        )
    found = {case.name for case in there}
    return there, [case.name for case in cases if case.name not in found]


def _listed(folder: Path, images: Path) -> list[SampleVideo]:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise RequestError(
            f"{plain_text(folder)} has no {MANIFEST} of 'bindweave infer'; name the sample file with --samples"
        )
    rows = read_object(manifest, "videos by their ids")
    return [_case(folder, images, plain_text(manifest), name, rows[name]) for name in sorted(rows)]


def _case(folder: Path, images: Path, shown: str, name: str, row: Any) -> SampleVideo:
    sample = sample_of(shown, name, row, pictures="references")
    video = row.get("video")
    where = f"{shown}, sample {plain_text(name)[:80]!r}"
    if not isinstance(video, str) or not video:
        raise RequestError(f"{where}: video must be the name of a file")
    references = tuple(images / each for each in sample.images)
    return SampleVideo(name, folder / safe_path(video, f"{where}: a path"), sample.prompt, references)
