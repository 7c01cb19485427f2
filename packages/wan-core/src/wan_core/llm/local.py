"""Qwen2.5 and Qwen2.5-VL on this machine, read and run by transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core.errors import BackendError, ConfigError
from wan_core.hub import folder_kind, load_beside, load_pretrained
from wan_core.llm.chat import Answer, Message
from wan_core.llm.qwen import PICTURE_TOKEN, chat_markup, picture_patches

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_SEEING = "qwen2_5_vl"
_KINDS = {"qwen2": "Qwen2ForCausalLM", _SEEING: "Qwen2_5_VLForConditionalGeneration"}
_WHAT = "a language model"


class LocalChat:
    """A :class:`~wan_core.llm.Chat` with the weights of a folder, or of a repository that transformers fetches.

    The weights stay in the CPU's memory and go to ``device`` while the model answers, at most ``max_tokens`` tokens. A
    picture is brought to an area between ``min_pixels`` and ``max_pixels``. Raises CheckpointError for a folder or
    repository that cannot be read, or whose weights are not whole; ConfigError for models of other kinds.
    """

    def __init__(
        self,
        model: str | Path,
        device: torch.device | str = "cpu",
        *,
        max_tokens: int = 512,
        min_pixels: int = 256 * 28**2,
        max_pixels: int = 1280 * 28**2,
    ) -> None:
        self.name = Path(model).name if Path(model).is_dir() else str(model)
        self._device = device
        self._max_tokens = max_tokens
        self._area = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        self._model = load_pretrained(str(model), _KINDS, what=_WHAT)
        self._tokenizer = load_beside(str(model), "AutoTokenizer", "tokenizer")

    @property
    def sees(self) -> bool:
        """Whether it takes pictures."""
        return hasattr(self._model.config, "vision_config")

    def complete(self, messages: Sequence[Message], *, seed: int = 0) -> Answer:
        """The model's next turn, drawn with ``seed``. Raises BackendError, ConfigError or RequestError (a picture)."""
        import torch

        inputs = self._inputs(messages)
        count = inputs["input_ids"].shape[1]
        device = torch.device(self._device)
        self._model.to(device)
        try:
            with torch.random.fork_rng([] if device.type == "cpu" else None), torch.inference_mode():
                torch.manual_seed(seed)
                placed = {name: tensor.to(device) for name, tensor in inputs.items()}
                made = self._model.generate(**placed, max_new_tokens=self._max_tokens, **self._padding())[0, count:]
        finally:
            self._model.to("cpu")
        if len(made) >= self._max_tokens and int(made[-1]) not in self._ends():
            raise BackendError(
                f"the answer of {self.name} was cut off at {self._max_tokens} tokens; allow more of them"
            )
        text = str(self._tokenizer.decode(made, skip_special_tokens=True)).strip()
        if not text:
            raise BackendError(f"{self.name} answered with nothing")
        return Answer(text, self.name, seed)

    def _inputs(self, messages: Sequence[Message]) -> dict[str, torch.Tensor]:
        pictures = [picture for message in messages for picture in message.pictures]
        if pictures and not self.sees:
            raise ConfigError(f"{self.name} cannot see pictures; take a Qwen2.5-VL model")
        return model_inputs(
            self._model, self._tokenizer, lambda tokens: self._markup(messages, tokens), pictures, self._area
        )

    def _markup(self, messages: Sequence[Message], tokens: Sequence[int]) -> str:
        """The model's own template for text, where its tokenizer has one: default system texts differ."""
        if tokens or not self._tokenizer.chat_template:
            return chat_markup(messages, tokens)
        turns = [{"role": each.role, "content": "\n".join(map(str, each.parts))} for each in messages]
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def _ends(self) -> Sequence[int]:
        end = self._model.generation_config.eos_token_id
        return [] if end is None else end if isinstance(end, list) else [end]

    def _padding(self) -> Mapping[str, int]:
        """Which token fills up: said, or transformers says that it chose one."""
        ends = self._ends()
        return {"pad_token_id": ends[0]} if ends and self._model.generation_config.pad_token_id is None else {}


def sees_pictures(folder: Path) -> bool:
    """Whether the language model in a folder takes pictures; no weight is read.

    Raises CheckpointError for a folder without one, ConfigError for models of other kinds.
    """
    return folder_kind(folder, _KINDS, what=_WHAT) == _SEEING


def model_inputs(
    network: Any,
    tokenizer: Any,
    markup: Callable[[Sequence[int]], str],
    pictures: Sequence[Image],
    area: Mapping[str, int],
) -> dict[str, torch.Tensor]:
    """What a Qwen2-VL or Qwen2.5-VL is called with: tokens [1, L], and rows and grids of pictures if there are any.

    ``markup`` makes the text of how many tokens each picture has, ``area`` are ``min_pixels`` and ``max_pixels``.
    Raises ConfigError for a text with the mark of pictures.
    """
    import torch

    if not pictures:
        return dict(tokenizer(markup([]), return_tensors="pt"))
    vision = network.config.vision_config
    merge = int(vision.spatial_merge_size)
    shape = {"patch": vision.patch_size, "merge": merge, "frames": vision.temporal_patch_size}
    rows, grids = zip(*(picture_patches(each, **shape, **area) for each in pictures), strict=True)
    tokens = [height * width // merge**2 for _, height, width in grids]
    inputs: dict[str, Any] = dict(tokenizer(markup(tokens), return_tensors="pt"))
    is_picture = inputs["input_ids"] == tokenizer.convert_tokens_to_ids(PICTURE_TOKEN)
    if int(is_picture.sum()) != sum(tokens):
        raise ConfigError(f"a text for the model must not hold {PICTURE_TOKEN}, which stands for its pictures")
    inputs |= {"pixel_values": torch.cat(rows), "image_grid_thw": torch.tensor(grids)}
    if "mm_token_type_ids" in inspect.signature(network.forward).parameters:  # transformers 5
        inputs["mm_token_type_ids"] = is_picture.int()
    return inputs
