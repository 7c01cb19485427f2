"""How Qwen2.5 and Qwen2.5-VL read a conversation: its markup, and pictures as rows of patches.

Bai et al., "Qwen2.5-VL Technical Report" (2025); the numbers are those of the released processors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wan_core.errors import RequestError
from wan_core.llm.chat import Message

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PICTURE_TOKEN = "<|image_pad|>"
"""What stands for each token of a picture."""

MIN_PIXELS, MAX_PIXELS = 3136, 12845056
"""The area that a picture is brought into: 4 and 16384 tokens of 28 x 28 pixels."""

_SYSTEM = "You are a helpful assistant."
_MAX_ASPECT = 200
# Channel statistics of CLIP's training images in [0, 1] (Radford et al., 2021).
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def chat_markup(messages: Sequence[Message], tokens: Sequence[int] = ()) -> str:
    """The text that the model is given to continue; ``tokens`` are the lengths of the pictures, in order.

    Without a system message the one of Qwen2.5-VL's own template stands first.
    """
    lengths = iter(tokens)
    turns = [*([] if messages and messages[0].role == "system" else [Message("system", (_SYSTEM,))]), *messages]
    text = ""
    for turn in turns:
        parts = (
            part if isinstance(part, str) else f"<|vision_start|>{PICTURE_TOKEN * next(lengths)}<|vision_end|>"
            for part in turn.parts
        )
        text += f"<|im_start|>{turn.role}\n{''.join(parts)}<|im_end|>\n"
    return f"{text}<|im_start|>assistant\n"


def smart_size(
    width: int, height: int, *, factor: int = 28, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """The (width, height) nearest to a picture's in multiples of ``factor`` whose area is allowed.

    Raises RequestError for a picture more than 200 times as long as it is wide.
    """
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise RequestError(f"a picture of {width} x {height} is too narrow; its sides may differ {_MAX_ASPECT} times")
    sides = [max(factor, round(side / factor) * factor) for side in (width, height)]
    area = sides[0] * sides[1]
    if area > max_pixels:
        scale = math.sqrt(width * height / max_pixels)
        sides = [max(factor, math.floor(side / scale / factor) * factor) for side in (width, height)]
    elif area < min_pixels:
        scale = math.sqrt(min_pixels / (width * height))
        sides = [math.ceil(side * scale / factor) * factor for side in (width, height)]
    return sides[0], sides[1]


def picture_patches(
    picture: Image,
    *,
    patch: int = 14,
    merge: int = 2,
    frames: int = 2,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Tensor, tuple[int, int, int]]:
    """A picture as rows [patches, 3 * frames * patch^2], float32, and its grid (1, rows, columns) of patches.

    The patches of a merge block follow each other; each stands for ``frames`` equal frames. The picture becomes
    rows * columns / merge^2 tokens. Raises RequestError as :func:`smart_size`.
    """
    import numpy as np
    import torch
    from einops import rearrange, repeat

    from wan_core.media import resize_by_rows

    size = smart_size(picture.width, picture.height, factor=patch * merge, min_pixels=min_pixels, max_pixels=max_pixels)
    resized = resize_by_rows(picture, size)
    pixels = torch.from_numpy(np.array(resized, dtype=np.float32)) / 255
    pixels = (pixels - torch.tensor(_MEAN)) / torch.tensor(_STD)
    blocks = rearrange(pixels, "(h m1 p1) (w m2 p2) c -> (h w m1 m2) c (p1 p2)", m1=merge, m2=merge, p1=patch, p2=patch)
    return repeat(blocks, "n c p -> n (c f p)", f=frames), (1, size[1] // patch, size[0] // patch)
