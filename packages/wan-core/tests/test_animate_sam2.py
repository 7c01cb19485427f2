"""SAM 2: the original's names and sizes, what is followed from where, and masks as transformers itself makes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner

from tests.animate_models import HEIGHT, WIDTH, original_names, person, tiny_sam2, write_sam2
from wan_core.animate.keypoints import PosePoints
from wan_core.animate.sam2 import MaskTracker, Prompt, _without_holes, chunks, key_frames, prompt_points
from wan_core.animate.sam2_weights import check_sam2, load_sam2
from wan_core.checkpoints import SAM2, MemorySource, build_on_meta, in_format, native_weights
from wan_core.checkpoints.families.sam2 import RENAMES, infer_config
from wan_core.checkpoints.formats import rename
from wan_core.cli import wan
from wan_core.errors import CheckpointError

# The sizes of the release, and the parameters that its README tells, in millions.
RELEASED: dict[str, tuple[dict[str, Any], float]] = {
    "tiny": (
        {
            "hidden_size": 96, "embed_dim_per_stage": [96, 192, 384, 768], "blocks_per_stage": [1, 2, 7, 2],
            "num_attention_heads_per_stage": [1, 2, 4, 8], "global_attention_blocks": [5, 7, 9],
            "window_positional_embedding_background_size": [7, 7], "window_size_per_stage": [8, 4, 14, 7],
        },
        38.9,
    ),
    "small": (
        {
            "hidden_size": 96, "embed_dim_per_stage": [96, 192, 384, 768], "blocks_per_stage": [1, 2, 11, 2],
            "num_attention_heads_per_stage": [1, 2, 4, 8], "global_attention_blocks": [7, 10, 13],
            "window_positional_embedding_background_size": [7, 7], "window_size_per_stage": [8, 4, 14, 7],
        },
        46.0,
    ),
    "base_plus": (
        {
            "hidden_size": 112, "embed_dim_per_stage": [112, 224, 448, 896], "blocks_per_stage": [2, 3, 16, 3],
            "num_attention_heads_per_stage": [2, 4, 8, 16], "global_attention_blocks": [12, 16, 20],
            "window_positional_embedding_background_size": [14, 14], "window_size_per_stage": [8, 4, 14, 7],
        },
        80.8,
    ),
    "large": (
        {
            "hidden_size": 144, "embed_dim_per_stage": [144, 288, 576, 1152], "blocks_per_stage": [2, 6, 36, 4],
            "num_attention_heads_per_stage": [2, 4, 8, 16], "global_attention_blocks": [23, 33, 43],
            "window_positional_embedding_background_size": [7, 7], "window_size_per_stage": [8, 4, 16, 8],
        },
        224.4,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def network() -> transformers.Sam2VideoModel:
    return tiny_sam2()


def released(size: str, *, is_later: bool) -> tuple[transformers.Sam2VideoModel, dict[str, Any], float]:
    backbone, millions = RELEASED[size]
    config = transformers.Sam2VideoConfig(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {"model_type": "sam2_hiera_det_model", **backbone},
            "backbone_channel_list": backbone["embed_dim_per_stage"][::-1],
        },
        enable_occlusion_spatial_embedding=is_later,
        enable_temporal_pos_encoding_for_object_pointers=is_later,
    )
    return build_on_meta(lambda: transformers.Sam2VideoModel(config)), backbone, millions


@pytest.mark.parametrize("size", RELEASED)
def test_sizes_of_the_release_are_told_by_shapes(size: str) -> None:
    is_later = size == "small"
    network, backbone, millions = released(size, is_later=is_later)
    config = infer_config(Path("sam2/none.pt"), MemorySource(network.state_dict())).of_transformers()
    found = config.vision_config.backbone_config.to_dict()
    assert {name: found[name] for name in backbone} == backbone
    assert config.vision_config.backbone_channel_list == backbone["embed_dim_per_stage"][::-1]
    assert (config.enable_occlusion_spatial_embedding, config.enable_temporal_pos_encoding_for_object_pointers) == (
        is_later,
        is_later,
    )
    assert sum(each.numel() for each in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_an_original_file_is_read_back_exactly(tmp_path: Path, network: transformers.Sam2VideoModel) -> None:
    loaded = load_sam2(write_sam2(tmp_path, network))
    wanted = network.state_dict()
    waves = "prompt_encoder.shared_embedding.positional_embedding"
    wanted["shared_image_embedding.positional_embedding"] = wanted[waves]  # one table in the original
    found = loaded.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert not loaded.training


def test_names_are_those_of_the_original(network: transformers.Sam2VideoModel) -> None:
    names = set(original_names(network))
    assert {
        "image_encoder.trunk.pos_embed_window", "image_encoder.trunk.patch_embed.proj.weight",
        "image_encoder.trunk.blocks.0.norm1.bias", "image_encoder.trunk.blocks.2.mlp.layers.1.weight",
        "image_encoder.trunk.blocks.1.proj.weight", "image_encoder.neck.convs.3.conv.weight", "maskmem_tpos_enc",
        "no_mem_embed", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial", "obj_ptr_tpos_proj.weight",
        "obj_ptr_proj.layers.2.bias", "memory_attention.layers.0.cross_attn_image.out_proj.weight",
        "memory_attention.layers.0.norm3.weight", "memory_attention.norm.weight", "memory_encoder.out_proj.weight",
        "memory_encoder.mask_downsampler.encoder.10.weight", "memory_encoder.mask_downsampler.encoder.12.bias",
        "memory_encoder.fuser.layers.0.gamma", "memory_encoder.fuser.layers.0.dwconv.weight",
        "memory_encoder.pix_feat_proj.weight", "sam_prompt_encoder.mask_downscaling.6.weight",
        "sam_prompt_encoder.point_embeddings.3.weight", "sam_prompt_encoder.not_a_point_embed.weight",
        "sam_mask_decoder.transformer.layers.1.cross_attn_image_to_token.out_proj.bias",
        "sam_mask_decoder.transformer.layers.0.norm4.weight", "sam_mask_decoder.transformer.norm_final_attn.weight",
        "sam_mask_decoder.output_upscaling.3.weight", "sam_mask_decoder.iou_prediction_head.layers.2.weight",
        "sam_mask_decoder.output_hypernetworks_mlps.3.layers.1.weight", "mask_downsample.weight",
        "sam_mask_decoder.pred_obj_score_head.layers.0.weight", "sam_mask_decoder.conv_s0.weight",
    } <= names  # fmt: skip


def test_the_table_leaves_names_of_transformers_as_they_are(network: transformers.Sam2VideoModel) -> None:
    rules = dict(RENAMES)
    assert [name for name in network.state_dict() if rename(name, rules) != name] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop("no_obj_ptr"), "1 missing: no_object_pointer"),
        (lambda weights: weights.update({"further.weight": torch.zeros(2)}), "1 unexpected: further.weight"),
        (lambda weights: weights.update({"no_obj_ptr": torch.zeros(1, 3)}), "of another shape: no_object_pointer"),
    ],
)
def test_every_weight_has_its_place(
    tmp_path: Path, network: transformers.Sam2VideoModel, change: Any, said: str
) -> None:
    path = write_sam2(tmp_path, network)
    weights = torch.load(path, weights_only=True)["model"]
    change(weights)
    torch.save({"model": weights}, path)
    with pytest.raises(CheckpointError, match=said):
        check_sam2(path)


def test_a_size_that_was_never_released_needs_its_config(tmp_path: Path, network: transformers.Sam2VideoModel) -> None:
    path = write_sam2(tmp_path, network)
    path.with_name("config.json").unlink()
    with pytest.raises(CheckpointError, match="5 blocks from 8 channels, which is none of the released sizes"):
        check_sam2(path)


def test_a_folder_of_transformers_is_read_too(tmp_path: Path, network: transformers.Sam2VideoModel) -> None:
    network.save_pretrained(tmp_path)
    check_sam2(tmp_path)
    found = load_sam2(tmp_path).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("length", "keys"),
    [(1, [0]), (4, [0]), (5, [0, 1, 2, 3, 4]), (8, [0, 2, 4, 6]), (9, [0, 2, 4, 6, 8]), (400, [0, 100, 200, 300])],
)
def test_key_frames_are_four_or_five_of_a_chunk_and_one_of_a_short_one(length: int, keys: list[int]) -> None:
    assert list(key_frames(length)) == keys


def test_long_videos_are_followed_in_chunks_of_400_frames() -> None:
    assert chunks(399) == [range(399)]
    assert chunks(400) == [range(400)]
    assert chunks(801) == [range(400), range(400, 800), range(800, 801)]


def test_prompts_are_points_of_the_body_in_whole_pixels() -> None:
    body = np.column_stack([np.arange(20) / 20, np.full(20, 0.55), np.ones(20)])
    body[13] = np.nan
    hand, face = np.zeros((21, 3)), np.zeros((69, 3))
    points = PosePoints(body=body, left_hand=hand, right_hand=hand, face=face, width=50, height=10)
    assert prompt_points(points).tolist() == [[x, 5] for x in (0, 2, 5, 12, 20, 27, 25)]  # nose to ankles; one is lost


def test_the_smallest_holes_of_a_mask_are_filled() -> None:
    logits = np.full((12, 12), 3.0, dtype=np.float32)
    logits[2:4, 2:6] = -1  # 8 cells
    logits[7:10, 7:10] = -1  # 9 cells
    filled = _without_holes(logits)
    assert (filled[2:4, 2:6] > 0).all()
    assert (filled[7:10, 7:10] == -1).all()


@pytest.mark.slow
@pytest.mark.parametrize("is_later", [False, True])
def test_masks_are_those_of_transformers_own_propagation(is_later: bool) -> None:
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    network = tiny_sam2()
    if not is_later:
        network.config.enable_temporal_pos_encoding_for_object_pointers = False
        network.occlusion_spatial_embedding_parameter = None
    length = 19  # longer than what it looks back at
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(length)]
    points = rng.integers(8, 60, (8, 2)).astype(np.int32)
    tracker = MaskTracker(network, torch.device("cpu"))
    prompts = {index: Prompt(frames[index], points) for index in key_frames(length)}
    found = list(tracker.masks(iter(frames), length, prompts))

    whole = torch.stack([tracker._pixels(frame) for frame in frames])
    session = Sam2VideoInferenceSession(whole, HEIGHT, WIDTH, dtype=torch.float32)
    session.obj_id_to_idx(0)
    side = network.config.image_size
    scaled = torch.from_numpy(points).float() * torch.tensor([side / WIDTH, side / HEIGHT])
    with torch.inference_mode():
        for index in prompts:
            inputs = {"point_coords": scaled[None, None], "point_labels": torch.ones(1, 1, 8, dtype=torch.int32)}
            session.add_point_inputs(0, index, inputs)
            session.obj_with_new_inputs = [0]
            network(session, frame_idx=index)
        wanted = [
            tracker._mask(each.pred_masks, HEIGHT, WIDTH) for each in network.propagate_in_video_iterator(session)
        ]
    assert all(np.array_equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert 0 < sum(mask.mean() for mask in found) < length


def test_one_frame_is_followed_too() -> None:
    frame = person(30, 40)
    tracker = MaskTracker(tiny_sam2().bfloat16(), torch.device("cpu"))
    (mask,) = tracker.masks([frame], 1, {0: Prompt(frame, np.array([[30, 40]], dtype=np.int32))})
    assert mask.shape == (HEIGHT, WIDTH)
    assert mask.dtype == np.uint8


def inspected(path: Path, *options: str) -> str:
    result = CliRunner().invoke(wan, ["inspect", str(path), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_inspect_names_it_in_both_namings(tmp_path: Path, network: transformers.Sam2VideoModel) -> None:
    path = write_sam2(tmp_path, network)
    lines = inspected(path)
    assert "SAM 2, original names" in lines
    assert "torch pickle" in lines
    assert "blocks_per_stage (1, 1, 2, 1)" in lines
    found = json.loads(inspected(path, "--json"))["weights"][0]
    assert (found["family"], found["missing"], found["unexpected"], found["problem"]) == ("sam2", [], [], "")
    assert found["config"]["has_occlusion_embedding"] is True
    network.save_pretrained(tmp_path / "hub")
    assert "SAM 2, transformers names" in inspected(tmp_path / "hub")
    path.with_name("config.json").unlink()
    assert "none of the released sizes" in inspected(path)


def test_both_namings_are_made_of_each_other(network: transformers.Sam2VideoModel) -> None:
    original = original_names(network)
    native = native_weights(MemorySource(original), SAM2)
    assert set(native) == set(network.state_dict())
    again = in_format(native, SAM2, "original")
    assert set(again) == set(original)
    assert all(torch.equal(again.read(name), tensor) for name, tensor in original.items())
