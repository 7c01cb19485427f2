"""Folders of tiny Qwen2.5 and Qwen2.5-VL with random weights, in the layout in which transformers publishes them."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
VOCAB = 256 + len(SPECIAL)
IDS = {token: 256 + number for number, token in enumerate(SPECIAL)}

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
    "bos_token_id": IDS["<|endoftext|>"],
    "eos_token_id": IDS["<|im_end|>"],
    "pad_token_id": IDS["<|endoftext|>"],
}
VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 56,
    "fullatt_block_indexes": [1],
    "out_hidden_size": 32,
}


def tiny_tokenizer() -> Qwen2Tokenizer:
    """Bytes, and the marks of a conversation."""
    vocab = {byte: number for number, byte in enumerate(sorted(ByteLevel.alphabet()))} | IDS
    return Qwen2Tokenizer(vocab=vocab, merges=[], extra_special_tokens=list(SPECIAL[1:]))


def write_tiny_text_model(folder: Path, *, seed: int = 0) -> Path:
    """A folder of a Qwen2.5 that draws its words."""
    torch.manual_seed(seed)
    return _write(folder, Qwen2ForCausalLM(Qwen2Config(**TEXT)))


def write_tiny_vision_model(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **text: Any) -> Path:
    """A folder of a Qwen2.5-VL; ``text`` replaces dims of its language half."""
    torch.manual_seed(seed)
    mrope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": mrope} | text,
        vision_config=VISION | {"out_hidden_size": text.get("hidden_size", TEXT["hidden_size"])},
        image_token_id=IDS["<|image_pad|>"],
        video_token_id=IDS["<|video_pad|>"],
        vision_start_token_id=IDS["<|vision_start|>"],
        vision_end_token_id=IDS["<|vision_end|>"],
    )
    return _write(folder, Qwen2_5_VLForConditionalGeneration(config).to(dtype))


def _write(folder: Path, model: PreTrainedModel) -> Path:
    model.generation_config = GenerationConfig(
        do_sample=True,
        eos_token_id=IDS["<|im_end|>"],
        pad_token_id=IDS["<|endoftext|>"],
        exponential_decay_length_penalty=(8, 4.0),  # of random weights, the end is as likely as any byte
    )
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def only_letters(folder: Path) -> Path:
    """Let the model of a folder draw letters and blanks alone; of all bytes, most texts are no UTF-8."""
    words = {token for token in ByteLevel.alphabet() if token.isascii() and token.isalpha()} | {"\u0120", "<|im_end|>"}
    vocab = tiny_tokenizer().get_vocab()
    file = folder / "generation_config.json"
    others = sorted(number for token, number in vocab.items() if token not in words)
    file.write_text(json.dumps({**json.loads(file.read_text()), "suppress_tokens": others}))
    return folder
