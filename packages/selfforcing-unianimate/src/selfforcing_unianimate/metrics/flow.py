"""RAFT, a network of optical flow, for those who want another flow than Farneback's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core import CheckpointError
from wan_core.files import existing_file, plain_text
from wan_core.metrics import Flow, Pixels
from wan_core.runtime import optional_package

if TYPE_CHECKING:
    from torch import Tensor

NETWORKS = ("raft_small", "raft_large")
_LOWEST_RAFT_SIDE = 128
"""RAFT compares features at four scales, the smallest an eighth of the features, which are an eighth of the frame."""


class Raft:
    """RAFT (Teed and Deng 2020) as torchvision has it, with weights of torchvision in a file.

    ``network`` is ``raft_small`` or ``raft_large``, None to tell it by the weights. Frames are filled up to multiples
    of 8 with their edges, and to at least 128 pixels. Raises BackendError without torchvision, RequestError or
    CheckpointError for a file that is missing or of another network.
    """

    def __init__(self, weights: Path, *, device: str = "cpu") -> None:
        from wan_core.checkpoints import read_weights

        models = optional_package(
            "torchvision.models.optical_flow",
            "torchvision",
            what="RAFT's flows",
            extra="selfforcing-unianimate[raft], or leave --flow out",
        )
        stored = read_weights(existing_file(weights, "RAFT weights"))
        tensors = {name: stored.read(name) for name in stored}
        for name in NETWORKS:
            network = getattr(models, name)()
            if _shapes(network.state_dict()) == _shapes(tensors):
                network.load_state_dict(tensors)
                self.name = name
                self._network = network.eval().to(device)
                self._device = device
                return
        raise CheckpointError(
            f"{plain_text(weights)} holds no weights of torchvision's {' or '.join(NETWORKS)}; "
            "https://download.pytorch.org/models/raft_small_C_T_V2-01064c6d.pth does"
        )

    def __call__(self, first: Pixels, second: Pixels) -> Flow:
        import torch

        height, width = first.shape[:2]
        with torch.inference_mode():
            found = self._network(self._input(first), self._input(second))[-1]
        flow: Flow = found[0, :, :height, :width].permute(1, 2, 0).float().cpu().numpy()
        return flow

    def _input(self, frame: Pixels) -> Tensor:
        """[1, 3, H', W'] in -1 to 1; what is added lies right and below."""
        import torch
        from torch.nn import functional

        pixels = torch.from_numpy(frame).to(self._device).permute(2, 0, 1)[None].float() / 127.5 - 1
        rows, columns = (max(_LOWEST_RAFT_SIDE, side + -side % 8) - side for side in frame.shape[:2])
        return functional.pad(pixels, (0, columns, 0, rows), mode="replicate")


def _shapes(tensors: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
