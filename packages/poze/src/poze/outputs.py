"""Files besides the video: Pi3's latents, and its points, depth, colours and cameras."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core.drafts import merged_folder, replaced_file

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from pi3 import Pi3Latents, Pi3Output


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What Pi3 saw: ``views`` [1, N, 3, H, W] in [0, 1], its latents and the decoded geometry."""

    views: Tensor
    latents: Pi3Latents
    output: Pi3Output

    def latent_tensors(self) -> dict[str, Tensor]:
        """The latents under the reference's names, on the CPU; sizes as one-dimensional int64 tensors."""
        import torch

        latents = self.latents
        tensors = {
            "decoder_hidden": latents.hidden,
            "pos": latents.positions,
            "point_tokens": latents.point_tokens,
            "conf_tokens": latents.conf_tokens,
            "camera_tokens": latents.camera_tokens,
            "hw": torch.tensor([latents.height, latents.width]),
            "frames": torch.tensor([latents.num_views]),
            "batch": torch.tensor([latents.batch_size]),
        }
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Points, depth, colours, confidence and cameras of every view, without the batch axis."""
        output = self.output
        named = {
            "points": output.points,
            "local_points": output.local_points,
            "depth": output.depth,
            "rgb": self.views.permute(0, 1, 3, 4, 2),
            "conf": output.conf[..., 0].sigmoid(),
            "camera_poses": output.camera_poses,
        }
        return {name: tensor[0].detach().float().cpu().numpy() for name, tensor in named.items()}


def write_latents(findings: Findings, path: Path) -> Path:
    """Write the latents as ``.pt`` (a plain dict of tensors) or ``.safetensors``, whole or not at all.

    Raises MediaError when the file cannot be written.
    """
    import torch
    from safetensors.torch import save

    tensors = findings.latent_tensors()
    if path.suffix == ".pt":
        stream = io.BytesIO()
        torch.save(tensors, stream)
        content = stream.getvalue()
    else:
        content = save(tensors, {"format": "pt"})
    with replaced_file(path) as temporary:
        temporary.write_bytes(content)
    return path


def write_findings(findings: Findings, path: Path, stem: str) -> int:
    """Write the points to a ``.ply`` file, or into a folder: ``STEM_0000.ply`` per view and ``STEM.npz`` with all.

    Views of an earlier run of that stem go. Returns the number of points. Raises MediaError when a file cannot be
    written.
    """
    if path.suffix == ".ply":
        return _write_cloud(findings, path, slice(None))
    total = 0
    views = re.compile(rf"{re.escape(stem)}_[0-9]{{4,}}\.ply")
    older = [each.name for each in path.glob("*.ply") if views.fullmatch(each.name)]
    with merged_folder(path, owned=older) as folder:
        save_arrays(folder / f"{stem}.npz", findings.arrays())
        for view in range(findings.latents.num_views):
            total += _write_cloud(findings, folder / f"{stem}_{view:04d}.ply", slice(view, view + 1))
    return total


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """``numpy.savez_compressed`` under exactly this name."""
    import numpy as np

    with path.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def _write_cloud(findings: Findings, path: Path, views: slice) -> int:
    import torch

    from pi3 import keep_mask, write_ply

    output = findings.output
    # A logit above 0.5, as in the reference; all points where none is.
    confident = torch.sigmoid(torch.tensor(0.5)).item()
    keep = keep_mask(output.local_points[0, views], output.conf[0, views], confidence=confident, rtol=None)
    if not bool(keep.any()):
        keep = torch.ones_like(keep)
    points = output.points[0, views][keep]
    colours = findings.views[0, views].permute(0, 2, 3, 1).to(keep.device)[keep]
    write_ply(path, points.float().cpu().numpy(), colours.float().cpu().numpy())
    return len(points)
