"""Folders of tiny encoders with random weights, in the layouts in which the real ones are published."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.onnx_graphs import save_graph
from tests.tiny_qwen import IDS, TEXT, tiny_tokenizer

SIDE = 28
DIMS: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
VISION: dict[str, Any] = {**DIMS, "image_size": SIDE, "patch_size": 14}


def write_clip(folder: Path, *, dim: int = 24) -> Path:
    """CLIP, whose vectors have ``dim`` numbers."""
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=_text(max_position_embeddings=20, projection_dim=dim),
        vision_config=VISION | {"projection_dim": dim},
        projection_dim=dim,
    )
    return _write(folder, CLIPModel(config))


def write_siglip(folder: Path) -> Path:
    """SigLIP."""
    torch.manual_seed(0)
    text = _text(max_position_embeddings=16, projection_size=16)
    return _write(folder, SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)))


def write_dinov2(folder: Path) -> Path:
    """DINOv2, which knows no texts."""
    torch.manual_seed(0)
    return _write(folder, Dinov2Model(Dinov2Config(**{**VISION, "mlp_ratio": 2})))


def write_gme(folder: Path) -> Path:
    """GME: a Qwen2-VL."""
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config=TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}},
        vision_config={
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
        },
        image_token_id=IDS["<|image_pad|>"],
        video_token_id=IDS["<|video_pad|>"],
        vision_start_token_id=IDS["<|vision_start|>"],
        vision_end_token_id=IDS["<|vision_end|>"],
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> CLIPTokenizer:
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])


def _text(**further: Any) -> dict[str, Any]:
    size = len(_tokenizer())
    marks = {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    return DIMS | marks | further


def _write(folder: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    crop = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=crop).save_pretrained(folder)
    return folder


def write_faces(folder: Path, *, points: np.ndarray, side: int = 64) -> Path:
    """A detector of pictures of ``side`` pixels that sees a face with these points [5, 2] wherever a picture is bright,
    and a recogniser whose vector is the mean colour of the face."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes, known = [], {}
    for kind, width in enumerate((1, 4, 10)):
        for stride in (8, 16, 32):
            known[f"out{len(known)}"] = np.zeros((2 * (side // stride) ** 2, width), dtype=np.float32)
            shapes.append([2 * (side // stride) ** 2, width])
            assert kind < 3
    # Both anchors of the first cell of stride 8, at the corner, reach over the picture: one is surer than the other.
    known["out0"][:2, 0] = 0.9, 0.8
    known["out3"][:2] = 0, 0, side / 8, side / 8
    known["out6"][:2] = points.reshape(-1) / 8
    nodes = [
        helper.make_node("ReduceMax", ["input"], ["largest"], axes=[0, 1, 2, 3], keepdims=0),
        helper.make_node("Greater", ["largest", "none"], ["is_bright"]),
        helper.make_node("Cast", ["is_bright"], ["share"], to=TensorProto.FLOAT),
    ]
    nodes += [helper.make_node("Mul", [name, "share"], [f"result{name[3:]}"]) for name in list(known)]
    outputs = {f"result{index}": shape for index, shape in enumerate(shapes)}
    known["none"] = np.zeros((), np.float32)
    save_graph(folder / "det.onnx", nodes, known, {"input": [1, 3, side, side]}, outputs)
    mean = [helper.make_node("ReduceMean", ["input"], ["vector"], axes=[2, 3], keepdims=0)]
    save_graph(folder / "rec.onnx", mean, {}, {"input": [1, 3, 112, 112]}, {"vector": [1, 3]})
    return folder
