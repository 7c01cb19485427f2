"""Models that are nearly ours are named: by the inspection without an error, by loader and converter as a refusal."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.make_checkpoint import make_checkpoint
from wan_core.checkpoints import FLF2V, MemorySource, in_format
from wan_core.checkpoints.families.relatives import relative_of
from wan_core.cli import wan
from wan_core.errors import CheckpointError
from wan_core.loading import load_pipeline
from wan_core.models import FLF2VConfig, WanDiTConfig

from .networks import build

DIT = WanDiTConfig(dim=128, ffn_dim=48, num_heads=1, num_layers=2, text_dim=24, text_len=512, freq_dim=16)
KEYS = {
    "vace_blocks.0.before_proj.weight": "VACE",
    "vace_patch_embedding.bias": "VACE",
    "face_adapter.fuser_blocks.0.linear1_kv.weight": "Wan-Animate",
    "pose_patch_embedding.weight": "Wan-Animate",
    "motion_encoder.enc.net_app.convs.0.0.weight": "Wan-Animate",
    "casual_audio_encoder.encoder.final_linear.weight": "S2V",
    "audio_injector.injector.0.q.weight": "S2V",
    "trainable_cond_mask.weight": "S2V",
    "control_adapter.conv.weight": "Fun Camera",
    "ref_conv.weight": "Fun Control",
    "fps_embedding.weight": "SkyReels-V2",
    "fps_projection.0.weight": "SkyReels-V2",
    "blocks.0.to_gate_compress.weight": "VSA",
    "blocks.0.self_attn.gate_compress.weight": "VSA",
    "blocks.0.self_attn.attn_op.local_attn.proj_l.weight": "TurboDiffusion",
    "audio_proj.audio_proj_glob_1.layer.bias": "HuMo",
    "audio_proj.proj1.weight": "MultiTalk",
    "blocks.0.audio_cross_attn.q_linear.weight": "InfiniteTalk",
    "proj_model.proj.weight": "FantasyTalking",
    "blocks.0.cross_attn.processor.k_proj.weight": "FantasyTalking",
    "blocks.0.cam_encoder.weight": "ReCamMaster",
    "patch_embedding_pose.weight": "SCAIL",
    "dwpose_embedding.0.weight": "UniAnimate",
    "blocks.0.self_attn.ref_adapter.to_k_ref.weight": "Lynx",
    "blocks.0.motion_attn.k.weight": "MTVCrafter",
}


def weights(config: WanDiTConfig = DIT) -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build(config).state_dict().items()}
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def inspected(path: Path) -> Any:
    result = CliRunner().invoke(wan, ["inspect", str(path), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("naming", ["official", "diffusers"])
def test_each_is_named_by_its_keys(tmp_path: Path, key: str, naming: str) -> None:
    foreign = in_format(MemorySource(weights()), "dit", naming)
    stored = {f"net.{name}": foreign.read(name) for name in foreign} | {f"net.{key}": torch.zeros(2)}
    save_file(stored, tmp_path / "w.safetensors")
    report = inspected(tmp_path / "w.safetensors")
    assert KEYS[key] in report["weights"][0]["problem"]
    assert report["models"] == {}
    result = CliRunner().invoke(wan, ["convert", str(tmp_path / "w.safetensors"), str(tmp_path / "out")])
    assert result.exit_code == 3
    assert f"{KEYS[key]}" in result.output
    assert "which needs" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("in_dim", "out_dim", "title"),
    [(48, 16, "2.1-Fun Control"), (52, 16, "2.2-Fun Control"), (148, 48, "5B"), (96, 48, "Lucy Edit 5B")],
)
def test_some_are_told_by_their_channels_alone(tmp_path: Path, in_dim: int, out_dim: int, title: str) -> None:
    config = WanDiTConfig(**{**DIT.__dict__, "in_dim": in_dim, "out_dim": out_dim})
    save_file(weights(config), tmp_path / "w.safetensors")
    assert title in inspected(tmp_path / "w.safetensors")["weights"][0]["problem"]


def test_a_part_of_one_is_named_too(tmp_path: Path) -> None:
    save_file({"vace_blocks.0.after_proj.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    assert "part of Wan VACE" in inspected(tmp_path / "w.safetensors")["weights"][0]["problem"]
    result = CliRunner().invoke(wan, ["convert", str(tmp_path / "w.safetensors"), str(tmp_path / "out")])
    assert (result.exit_code, "part of Wan VACE" in result.output) == (3, True)


@pytest.mark.parametrize("name", ["_flat_param", "blocks.0._fsdp_wrapped_module._flat_param", "flat_param_0"])
def test_flat_parameters_of_one_process_are_named(tmp_path: Path, name: str) -> None:
    save_file({name: torch.zeros(9)}, tmp_path / "w.safetensors")
    assert "FSDP checkpoint with flat parameters" in inspected(tmp_path / "w.safetensors")["weights"][0]["problem"]


def test_the_loader_refuses_before_the_config_is_read(tmp_path: Path) -> None:
    folder = make_checkpoint("t2v-1.3B", tmp_path / "w")
    (file,) = folder.glob("diffusion_pytorch_model*.safetensors")
    stored = {**load_file(file), "vace_patch_embedding.bias": torch.zeros(64)}
    save_file(stored, file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vace_layers": [0, 1], "model_type": "vace"}))
    with pytest.raises(CheckpointError, match="is Wan VACE, which needs a control branch"):
        load_pipeline("t2v-1.3B", folder)


def test_what_does_not_fit_is_refused_before_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"looks like the first-last-frame .*unexpected: img_emb\.emb_pos"):
        load_pipeline("i2v-14B-480P", make_checkpoint("flf2v-14B", tmp_path / "flf2v"))
    folder = make_checkpoint("t2v-1.3B", tmp_path / "w")
    vae = torch.load(folder / "Wan2.1_VAE.pth", weights_only=True)
    torch.save({name: vae[name] for name in vae if name != "conv1.bias"}, folder / "Wan2.1_VAE.pth")
    with pytest.raises(CheckpointError, match=r"does not fit VideoVAE: 1 missing: conv1\.bias"):
        load_pipeline("t2v-1.3B", folder)


@pytest.mark.parametrize("value", [False, True])
def test_options_of_relatives_are_no_matter_where_they_are_off(tmp_path: Path, value: bool) -> None:
    folder = make_checkpoint("t2v-1.3B", tmp_path / "w")
    config = json.loads((folder / "config.json").read_text()) | {"inject_sample_info": value}
    (folder / "config.json").write_text(json.dumps(config))
    problem = next(entry["problem"] for entry in inspected(folder)["weights"] if entry["family"] == "dit")
    assert ("inject_sample_info" in problem) == value


def said_by_class(folder: Path, name: str, file: str = "config.json") -> list[dict[str, Any]]:
    """The report on a network of ours in diffusers' names, which a file calls by the name of a class."""
    foreign = in_format(MemorySource(weights()), "dit", "diffusers")
    (folder / "transformer").mkdir(parents=True)
    save_file(
        {each: foreign.read(each) for each in foreign}, folder / "transformer/diffusion_pytorch_model.safetensors"
    )
    values = {"_class_name": name}
    (folder / ("transformer" if file == "config.json" else "") / file).write_text(json.dumps(values))
    return list(inspected(folder)["weights"])


