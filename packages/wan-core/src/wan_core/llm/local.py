"""Qwen2.5 and Qwen2.5-VL on this machine, read and run by transformers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wan_core.errors import BackendError, CheckpointError, ConfigError, RequestError
from wan_core.files import plain_text, read_text
from wan_core.llm.chat import Answer, Message
from wan_core.llm.qwen import PICTURE_TOKEN, chat_markup, picture_patches

if TYPE_CHECKING:
    import torch

_SEEING = "qwen2_5_vl"
_KINDS = {"qwen2": "Qwen2ForCausalLM", _SEEING: "Qwen2_5_VLForConditionalGeneration"}
_LIBRARY_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError)


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
        self._tokenizer, self._model = _load(str(model))

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
        import torch

        pictures = [picture for message in messages for picture in message.pictures]
        if not pictures:
            return dict(self._tokenizer(self._markup(messages, []), return_tensors="pt"))
        if not self.sees:
            raise ConfigError(f"{self.name} cannot see pictures; take a Qwen2.5-VL model")
        vision = self._model.config.vision_config
        merge = int(vision.spatial_merge_size)
        shape = {"patch": vision.patch_size, "merge": merge, "frames": vision.temporal_patch_size}
        rows, grids = zip(*(picture_patches(each, **shape, **self._area) for each in pictures), strict=True)
        tokens = [height * width // merge**2 for _, height, width in grids]
        inputs: dict[str, Any] = dict(self._tokenizer(self._markup(messages, tokens), return_tensors="pt"))
        is_picture = inputs["input_ids"] == self._tokenizer.convert_tokens_to_ids(PICTURE_TOKEN)
        if int(is_picture.sum()) != sum(tokens):
            raise ConfigError(f"the text for {self.name} must not hold {PICTURE_TOKEN}, which stands for its pictures")
        inputs |= {"pixel_values": torch.cat(rows), "image_grid_thw": torch.tensor(grids)}
        if "mm_token_type_ids" in inspect.signature(self._model.forward).parameters:  # transformers 5
            inputs["mm_token_type_ids"] = is_picture.int()
        return inputs

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
    shown = plain_text(folder)
    try:
        config = json.loads(read_text(folder / "config.json"))
    except (RequestError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{shown} is no folder of a language model ({_first_line(error)}); check its name"
        ) from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    _check_kind(kind, shown)
    return kind == _SEEING


def _check_kind(kind: object, shown: str) -> None:
    if kind not in _KINDS:
        raise ConfigError(f"{shown} is a {plain_text(kind)}; local language models are Qwen2.5 and Qwen2.5-VL")


def _load(model: str) -> tuple[Any, Any]:
    import transformers
    from safetensors import SafetensorError

    shown = plain_text(model)
    try:
        config = transformers.AutoConfig.from_pretrained(model)
    except _LIBRARY_ERRORS as error:
        raise CheckpointError(
            f"{shown} is no folder or repository of a language model ({_first_line(error)}); check its name"
        ) from error
    _check_kind(config.model_type, shown)
    kind = getattr(transformers, _KINDS[config.model_type])
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        network, found = kind.from_pretrained(
            model, dtype="auto", use_safetensors=True, output_loading_info=True, low_cpu_mem_usage=True
        )
    except (*_LIBRARY_ERRORS, SafetensorError) as error:
        raise CheckpointError(f"{shown} cannot be read ({_first_line(error)}); fetch it again") from error
    # transformers fills what a file lacks with random numbers and a warning.
    missing = sorted({*map(str, found["missing_keys"]), *(str(each[0]) for each in found["mismatched_keys"])})
    if missing:
        raise CheckpointError(
            f"{shown} lacks {len(missing)} weights of its network, such as {missing[0]}; fetch it again"
        )
    return tokenizer, network.eval()


def _first_line(error: BaseException) -> str:
    return plain_text(str(error).strip().partition("\n")[0])[:160] or type(error).__name__
