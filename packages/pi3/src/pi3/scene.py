"""A reconstruction as plain arrays: what the network found, which pixels are kept, and the cloud they make."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pi3.conditions import Conditions
from pi3.edges import CONFIDENCE, DEPTH_RTOL, keep_mask
from pi3.geometry import intrinsics_of_rays
from pi3.model import Pi3
from wan_core import BackendError, CheckpointError, RequestError

_SUBSAMPLING_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Scene:
    """N views of H x W pixels in one frame, OpenCV axes.

    ``images`` uint8 [N, H, W, 3]; ``points`` and ``local_points`` float32 [N, H, W, 3], in the common and in each
    camera's frame; ``confidence`` float32 [N, H, W] in 0..1; ``keep`` bool [N, H, W]; ``poses`` float32 [N, 4, 4]
    camera-to-world; ``intrinsics`` float32 [N, 3, 3] in pixels, the centre of the first pixel at (0.5, 0.5); ``names``
    one per view.
    """

    images: NDArray[np.uint8]
    points: NDArray[np.float32]
    local_points: NDArray[np.float32]
    confidence: NDArray[np.float32]
    keep: NDArray[np.bool_]
    poses: NDArray[np.float32]
    intrinsics: NDArray[np.float32]
    names: tuple[str, ...]

    @property
    def depth(self) -> NDArray[np.float32]:
        """Distance along the optical axis, [N, H, W]."""
        return self.local_points[..., 2]

    def cloud(self, max_points: int | None = None) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """The kept points [M, 3] and their colours [M, 3].

        Of more than ``max_points`` an even random choice stays, the same one every time.
        """
        return thinned(self.points[self.keep], self.images[self.keep], max_points)


def thinned(
    points: NDArray[np.float32], colours: NDArray[np.uint8], max_points: int | None
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """An even random choice of ``max_points`` of the points [M, 3] with their colours, the same one every time."""
    if max_points is None or len(points) <= max_points:
        return points, colours
    chosen = np.random.default_rng(_SUBSAMPLING_SEED).choice(len(points), max_points, replace=False)
    chosen.sort()
    return points[chosen], colours[chosen]


def reconstruct(
    model: Pi3,
    images: Tensor,
    names: Sequence[str] | None = None,
    *,
    conditions: Conditions | None = None,
    confidence: float = CONFIDENCE,
    edge_rtol: float | None = DEPTH_RTOL,
    autocast: torch.dtype | None = None,
) -> Scene:
    """Run a model on views [N, 3, H, W] in [0, 1] and keep what is confident and on no edge.

    ``conditions`` are known geometry of one set (B = 1), for a Pi3X. ``confidence`` 0..1 and ``edge_rtol`` are the
    thresholds of :func:`pi3.edges.keep_mask`, None keeps edges. ``autocast`` runs the network, but not its heads, in
    that dtype. It computes where the model is. Raises RequestError for views of another shape, BackendError when
    memory runs out, CheckpointError when the network gives no numbers.
    """
    if not 0 <= confidence <= 1 or (edge_rtol is not None and not edge_rtol > 0):
        raise RequestError(f"confidence must be 0 to 1 and edge_rtol above 0, got {confidence} and {edge_rtol}")
    device = model.image_mean.device
    arguments = (images[None].to(device),) if conditions is None else (images[None].to(device), conditions)
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            output = model(*arguments)
            local, logits = output.local_points[0], output.conf[0]
            keep = keep_mask(local, logits, confidence=confidence, rtol=edge_rtol)
            intrinsics = intrinsics_of_rays(local, centred=True)
    except torch.OutOfMemoryError as error:
        raise BackendError(
            f"out of memory with {len(images)} views of {images.shape[-1]}x{images.shape[-2]}; "
            "use fewer views (--interval), smaller ones (--pixel-limit) or the CPU"
        ) from error
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise _no_numbers() from error
    if not bool(output.camera_poses.isfinite().all() and (logits.isfinite().any())):
        raise _no_numbers()
    intrinsics_array = _array(intrinsics)
    intrinsics_array[:, :2, 2] += 0.5  # from pixel numbers to pixel centres
    return Scene(
        images=(images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy(),
        points=_array(output.points[0]),
        local_points=_array(local),
        confidence=_array(logits[..., 0].sigmoid()),
        keep=(keep & local.isfinite().all(-1)).cpu().numpy(),
        poses=_array(output.camera_poses[0]),
        intrinsics=intrinsics_array,
        names=tuple(names) if names is not None else tuple(f"{index:04d}" for index in range(len(images))),
    )


def _no_numbers() -> CheckpointError:
    return CheckpointError(
        "Pi3 gave no numbers (NaN or infinity): its weights are damaged, fetch them again, or --dtype float32 is needed"
    )


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