CLASSES = {
    "SkyReelsV2Transformer3DModel": "SkyReels-V2",
    "ChronoEditTransformer3DModel": "ChronoEdit",
    "WanVACETransformer3DModel": "Wan VACE",
    "VaceWanModel": "Wan VACE",
    "WanAnimateTransformer3DModel": "Wan-Animate",
    "WanAnimate2Transformer3DModel": "Wan-Animate 2",
    "WanModel_S2V": "Wan S2V",
    "LongCatVideoTransformer3DModel": "LongCat-Video",
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_of_another_model_refuses_tensors_that_look_like_ours(tmp_path: Path, name: str) -> None:
    (entry,) = said_by_class(tmp_path / "w", name)
    assert f"is {CLASSES[name]}" in entry["problem"]
    assert f"(config.json says {name}), which needs" in entry["problem"]
    result = CliRunner().invoke(wan, ["convert", str(tmp_path / "w"), str(tmp_path / "out"), "--to", "official"])
    assert (result.exit_code, name in result.output) == (3, True)


@pytest.mark.parametrize("name", ["ChronoEditPipeline", "LucyEditPipeline", "WanVACEPipeline"])
def test_the_class_of_a_pipeline_tells_too(tmp_path: Path, name: str) -> None:
    (entry,) = said_by_class(tmp_path / "w", name, "model_index.json")
    assert f"(model_index.json says {name})" in entry["problem"]


@pytest.mark.parametrize("name", ["WanModel", "WanTransformer3DModel", "CausalWanModel", "WanPipeline"])
def test_classes_of_ours_are_no_matter(tmp_path: Path, name: str) -> None:
    (entry,) = said_by_class(tmp_path / "w", name)
    assert (entry["problem"], entry["notes"]) == ("", [])


def test_a_class_that_is_not_known_is_one_note(tmp_path: Path) -> None:
    (entry,) = said_by_class(tmp_path / "w", "Wan\x1b[2JNewTransformer3DModel")
    assert entry["problem"] == ""
    (note,) = entry["notes"]
    assert "says that it is a Wan[2JNewTransformer3DModel, which is not known here; it is read as Wan" in note


@pytest.mark.parametrize("method", ["bitsandbytes", "torchao", "quanto", "modelopt"])
def test_a_config_that_says_who_packed_the_weights_is_refused_by_that_name(tmp_path: Path, method: str) -> None:
    folder = make_checkpoint("t2v-1.3B", tmp_path / "w")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": method}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"packed by {method}"):
        load_pipeline("t2v-1.3B", folder)


@pytest.mark.parametrize(
    "name",
    ["Phantom-Wan-14B", "Wan2_1_mocha-14B_fp16", "SkyReels-V2-DF-14B-540P", "MAGREF_14B", "Wan2_1-I2V-ATI-14B_fp8"],
)
def test_what_only_a_name_tells_is_a_note(tmp_path: Path, name: str) -> None:
    save_file(weights(), tmp_path / f"{name}.safetensors")
    (entry,) = inspected(tmp_path / f"{name}.safetensors")["weights"]
    assert "it runs as" in entry["notes"][0]
    assert entry["problem"] == ""


def test_a_class_that_is_refused_has_no_note_that_it_is_read(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"_class_name": "WanVACETransformer3DModel", "num_attention_heads": 4}')
    (entry,) = inspected(tmp_path)["weights"]
    assert "is Wan VACE" in entry["problem"]
    assert not any("it is read as Wan" in note for note in entry["notes"])


@pytest.mark.parametrize(
    "config",
    [DIT, *(WanDiTConfig(**{**DIT.__dict__, "in_dim": n, "out_dim": m}) for n, m in ((36, 16), (48, 48)))],
)
def test_what_is_ours_is_no_relative(config: WanDiTConfig) -> None:
    assert relative_of(weights(config)) is None


def test_first_and_last_frame_is_ours() -> None:
    config = FLF2VConfig(**{**DIT.__dict__, "in_dim": 36, "image_dim": 160, "image_tokens": 514})
    with torch.device("meta"):
        assert relative_of(FLF2V.build(config).state_dict()) is None
