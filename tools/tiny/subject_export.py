"""The files of the tiny BindWeave in its package: the language model as a folder of Qwen2.5-VL, and the other parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bindweave.dit import BindWeaveDiT
from bindweave.mllm import MLLM
from bindweave.presets import EYES, TINY_CLIP, TINY_MLLM, WEIGHTS
from tools.tiny.subject_encoders import MARKS, SubjectEncoders, chat_tokenizer, mllm_config
from tools.tiny.subjects import SUBJECTS_VERSION
from tools.tiny.weights import in_8_bits, read_tensors, write_weights
from wan_core.checkpoints import MemorySource, in_format, read_weights
from wan_core.llm.qwen import MAX_PIXELS, MIN_PIXELS
from wan_core.models import CLIP_MEAN, CLIP_STD

_RECIPE = f"tools/tiny/bindweave_train.py, subjects {SUBJECTS_VERSION}"


def write_encoders(encoders: SubjectEncoders, scores: Mapping[str, Any]) -> None:
    """CLIP and the language model, each with the scores of its tokens."""
    recipe = f"{_RECIPE}, stage encoders"
    write_weights(Path(EYES.file), encoders.clip.state_dict(), recipe=recipe, scores=scores, config=asdict(TINY_CLIP))
    write_mllm(encoders.mllm, TINY_MLLM, recipe, scores)


def write_mllm(mllm: nn.Module, folder: Path, recipe: str, scores: Mapping[str, Any]) -> None:
    """A folder as Qwen2.5-VL is published: weights, config, tokenizer, and how pictures are prepared."""
    folder.mkdir(parents=True, exist_ok=True)
    published = in_format(MemorySource(mllm.state_dict()), MLLM, "published")
    tensors: dict[str, Tensor] = {name: published.read(name) for name in published}
    write_weights(folder / "model.safetensors", tensors, recipe=recipe, scores=scores)
    values, ids = mllm_config().transformers_values(), chat_tokenizer().get_vocab()
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": "float16",
        "tie_word_embeddings": True,
        **values.pop("text_config"),
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "vision_config": {"model_type": "qwen2_5_vl", **values.pop("vision_config")},
        **values,
    }
    chat_tokenizer().save_pretrained(folder)
    _write(folder / "config.json", config)
    _write(folder / "tokenizer_config.json", _tokenizer_config())
    _write(folder / "preprocessor_config.json", _preparation())


def _tokenizer_config() -> dict[str, Any]:
    """In the spelling that transformers 4 and 5 both read."""
    ids = chat_tokenizer().get_vocab()
    kind = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(ids[mark]): {"content": mark, **kind} for mark in MARKS},
        "additional_special_tokens": list(MARKS[1:]),
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": mllm_config().max_length,
    }


def _preparation() -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "patch_size": mllm_config().patch_size,
        "merge_size": mllm_config().merge_size,
        "temporal_patch_size": mllm_config().temporal_patch_size,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }


def write_network(dit: BindWeaveDiT, scores: Mapping[str, Any]) -> None:
    """The transformer with block matrices in 8 bits, and its dims."""
    folder = WEIGHTS / "dit"
    folder.mkdir(parents=True, exist_ok=True)
    recipe = f"{_RECIPE}, stage dit; block matrices rounded to 8 bits afterwards"
    write_weights(folder / "model.safetensors", in_8_bits(dit.state_dict()), recipe=recipe, scores=scores)
    _write(folder / "config.json", asdict(dit.bindweave))


def write_decoder(change: Path) -> None:
    """The decoder's trained layers, as a change of the bundled autoencoder."""
    kept = read_weights(change).metadata
    scores = json.loads(kept["scores"])
    write_weights(
        WEIGHTS / "vae.safetensors", read_tensors(change), recipe=kept["recipe"], scores=scores, base="vae.safetensors"
    )


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
