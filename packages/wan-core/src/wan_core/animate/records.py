"""The files of a prepared folder: how each is made, whether it is there as it would be made, what is kept meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from wan_core.animate.request import PrepareModels, PrepareRequest
from wan_core.checkpoints import weights_fingerprint
from wan_core.drafts import remove_abandoned, remove_folder
from wan_core.errors import MediaError, RequestError
from wan_core.files import check_place, hash_file, plain_text
from wan_core.kept_clips import KeptParts
from wan_core.media import Provenance, check_own_files, read_provenance
from wan_core.tasks.driving_folder import BACKGROUND, FACE, MASK, POSE, REFERENCE

EDITED_REFERENCE, EDITED_FRAME = "refer_edit.png", "tpl_edit.png"
COMMAND = "wan prepare-animate"


class Records:
    """What a ``request`` makes of what; with ``overwrite`` files that were made otherwise are replaced."""

    def __init__(self, request: PrepareRequest, models: PrepareModels, *, overwrite: bool) -> None:
        self._request, self._overwrite = request, overwrite
        self._places = models.used(request)
        edits = (EDITED_REFERENCE, EDITED_FRAME) if request.use_flux else ()
        masks = (BACKGROUND, MASK) if request.replace else ()
        self.names: tuple[str, ...] = (REFERENCE, *edits, POSE, FACE, *masks)
        """The files, in the order in which they are made."""

    def path(self, name: str) -> Path:
        """Where a file of the request lies."""
        return self._request.save_path / name

    def check(self, further: tuple[Path, ...] = ()) -> None:
        """Check that all files, and ``further`` ones, can be written, and that nothing else is in their place.

        Raises RequestError, MediaError.
        """
        request, outputs = self._request, [self.path(name) for name in self.names]
        check_place(request.save_path, is_folder=True)
        check_own_files([*outputs, *further], [request.video, request.reference])
        for output in outputs:
            check_place(output)
        for name in self.names:
            changed = self._differences(name)
            if changed and not self._overwrite:
                raise RequestError(
                    f"{plain_text(self.path(name))} is there, made otherwise ({', '.join(changed)}); choose another "
                    "--save_path, or replace it with --overwrite"
                )

    def is_made(self, name: str) -> bool:
        """Whether a file is there as it would be made."""
        return self.path(name).is_file() and not self._differences(name)

    def wanted(self, name: str) -> Provenance:
        """How a file is made."""
        return self._record({"file": name, **self._settings(name)}, self._weights(name))

    def kept(self, kind: str) -> KeptParts:
        """Where points (``poses``) or masks (``masks``) stay until all is there; a folder for what decides on them."""
        names = ["detector", "poses", *(["sam2"] if kind == "masks" else [])]
        record = self._record({"kept": kind, **self._of_video()}, names)
        return KeptParts(self._request.save_path / f".{kind}.{record.fingerprint()[:12]}.parts")

    def clear(self) -> None:
        """All files are there: nothing has to be kept, of other settings neither."""
        for folder in self._request.save_path.glob(".*.parts"):
            if folder.name.startswith((".poses.", ".masks.")):
                remove_folder(folder)
        remove_abandoned(self._request.save_path)

    def _differences(self, name: str) -> list[str]:
        """What a file that is there was made of otherwise."""
        path = self.path(name)
        if not path.is_file():
            return []
        try:
            return read_provenance(path).differences(self.wanted(name))
        except (MediaError, RequestError):
            return ["by something else, or its record is lost"]

    def _of_video(self) -> dict[str, Any]:
        request = self._request
        area = {"resolution_area": list(request.resolution_area)} if request.replace else {}
        return {"video": request.video, "fps": request.fps, "replace_flag": request.replace, **area}

    def _settings(self, name: str) -> dict[str, Any]:
        """What decides on a file, and nothing else."""
        request = self._request
        pictured = {"reference": request.reference, "resolution_area": list(request.resolution_area)}
        edited = {"use_flux": True, "seed": request.seed} if request.use_flux else {}
        if name == REFERENCE:
            return {"reference": request.reference}
        if name in (EDITED_REFERENCE, EDITED_FRAME):
            return {**self._of_video(), **pictured, "seed": request.seed}
        if name == POSE and not request.replace:
            return {**self._of_video(), **pictured, "retarget_flag": request.retarget, **edited}
        if name in (BACKGROUND, MASK):
            cells = {"k": request.kernel, "w_len": request.width_parts, "h_len": request.height_parts}
            return {**self._of_video(), "iterations": request.iterations, **(cells if request.iterations else {})}
        return self._of_video()

    def _weights(self, name: str) -> list[str]:
        if name == REFERENCE:
            return []
        further = {BACKGROUND: ["sam2"], MASK: ["sam2"], POSE: ["flux"]}.get(name, [])
        further = ["flux"] if name in (EDITED_REFERENCE, EDITED_FRAME) else further
        return ["detector", "poses", *(each for each in further if each in self._places)]

    def _record(self, settings: Mapping[str, Any], weights: list[str]) -> Provenance:
        inputs = {key: self._contents[key] for key in self._contents if key in settings}
        named = {name: self._fingerprints[name] for name in weights}
        return Provenance.of(preset=COMMAND, settings=settings, record={"inputs": inputs, "weights": named})

    @cached_property
    def _contents(self) -> dict[str, str]:
        paths = {"video": self._request.video, "reference": self._request.reference}
        return {name: hash_file(path)[:16] for name, path in paths.items()}

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        return {name: weights_fingerprint(path) for name, path in self._places.items()}
