"""Texts and pictures as vectors of one space: GME, a Qwen2-VL whose last state stands for what it has read.

Zhang et al., "GME: Improving Universal Multimodal Retrieval by Multimodal LLMs" (2024); markup, sizes and the choice of
the state are those of the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wan_core.hub import load_beside, load_pretrained
from wan_core.llm.chat import Message
from wan_core.llm.local import model_inputs
from wan_core.llm.qwen import chat_markup, smart_size

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

TEXT_TO_IMAGE = "Find an image that matches the given text."
"""The instruction under which a text is compared with pictures."""
_USUAL = "You are a helpful assistant."
_END = "<|endoftext|>"
_MOST_TOKENS = 1800


class LocalEmbedder:
    """GME of a folder on ``device``. A picture is brought to an area between ``min_pixels`` and ``max_pixels``.

    Raises CheckpointError for a folder that cannot be read, or whose weights are not whole; ConfigError for models of
    other kinds.
    """

    def __init__(
        self,
        model: str | Path,
        device: torch.device | str = "cpu",
        *,
        min_pixels: int = 256 * 28**2,
        max_pixels: int = 1280 * 28**2,
    ) -> None:
        self.name = Path(model).name if Path(model).is_dir() else str(model)
        self._area = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        kinds = {"qwen2_vl": "Qwen2VLForConditionalGeneration"}
        network = load_pretrained(str(model), kinds, what="GME", lacks=("lm_head.weight",))
        self._tokenizer = load_beside(str(model), "AutoTokenizer", "tokenizer")
        self._network = network.to(device)
        self._device = device

    @property
    def dim(self) -> int:
        """Numbers in a vector: 3584 of the release with 7 billion parameters, 1536 of that with 2."""
        config = self._network.config
        return int(getattr(config, "text_config", config).hidden_size)

    def embed_texts(self, texts: Sequence[str], instruction: str = TEXT_TO_IMAGE) -> torch.Tensor:
        """Vectors [N, dim] of unit length, float32, of texts read under an instruction; at most 1800 tokens."""
        import torch

        return torch.stack([self._embedded((text,), instruction) for text in texts])

    def embed_images(self, images: Sequence[Image]) -> torch.Tensor:
        """Vectors [N, dim] of unit length, float32. Raises RequestError for a picture that is too narrow."""
        import torch

        from wan_core.media import resize_by_rows

        # The released code resizes twice: to multiples of 28, then into its own area.
        fitted = [resize_by_rows(image, smart_size(image.width, image.height)) for image in images]
        return torch.stack([self._embedded((image,), _USUAL) for image in fitted])

    def _embedded(self, parts: tuple[str | Image, ...], instruction: str) -> torch.Tensor:
        import torch
        from torch.nn import functional

        turns = [Message("system", (instruction,)), Message("user", parts)]
        inputs = model_inputs(
            self._network,
            self._tokenizer,
            lambda tokens: chat_markup(turns, tokens) + _END,
            [part for part in parts if not isinstance(part, str)],
            self._area,
        )
        if "pixel_values" not in inputs:
            inputs = {name: tensor[:, :_MOST_TOKENS] for name, tensor in inputs.items()}
        placed = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        with torch.inference_mode():
            states = self._network(**placed, output_hidden_states=True, use_cache=False, logits_to_keep=1).hidden_states
        return functional.normalize(states[-1][0, -1].float(), dim=0).cpu()
