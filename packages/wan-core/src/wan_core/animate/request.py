"""What ``wan prepare-animate`` is asked for, and the files of the release that it needs, checked before any work."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path

from wan_core.animate.detect import DETECTOR_FILE
from wan_core.animate.opencv import EXTRA, REMEDY
from wan_core.animate.pose import POSE_FILE
from wan_core.errors import BackendError, CheckpointError, RequestError
from wan_core.files import plain_text

FLUX_FOLDER = "FLUX.1-Kontext-dev"
SAM2_FOLDER = "sam2"
_SAM2_FILES = tuple(
    f"sam2{version}_hiera_{size}.pt" for size in ("large", "base_plus", "small", "tiny") for version in ("", ".1")
)
_MAX_FPS = 1000
_LARGEST_AREA = 4096 * 4096


@dataclass(frozen=True, kw_only=True)
class PrepareRequest:
    """A driving ``video`` and a ``reference`` picture, and what is made of them in the folder ``save_path``.

    ``resolution_area`` (width, height) in pixels gives the area of what is written, whose aspect is the reference's,
    or with ``replace`` the video's; ``fps`` its rate, -1 for that of the video. ``retarget`` brings the motion to the
    reference's proportions, ``use_flux`` measures those in edited pictures, drawn by ``seed``. Masks grow
    ``iterations`` times by ``kernel`` pixels, and are filled by ``width_parts`` x ``height_parts`` cells.
    """

    video: Path
    reference: Path
    save_path: Path
    resolution_area: tuple[int, int] = (1280, 720)
    fps: float = 30
    replace: bool = False
    retarget: bool = False
    use_flux: bool = False
    iterations: int = 3
    kernel: int = 7
    width_parts: int = 1
    height_parts: int = 1
    seed: int = 0

    @property
    def area(self) -> int:
        """Pixels of what is written, at most."""
        return math.prod(self.resolution_area)

    def check(self) -> None:
        """Raise RequestError for values that can never work, alone or together."""
        if self.retarget and self.replace:
            raise RequestError(
                "--retarget_flag is for animation: with --replace_flag the person of the video is masked where it is; "
                "leave one of them out"
            )
        if self.use_flux and not self.retarget:
            raise RequestError("--use_flux edits the pictures that --retarget_flag measures; give that too")
        width, height = self.resolution_area
        if min(width, height) < 1 or self.area > _LARGEST_AREA:
            raise RequestError(f"--resolution_area is a width and a height from 1 to 4096, got {width} {height}")
        if self.fps != -1 and not 0 < self.fps <= _MAX_FPS:
            raise RequestError(
                f"--fps is above 0 and at most {_MAX_FPS}, or -1 for that of the video; got {self.fps:g}"
            )
        if self.iterations < 0:
            raise RequestError(f"--iterations must be 0 or more, got {self.iterations}")
        for option, value in (("--k", self.kernel), ("--w_len", self.width_parts), ("--h_len", self.height_parts)):
            if value < 1:
                raise RequestError(f"{option} must be at least 1, got {value}")
        if not 0 <= self.seed < 2**63:
            raise RequestError(f"--seed must be from 0 to 2^63 - 1, got {self.seed}")


@dataclass(frozen=True)
class PrepareModels:
    """Where the networks lie: a ``folder`` like ``process_checkpoint`` of Wan2.2-Animate-14B."""

    folder: Path

    @property
    def detector(self) -> Path:
        """The ONNX file that finds persons."""
        return self.folder / DETECTOR_FILE

    @property
    def poses(self) -> Path:
        """The ONNX file that finds the points of a person."""
        return self.folder / POSE_FILE

    @property
    def flux(self) -> Path:
        """The folder that edits pictures."""
        return self.folder / FLUX_FOLDER

    @property
    def sam2(self) -> Path:
        """The network of masks: an original file, the largest first, or a folder of transformers."""
        folder = self.folder / SAM2_FOLDER
        found = next((folder / name for name in _SAM2_FILES if (folder / name).is_file()), None)
        if found is None and (folder / "model.safetensors").is_file():
            return folder
        return found or folder / _SAM2_FILES[0]

    def used(self, request: PrepareRequest) -> dict[str, Path]:
        """The places of the networks that a request needs, by their names in records."""
        places = {"detector": self.detector, "poses": self.poses}
        if request.replace:
            places["sam2"] = self.sam2
        if request.use_flux:
            places["flux"] = self.flux
        return places

    def check(self, request: PrepareRequest) -> None:
        """Raise CheckpointError where a network is missing, naming all, and BackendError where a package is."""
        missing = [path for path in self.used(request).values() if not path.exists()]
        if missing:
            names = ", ".join(plain_text(path.relative_to(self.folder)) for path in missing)
            raise CheckpointError(f"{plain_text(self.folder)} lacks {names}; fetch it {REMEDY}")
        for module, package in (("cv2", "opencv-python-headless"), ("onnxruntime", "onnxruntime")):
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise BackendError(
                    f"wan prepare-animate needs the package {package}, which is not installed; install {EXTRA}"
                ) from error
