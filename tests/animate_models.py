"""Tiny networks in the layout of ``process_checkpoint``, and a video of somebody to find with them.

The detector sees a person where a picture has red, and another one where it has blue. The points of a person lie about
the brightest red dot, each at an offset of its own. SAM 2 has random weights.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor

from tests.onnx_graphs import save_graph
from wan_core.animate.detect import DETECTOR_FILE
from wan_core.animate.pose import MAP_SIZE, POSE_FILE
from wan_core.checkpoints.families.sam2 import RENAMES
from wan_core.checkpoints.formats import rename
from wan_core.media import write_video

WIDTH, HEIGHT = 64, 96
# COCO's 17 joints, then the feet, from the red dot on the chest, in cells of the heat map (48 x 64).
_BODY = [
    (0, -10), (1, -11), (-1, -11), (2, -10), (-2, -10), (5, -5), (-5, -5), (7, 1), (-7, 1), (8, 6), (-8, 6), (3, 5),
    (-3, 5), (3, 12), (-3, 12), (4, 19), (-4, 19), (5, 21), (6, 21), (3, 20), (-5, 21), (-6, 21), (-3, 20),
]  # fmt: skip
_FACE = [(round(2.5 * np.cos(k / 11)), -10 + round(2.5 * np.sin(k / 11))) for k in range(68)]
OFFSETS = [
    *_BODY,
    *_FACE,
    *[(8 + k % 3, 7 + k // 7) for k in range(21)],
    *[(-8 - k % 3, 7 + k // 7) for k in range(21)],
]


def write_models(folder: Path, *, boxes: int = 6, maps: int = 133) -> Path:
    """The detectors in a folder like ``process_checkpoint``; other numbers make them other networks."""
    for file in (DETECTOR_FILE, POSE_FILE):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    rows = np.zeros((1, 300, boxes), dtype=np.float32)
    rows[0, 0, :4], rows[0, 1, :4] = (40, 20, 600, 620), (10, 10, 300, 500)
    score = np.zeros((2, 1, 300, boxes), dtype=np.float32)
    score[0, 0, 0, 4], score[1, 0, 1, 4] = 0.9, 0.8
    nodes = [
        helper.make_node("Mul", ["images", "colours"], ["weighted"]),
        helper.make_node("Split", ["weighted"], ["red", "green", "blue"], axis=1),
        helper.make_node("Sub", ["red", "blue"], ["redness"]),
        helper.make_node("Sub", ["blue", "red"], ["blueness"]),
        *(
            _scored(name, index)
            for index, name in enumerate(("redness", "blueness"))
            for _scored in (_maximum, _weighted)
        ),
        helper.make_node("Add", ["rows", "score0"], ["one"]),
        helper.make_node("Add", ["one", "score1"], ["output0"]),
    ]
    known = {
        "colours": np.ones((1, 3, 1, 1), np.float32), "rows": rows, "weight0": score[0], "weight1": score[1],
        "half": np.float32(0.5), "none": np.float32(0), "ten": np.float32(10), "single": np.float32(1),
    }  # fmt: skip
    save_graph(folder / DETECTOR_FILE, nodes, known, {"images": [1, 3, 640, 640]}, {"output0": [1, 300, boxes]})
    reach, (rows, columns) = 21, MAP_SIZE
    offsets = np.array((OFFSETS * 2)[:maps])[:, :, None, None]
    from_y, from_x = np.arange(rows)[:, None] + reach - offsets[:, 1], np.arange(columns) + reach - offsets[:, 0]
    cells = (from_y * (columns + 2 * reach) + from_x)[None].astype(np.int32)  # each map is the dot's, moved
    nodes = [
        helper.make_node("Split", ["input"], ["blue", "green", "red"], axis=1),
        helper.make_node("Sub", ["red", "blue"], ["redness"]),
        helper.make_node("MaxPool", ["redness"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Sub", ["cells", "limit"], ["above"]),
        helper.make_node("Relu", ["above"], ["dots"]),
        helper.make_node("AveragePool", ["dots"], ["soft"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Pad", ["soft", "border"], ["wide"]),
        helper.make_node("Reshape", ["wide", "line"], ["flat"]),
        helper.make_node("Gather", ["flat", "moved"], ["spread"]),
        helper.make_node("Min", ["spread", "most"], ["output"]),
    ]
    known = {"limit": np.float32(2), "moved": cells, "most": np.float32(0.95), "line": np.array([-1])}
    known["border"] = np.array([0, 0, reach, reach] * 2)
    save_graph(folder / POSE_FILE, nodes, known, {"input": [1, 3, 256, 192]}, {"output": [1, maps, 64, 48]})
    return folder


def _maximum(name: str, index: int) -> onnx.NodeProto:
    return helper.make_node("ReduceMax", [name], [f"max{index}"], axes=[0, 1, 2, 3], keepdims=0)


def _weighted(name: str, index: int) -> onnx.NodeProto:
    return helper.make_node("Mul", [f"max{index}", f"weight{index}"], [f"score{index}"])


def person(x: int, y: int, *, width: int = WIDTH, height: int = HEIGHT, blue: bool = False) -> np.ndarray:
    """A grey room [H, W, 3] with somebody whose chest is a red dot at (x, y); ``blue`` adds a second one."""
    frame = np.full((height, width, 3), 60, dtype=np.uint8)
    frame[y - 20 : y + 40, x - 8 : x + 8] = 110
    frame[max(0, y - 3) : y + 3, max(0, x - 3) : x + 3] = (255, 0, 0)
    if blue:
        frame[4:12, 4:12] = (0, 0, 255)
    return frame


def write_frames(path: Path, frames: list[np.ndarray], *, fps: float = 10) -> Path:
    """A video of frames [H, W, 3]."""
    chunks = (torch.from_numpy(frame).permute(2, 0, 1)[:, None].float() / 127.5 - 1 for frame in frames)
    return write_video(chunks, path, fps=fps, crf=0)


def tiny_sam2(side: int = 64) -> "torch.nn.Module":
    """transformers' network, as small as its constants allow."""
    import transformers

    width, cells = 128, side // 4
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2], "blocks_per_stage": [1, 1, 2, 1], "global_attention_blocks": [3],
        "image_size": [side, side], "window_size_per_stage": [8, 4, 4, 2],
    }  # fmt: skip
    config = transformers.Sam2VideoConfig(
        image_size=side,
        vision_config={
            "model_type": "sam2_vision_model", "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[cells // 2**level] * 2 for level in range(3)], "fpn_hidden_size": width,
        },
        prompt_encoder_config={"hidden_size": width, "image_size": side},
        mask_decoder_config={
            "hidden_size": width, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": width
        },
        memory_attention_hidden_size=width, memory_attention_feed_forward_hidden_size=32, memory_attention_num_layers=1,
        memory_attention_rope_feat_sizes=[side // 16] * 2, memory_encoder_hidden_size=width,
        mask_downsampler_embed_dim=width, memory_fuser_embed_dim=width, memory_fuser_intermediate_dim=32,
        memory_fuser_num_layers=1,
    )  # fmt: skip
    torch.manual_seed(3)
    network = transformers.Sam2VideoModel(config).eval()
    with torch.no_grad():
        waves = network.prompt_encoder.shared_embedding.positional_embedding
        network.shared_image_embedding.positional_embedding.copy_(waves)  # the released ones are one, too
        for parameter in network.mask_decoder.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.08)  # so that masks are of something, and not of all
    return network


