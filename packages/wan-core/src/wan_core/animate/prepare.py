"""A driving video and a reference picture into what Wan-Animate generates from, file by file.

Each file appears whole or not at all, with the record of what it was made from; one that is there as it would be made
stays. Points and masks are kept in parts until all is there, so that a run that was stopped goes on. Frames are
streamed: the video is decoded once for each stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wan_core.animate.draw import draw_pose
from wan_core.animate.driving_video import Counted, DrivingVideo
from wan_core.animate.face import crop_face, face_box, fill_boxes
from wan_core.animate.flux import PoseEditor, check_editor, standard_pose
from wan_core.animate.keypoints import PosePoints, Skeleton
from wan_core.animate.mask import augment_mask, background, pack_mask, unpack_mask
from wan_core.animate.persons import PersonFinder, Progress, Sighting, check_alone
from wan_core.animate.records import EDITED_FRAME, EDITED_REFERENCE, Records
from wan_core.animate.request import PrepareModels, PrepareRequest
from wan_core.animate.resize import padded_resize, resize_to_area
from wan_core.animate.retarget import retarget
from wan_core.animate.sam2 import Mask, MaskTracker
from wan_core.animate.sam2_weights import check_sam2, load_sam2
from wan_core.animate.tracking import kept_masks, make_masks
from wan_core.errors import MediaError
from wan_core.files import plain_text
from wan_core.media import Provenance, load_image, write_image, write_video
from wan_core.media.encoders import DEFAULT_CRF
from wan_core.tasks.driving_folder import BACKGROUND, FACE, MASK, POSE, REFERENCE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Pixels = NDArray[np.uint8]
_LOSSLESS = 0


class Preparation:
    """The work for one ``request``; making it checks everything that can be checked without running a network.

    ``device`` and ``dtype`` are those of SAM 2 and FLUX; onnxruntime chooses its own unless the device is the CPU.
    ``further`` files are written by the caller. Raises RequestError, CheckpointError, MediaError, BackendError.
    """

    def __init__(
        self,
        request: PrepareRequest,
        models: PrepareModels,
        *,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress,
        log: Callable[[str], None],
        overwrite: bool = False,
        further: tuple[Path, ...] = (),
    ) -> None:
        request.check()
        models.check(request)
        self._request, self._models, self._progress, self._log = request, models, progress, log
        self._device, self._dtype = device, dtype
        self._picture = load_image(request.reference)
        self._reference = resize_to_area(np.asarray(self._picture), request.area)
        self.video = DrivingVideo.open(request.video, request.fps, request.area if request.replace else None)
        if request.use_flux:
            check_editor(models.flux)
        if request.replace:
            check_sam2(models.sam2)
        self._finder = PersonFinder(models.detector, models.poses, device=device.type)
        self._records = Records(request, models, overwrite=overwrite)
        self._records.check(further)
        for note in self.video.notes:
            log(f"note: {plain_text(request.video)} {note}")

    def run(self) -> dict[str, Path]:
        """Make what is missing; all files of the request by name.

        Raises MediaError for videos and pictures without a person, or with several, and for what cannot be written;
        CheckpointError for networks of another kind.
        """
        self._log(f"looking for persons with {self._finder.providers[0]}")
        makers = self._makers()
        for name in self._records.names:
            path = self._records.path(name)
            if self._records.is_made(name):
                self._log(f"{plain_text(path)} is there, made of the same things")
            else:
                makers[name](path, self._records.wanted(name))
        self._records.clear()
        return {name: self._records.path(name) for name in self._records.names}

    def _makers(self) -> Mapping[str, Callable[[Path, Provenance], object]]:
        return {
            REFERENCE: lambda path, record: write_image(self._picture, path, provenance=record),
            EDITED_REFERENCE: self._edit_reference,
            EDITED_FRAME: self._edit_frame,
            POSE: lambda path, record: self._write(self._skeletons(), path, record, "skeletons"),
            FACE: lambda path, record: self._write(self._faces(), path, record, "faces"),
            BACKGROUND: lambda path, record: self._write(self._backgrounds(), path, record, "background"),
            MASK: lambda path, record: self._write(
                (np.repeat(mask[..., None] * np.uint8(255), 3, axis=2) for mask in self._grown_masks()),
                path, record, "mask", crf=_LOSSLESS,
            ),
        }  # fmt: skip

    def _write(
        self, frames: Iterable[Pixels], path: Path, record: Provenance, phase: str, *, crf: int = DEFAULT_CRF
    ) -> None:
        chunks = (_tensor(frame) for frame in self._progress(Counted(frames, len(self.video)), phase))
        write_video(chunks, path, fps=self.video.fps, provenance=record, crf=crf)

    @cached_property
    def _sightings(self) -> list[Sighting]:
        found = self._finder.follow(self.video, self._records.kept("poses"), self._progress)
        missed = sum(not sighting.is_person for sighting in found)
        if missed:
            self._log(f"note: no person is seen in {missed} of {len(found)} frames, which are looked at as a whole")
        if self._request.replace:
            check_alone(found)
        if self._request.retarget and not found[0].is_person:
            raise MediaError(
                "no person is seen in the first frame, whose motion the others follow; cut the video there"
            )
        return found

    @property
    def _people(self) -> list[PosePoints]:
        return [sighting.points for sighting in self._sightings]

    def _faces(self) -> Iterator[Pixels]:
        height, width = self.video.size.height, self.video.size.width
        boxes = fill_boxes([face_box(points.face, height, width) for points in self._people])
        return (crop_face(frame, box) for frame, box in zip(self.video.frames(), boxes, strict=True))

    def _skeletons(self) -> Iterator[Pixels]:
        """The skeletons on black: in replacement on the frame, else on the reference's canvas."""
        height, width = self._reference.shape[:2]
        people = self._people
        if self._request.retarget:
            moved = retarget(people[0], self._person_of_reference, people, self._edited)
            return (_drawn(skeleton, height, width) for skeleton in moved)
        size = self.video.size
        drawn = (_drawn(points.in_pixels(), size.height, size.width) for points in people)
        return drawn if self._request.replace else (padded_resize(each, height, width) for each in drawn)

    @property
    def _person_of_reference(self) -> PosePoints:
        name = f"reference {plain_text(self._request.reference)}"
        return self._person_on(self._reference, name, "take a picture that shows one, larger and brighter")

    def _person_on(self, picture: Pixels, name: str, remedy: str) -> PosePoints:
        """Who is on a single picture. Raises MediaError."""
        try:
            found = self._finder.look(picture)
        except MediaError:
            found = None
        if found is None or not found.is_person:
            raise MediaError(f"no person was found on the {name}; {remedy}")
        return found.points

    @property
    def _edited(self) -> tuple[PosePoints, PosePoints] | None:
        """The driving frame and the reference as edited, whose proportions are measured."""
        if not self._request.use_flux:
            return None
        remedy = "look at it, and try another --seed with --overwrite, or leave --use_flux out"
        paths = [self._records.path(name) for name in (EDITED_FRAME, EDITED_REFERENCE)]
        pair = [
            self._person_on(np.asarray(load_image(path)), f"edited picture {plain_text(path)}", remedy)
            for path in paths
        ]
        return pair[0], pair[1]

    @cached_property
    def _editor(self) -> PoseEditor:
        return PoseEditor(self._models.flux, self._device, self._dtype)

    def _edit_reference(self, path: Path, record: Provenance) -> None:
        self._edit(self._reference, path, record)

    def _edit_frame(self, path: Path, record: Provenance) -> None:
        """Of the second driving frame, as in the release; of a video of one frame it is that."""
        (frame,) = self.video.frames([min(1, len(self.video) - 1)])
        self._edit(frame, path, record)

    def _edit(self, picture: Pixels, path: Path, record: Provenance) -> None:
        height, width = picture.shape[:2]
        prompt = standard_pose(self._people, is_wide=width > height)
        self._log(f"{path.name}: {prompt}")
        edited = self._editor.edit(Image.fromarray(picture), prompt, self._request.seed)
        fitted = padded_resize(np.asarray(edited), height, width)
        write_image(Image.fromarray(fitted), path, provenance=record)

    @cached_property
    def _packed_masks(self) -> list[bytes]:
        """The grown masks of all frames, made where they are not kept. Raises MediaError where all are empty."""
        asked, kept, empty, packed = self._request, self._records.kept("masks"), 0, []
        make_masks(self.video, self._sightings, kept, self._tracker, self._progress)
        growth = asked.iterations, asked.kernel, asked.width_parts, asked.height_parts
        for mask in kept_masks(self.video, kept):
            empty += not mask.any()
            packed.append(pack_mask(augment_mask(mask, *growth)))
        if empty == len(self.video):
            raise MediaError(
                "SAM 2 finds nobody in any frame, so there is nothing to replace; show a larger and brighter person"
            )
        if empty:
            self._log(f"note: the mask of {empty} of {len(self.video)} frames is empty; nobody is replaced there")
        return packed

    def _tracker(self) -> MaskTracker:
        return MaskTracker(load_sam2(self._models.sam2, self._device, self._dtype), self._device)

    def _grown_masks(self) -> Iterator[Mask]:
        height, width = self.video.size.height, self.video.size.width
        return (unpack_mask(packed, height, width) for packed in self._packed_masks)

    def _backgrounds(self) -> Iterator[Pixels]:
        masks = self._grown_masks()
        return (background(frame, mask) for frame, mask in zip(self.video.frames(), masks, strict=True))


def _drawn(skeleton: Skeleton, height: int, width: int) -> Pixels:
    return draw_pose(np.zeros((height, width, 3), dtype=np.uint8), skeleton)


def _tensor(frame: Pixels) -> Tensor:
    """A frame [H, W, 3] as a chunk of one for the writer, [3, 1, H, W] in [-1, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1))).float().div(127.5).sub(1)[:, None]
