"""Masks of one person through a video: SAM 2 follows it from points on a few key frames.

SAM 2 (Ravi et al., 2024, arXiv:2408.00714) as transformers runs it; prompts and chunks are those of Wan-Animate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wan_core.animate.keypoints import (
    LEFT_ANKLE,
    LEFT_HIP,
    LEFT_SHOULDER,
    NECK,
    NOSE,
    RIGHT_ANKLE,
    RIGHT_HIP,
    RIGHT_SHOULDER,
    PosePoints,
)
from wan_core.animate.opencv import opencv

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Pixels = NDArray[np.uint8]
Mask = NDArray[np.uint8]

CHUNK = 400
"""Frames that are followed from their own key frames; the next chunk begins anew."""
_PROMPTED = [NOSE, NECK, RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP, LEFT_HIP, RIGHT_ANKLE, LEFT_ANKLE]
_KEYS = 4
_PERSON = 0
_LARGEST_HOLE = 8  # cells of the network's mask
_FILLED = 0.1
_MEAN, _STD = (np.array(each, np.float32) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # of ImageNet


@dataclass(frozen=True)
class Prompt:
    """Where the person is on a key frame: the ``frame`` [H, W, 3] and ``points`` [8, 2], in whole pixels, on it."""

    frame: Pixels
    points: NDArray[np.int32]


def chunks(num_frames: int) -> list[range]:
    """The parts of a video that are followed one by one."""
    return [range(start, min(start + CHUNK, num_frames)) for start in range(0, num_frames, CHUNK)]


def key_frames(length: int) -> range:
    """The key frames of a chunk of ``length`` frames: the first of up to four frames, else four to seven."""
    return range(0, length, length // (_KEYS if length > _KEYS else 1))


def prompt_points(person: PosePoints) -> NDArray[np.int32]:
    """Nose, neck, shoulders, hips and ankles in whole pixels of the frame, those that are there."""
    points = person.in_pixels().body[_PROMPTED, :2]
    return points[np.isfinite(points).all(axis=1)].astype(np.int32)


class MaskTracker:
    """A ``network`` of `load_sam2` on a ``device``; frames are held one at a time, memories as far back as it looks."""

    def __init__(self, network: Any, device: torch.device) -> None:
        self._network = network
        self._device = device
        config = network.config
        self._reach = max(config.num_maskmem, config.max_object_pointers_in_encoder)

    def masks(self, frames: Iterable[Pixels], length: int, prompts: Mapping[int, Prompt]) -> Iterator[Mask]:
        """The masks [H, W] of a chunk of ``length`` frames [H, W, 3] as they come: 1 where the person is.

        ``prompts`` are those of the `key_frames` by their place in the chunk.
        """
        import torch

        session: Any = None
        with torch.inference_mode():
            for index, prompt in prompts.items():
                session = session or self._session(length, prompt.frame)
                self._prompt(session, index, prompt)
            for index, frame in enumerate(frames):
                if index not in prompts:
                    session.processed_frames = {index: self._pixels(frame)}
                found = self._network(session, frame_idx=index)
                yield self._mask(found.pred_masks, *frame.shape[:2])
                session.output_dict_per_obj[_PERSON]["non_cond_frame_outputs"].pop(index - self._reach, None)

    def _session(self, length: int, frame: Pixels) -> Any:
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        class Session(Sam2VideoInferenceSession):
            """Knows how many frames there will be, though it has one at a time."""

            num_frames = length

        session = Session(
            video_height=frame.shape[0],
            video_width=frame.shape[1],
            inference_device=self._device,
            inference_state_device=self._device,
            video_storage_device=self._device,
            dtype=self._network.dtype,
        )
        session.obj_id_to_idx(_PERSON)
        return session

    def _prompt(self, session: Any, index: int, prompt: Prompt) -> None:
        import torch

        height, width = prompt.frame.shape[:2]
        side = self._network.config.image_size
        points = torch.from_numpy(prompt.points).float() * torch.tensor([side / width, side / height])
        labels = torch.ones(len(points), dtype=torch.int32)
        session.processed_frames = {index: self._pixels(prompt.frame)}
        session.add_point_inputs(
            _PERSON, index, {"point_coords": points[None, None], "point_labels": labels[None, None]}
        )
        session.obj_with_new_inputs = [_PERSON]
        self._network(session, frame_idx=index)

    def _pixels(self, frame: Pixels) -> Tensor:
        """A frame as the network sees it: a square, scaled by Pillow's own filter."""
        import torch

        side = self._network.config.image_size
        square = np.asarray(Image.fromarray(frame).resize((side, side)), dtype=np.float32) / 255
        pixels = (square - _MEAN) / _STD
        return torch.from_numpy(pixels.transpose(2, 0, 1)).to(self._device, self._network.dtype)

    def _mask(self, logits: Tensor, height: int, width: int) -> Mask:
        import torch
        from torch.nn import functional

        cells = torch.from_numpy(_without_holes(logits[0, 0].float().cpu().numpy()))
        scaled = functional.interpolate(cells[None, None], size=(height, width), mode="bilinear", align_corners=False)
        return np.asarray((scaled[0, 0] > 0).to(torch.uint8).numpy())


def _without_holes(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """A mask [h, w] of logits whose smallest holes are filled."""
    is_outside = (logits <= 0).astype(np.uint8)
    _, labels, statistics, _ = opencv().connectedComponentsWithStats(is_outside, connectivity=8)
    is_hole = statistics[:, -1] <= _LARGEST_HOLE  # the last column is the area
    is_hole[0] = False  # what is inside
    return np.where(is_hole[labels], np.float32(_FILLED), logits)