def original_names(network: "torch.nn.Module") -> dict[str, Tensor]:
    """The weights under the names of the original files."""
    rules = {ours: theirs for theirs, ours in RENAMES}
    found = {}
    for name, tensor in network.state_dict().items():
        if name == "prompt_encoder.point_embed.weight":
            rows = tensor.split(1)
            found |= {f"sam_prompt_encoder.point_embeddings.{k}.weight": row.clone() for k, row in enumerate(rows)}
        elif name == "prompt_encoder.shared_embedding.positional_embedding":
            found["sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = tensor
        elif name != "shared_image_embedding.positional_embedding":
            found[rename(name, rules) or name] = tensor
    return found


def write_sam2(folder: Path, network: "torch.nn.Module") -> Path:
    """A file as the original's, and the config of its sizes, which no released file needs."""
    path = folder / "sam2/sam2_hiera_large.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": original_names(network)}, path)
    network.config.to_json_file(path.with_name("config.json"), use_diff=False)
    return path


def write_flux(folder: Path) -> Path:
    """A pipeline of random weights with the parts of the released one."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    letters = [chr(code) for code in range(33, 127)]
    words = {word: index for index, word in enumerate([*letters, *(f"{each}</w>" for each in letters)])}
    words |= {"<|startoftext|>": len(words), "<|endoftext|>": len(words) + 1}
    pieces = [(piece, -float(index)) for index, piece in enumerate(["<pad>", "</s>", "<unk>", "\u2581", *letters])]
    pipeline = diffusers.FluxKontextPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKL(
            block_out_channels=(4,), norm_num_groups=2, latent_channels=1, use_quant_conv=False,
            use_post_quant_conv=False, shift_factor=0.0, scaling_factor=1.0,
        ),
        text_encoder=transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=len(words), hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=4,
                projection_dim=32, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
            )
        ),
        tokenizer=transformers.CLIPTokenizer(vocab=words, merges=[], model_max_length=77),
        text_encoder_2=transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=len(pieces) + 100, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
        ),
        tokenizer_2=transformers.T5Tokenizer(vocab=pieces, model_max_length=512),
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
        ),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def small_flux(call: object) -> object:
    """A call of the pipeline for a thousandth of its usual area."""

    def small(self: object, **values: object) -> object:
        return call(self, **values, max_area=32**2, _auto_resize=False)  # type: ignore[operator]

    return small
