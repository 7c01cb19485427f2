"""Where the parts of a checkpoint are found, and the configs read from them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tools.make_checkpoint import CLIP, LAYOUTS, TEXT_ENCODER, make_checkpoint
from wan_core.checkpoints import (
    DIT,
    CheckpointLayout,
    MemorySource,
    load_model,
    native_weights,
    official_config,
    read_weights,
)
from wan_core.cli import wan
from wan_core.errors import CheckpointError
from wan_core.loading import checkpoint_folder, load_pipeline
from wan_core.models import WAN21_VAE, WAN22_VAE, WanDiT, WanDiTConfig, load_tokenizer
from wan_core.presets import get_preset, list_presets

from .networks import build, infer_clip_config, infer_dit_config, infer_umt5_config, infer_vae_config

VAE_21 = get_preset("t2v-A14B").part("vae")
CONFIG = WanDiTConfig(dim=16, ffn_dim=24, num_heads=2, num_layers=2, text_dim=8, text_len=4, freq_dim=8)


@pytest.mark.parametrize("preset", ["i2v-A14B", "ti2v-5B", "t2v-1.3B", "i2v-14B-720P"])
def test_every_part_of_an_official_folder_is_found_inferred_and_loaded(tmp_path: Path, preset: str) -> None:
    layout, model = LAYOUTS[preset], get_preset(preset)
    found = CheckpointLayout(make_checkpoint(preset, tmp_path / preset), preset)
    vae, text_encoder, tokenizer = (model.part(name) for name in ("vae", "text_encoder", "tokenizer"))
    for part in model.dits:
        source = native_weights(read_weights(found.find(part)), "dit")
        config = DIT.read_config(found.find(part), source)
        assert config == layout.dit
        load_model(config, source, family="dit", dtype=torch.bfloat16)
    source = native_weights(read_weights(found.find(vae)), "vae")
    config = infer_vae_config(source)
    released = WAN22_VAE if layout.vae.residual else WAN21_VAE
    assert (config.latents_mean, config.latents_std) == (released.latents_mean, released.latents_std)
    load_model(config, source, family="vae")
    source = native_weights(read_weights(found.find(text_encoder)), "umt5")
    assert infer_umt5_config(source) == TEXT_ENCODER
    load_model(TEXT_ENCODER, source, family="umt5")
    assert load_tokenizer(found.find(tokenizer)).vocab_size <= TEXT_ENCODER.vocab_size
    if layout.clip is not None:
        source = native_weights(read_weights(found.find(model.part("image_encoder"))), "clip")
        assert infer_clip_config(source) == CLIP
        load_model(CLIP, source, family="clip")


def test_both_tokenizer_files_give_the_same_ids(tmp_path: Path) -> None:
    folder = make_checkpoint("t2v-1.3B", tmp_path) / "google" / "umt5-xxl"
    fast, slow = load_tokenizer(folder / "tokenizer.json"), load_tokenizer(folder / "spiece.model")
    for prompt in ("Your prompt here", "two cats,  fight!", "Zebra & unknown: \u732b 720p", ""):
        assert fast(prompt, 512) == slow(prompt, 512)


def test_equal_seeds_make_equal_checkpoints(tmp_path: Path) -> None:
    first, second = (make_checkpoint("t2v-1.3B", tmp_path / name) for name in "ab")
    for path in sorted(first.rglob("*.safetensors")):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


@pytest.mark.parametrize("preset", [name for name in list_presets() if "tiny" in name])
@pytest.mark.parametrize("kind", ["official", "diffusers"])
def test_what_converting_writes_of_a_tiny_model_is_where_its_preset_looks(
    tmp_path: Path, preset: str, kind: str
) -> None:
    parts = [part for part in get_preset(preset).parts if part.family.name in ("dit", "vae", "umt5", "tokenizer")]
    for part in parts:
        where = part.family.where
        place = where.official(part.config, part.expert) if kind == "official" else where.diffusers
        place = where.second if kind == "diffusers" and part.expert == "low" else place
        file = tmp_path / place
        if not file.suffix:
            file /= "tokenizer.json" if part.name == "tokenizer" else f"{where.stem}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert CheckpointLayout(tmp_path).missing(parts) == []


def test_a_tiny_model_runs_from_the_folder_that_converting_writes(tmp_path: Path) -> None:
    folder = checkpoint_folder(get_preset("tiny-t2v"), None)
    result = CliRunner().invoke(wan, ["convert", str(folder), str(tmp_path / "w"), "--to", "official", "--quiet"])
    assert result.exit_code == 0, result.output
    found = load_pipeline("tiny-t2v", tmp_path / "w").components.found
    assert Path(found["vae"]) == tmp_path / "w/Wan2.2_VAE.pth"
    assert Path(found["text_encoder"]) == tmp_path / "w/models_t5_umt5-xxl-enc-bf16.pth"


def test_a_folder_for_a_model_of_the_package_is_not_to_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks the diffusion transformer .*; leave --ckpt-dir out"):
        load_pipeline("tiny-t2v", tmp_path)


def test_missing_parts_are_named_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "low_noise_model").mkdir()
    (tmp_path / "low_noise_model" / "diffusion_pytorch_model.safetensors").touch()
    layout = CheckpointLayout(tmp_path, "t2v-A14B")
    parts = get_preset("t2v-A14B").parts[:3]
    with pytest.raises(CheckpointError) as caught:
        layout.require(parts)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "high_noise_model/diffusion_pytorch_model*.safetensors or transformer/" in message
    assert "low_noise_model" not in message
    assert "Wan2.1_VAE.pth or Wan2.1_VAE.safetensors or vae" in message
    assert "wan download t2v-A14B" in message


def test_the_folder_that_was_meant_is_suggested(tmp_path: Path) -> None:
    folder = make_checkpoint("t2v-1.3B", tmp_path / "models" / "Wan2.1-T2V-1.3B")
    for given in (folder.parent, folder / "google"):
        with pytest.raises(CheckpointError, match=r"Wan2\.1-T2V-1\.3B has them: is that the one\?"):
            CheckpointLayout(given, "t2v-1.3B").find(VAE_21)


@pytest.mark.parametrize(("name", "words"), [("none", "does not exist"), ("file", "is a file, not a folder")])
def test_a_folder_that_is_none_is_named(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=words):
        CheckpointLayout(tmp_path / name, "t2v-1.3B").find(get_preset("t2v-1.3B").dits[0])


def test_safetensors_and_diffusers_folders_stand_in_for_official_files(tmp_path: Path) -> None:
    layout = CheckpointLayout(tmp_path)
    for folder in ("transformer", "transformer_2", "vae", "text_encoder"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "diffusion_pytorch_model.safetensors").touch()
    assert layout.find(get_preset("t2v-A14B").dits[0]) == tmp_path / "transformer"
    assert layout.find(get_preset("t2v-A14B").dits[1]) == tmp_path / "transformer_2"
    assert layout.find(VAE_21) == tmp_path / "vae"
    (tmp_path / "Wan2.1_VAE.safetensors").touch()
    assert layout.find(VAE_21) == tmp_path / "Wan2.1_VAE.safetensors"
    (tmp_path / "Wan2.1_VAE.pth").touch()
    assert layout.find(VAE_21) == tmp_path / "Wan2.1_VAE.pth"


# -- config.json -------------------------------------------------------------------------------------------------------


def source(config: WanDiTConfig = CONFIG) -> MemorySource:
    with torch.device("meta"):
        return MemorySource(build(config).state_dict())


OFFICIAL = {
    "_class_name": "WanModel", "model_type": "t2v", "in_dim": 16, "out_dim": 16, "dim": 16, "ffn_dim": 24,
    "freq_dim": 8, "num_heads": 2, "num_layers": 2, "text_len": 4, "text_dim": 8, "eps": 1e-6,
}  # fmt: skip
DIFFUSERS = {
    "_class_name": "WanTransformer3DModel", "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 16,
    "out_channels": 16, "ffn_dim": 24, "freq_dim": 8, "text_dim": 8, "num_layers": 2, "patch_size": [1, 2, 2],
    "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "image_dim": None,
    "added_kv_proj_dim": None, "rope_max_seq_len": 1024, "pos_embed_seq_len": None,
}  # fmt: skip


def written(folder: Path, content: Any) -> Path:
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_official_and_diffusers_configs_are_read(tmp_path: Path) -> None:
    assert DIT.read_config(written(tmp_path, OFFICIAL), source()) == CONFIG
    ours = DIT.read_config(written(tmp_path, DIFFUSERS), source())
    assert ours == WanDiTConfig(**{**CONFIG.__dict__, "text_len": 512})
    plain = WanDiTConfig(**{**CONFIG.__dict__, "qk_norm": False})
    assert not DIT.read_config(written(tmp_path, DIFFUSERS | {"qk_norm": None}), source(plain)).qk_norm


def test_what_other_trainers_write_beside_the_official_options_changes_nothing(tmp_path: Path) -> None:
    fun = {
        "in_channels": 16, "hidden_size": 2048, "add_control_adapter": False, "in_dim_control_adapter": 24,
        "downscale_factor_control_adapter": 8, "add_ref_conv": False, "in_dim_ref_conv": 16, "cross_attn_type": None,
        "window_size": [-1, -1],
    }  # fmt: skip
    assert DIT.read_config(written(tmp_path, OFFICIAL | fun), source()) == CONFIG
    causal = {"local_attn_size": -1, "sink_size": 0}
    assert DIT.read_config(written(tmp_path, OFFICIAL | causal), source()) == CONFIG
    with pytest.raises(CheckpointError, match="local_attn_size 21 limits attention"):
        DIT.read_config(written(tmp_path, OFFICIAL | {"local_attn_size": 21}), source())
    with pytest.raises(CheckpointError, match="add_ref_conv is no option"):
        DIT.read_config(written(tmp_path, OFFICIAL | fun | {"add_ref_conv": True}), source())


def test_a_width_that_does_not_tell_the_heads_is_not_guessed_from(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="how many heads"):
        DIT.read_config(tmp_path, source())
    stated = MemorySource({n: source().read(n) for n in source()}, metadata={"config": '{"num_heads": 4}'})
    assert DIT.read_config(tmp_path, stated).num_heads == 4


def test_the_image_branch_is_told_by_the_tensors_not_by_the_name(tmp_path: Path) -> None:
    written(tmp_path, OFFICIAL | {"model_type": "i2v"})
    assert DIT.read_config(tmp_path, source()).image_dim is None
    branch = WanDiTConfig(**{**CONFIG.__dict__, "image_dim": 12})
    assert DIT.read_config(tmp_path, source(branch)) == branch


def test_without_a_config_the_shapes_tell(tmp_path: Path) -> None:
    config = WanDiTConfig(
        dim=256, ffn_dim=24, num_heads=2, num_layers=3, text_dim=8, freq_dim=8, in_dim=36, image_dim=9
    )
    assert DIT.read_config(tmp_path, source(config)) == config


ABSURD = {
    "width": OFFICIAL | {"dim": 10**9},
    "layers": OFFICIAL | {"num_layers": 10**6},
    "negative": OFFICIAL | {"ffn_dim": -1},
    "zero heads": OFFICIAL | {"num_heads": 0},
    "uneven heads": OFFICIAL | {"num_heads": 3},
    "text": OFFICIAL | {"dim": "5120"},
    "fraction": OFFICIAL | {"num_layers": 2.5},
    "truth": OFFICIAL | {"num_layers": True},
    "list": OFFICIAL | {"dim": [16]},
    "object": OFFICIAL | {"in_dim": {"a": 1}},
    "not a number": json.dumps(OFFICIAL).replace("1e-06", "NaN"),
    "infinite": json.dumps(OFFICIAL).replace('"dim": 16', '"dim": 1e999'),
    "huge number": json.dumps(OFFICIAL).replace('"dim": 16', '"dim": ' + "9" * 4000),
    "patch": OFFICIAL | {"patch_size": [1, 2]},
    "patch of thousands": OFFICIAL | {"patch_size": [1] * 5000},
    "no JSON": "{",
    "no object": "[]",
    "diffusers heads": DIFFUSERS | {"num_attention_heads": 10**7},
    "diffusers width": DIFFUSERS | {"attention_head_dim": "8"},
    "no heads": {"num_attention_heads": None},
    "other width": OFFICIAL | {"dim": 32},
    "other depth": OFFICIAL | {"num_layers": 3},
    "other channels": DIFFUSERS | {"in_channels": 36},
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_configs_are_refused_before_anything_is_built(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = source()
    monkeypatch.setattr(WanDiT, "__init__", lambda self, config: pytest.fail("built"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        DIT.read_config(written(tmp_path, ABSURD[name]), tensors)


@pytest.mark.parametrize("infer", [infer_vae_config, infer_umt5_config, infer_clip_config, infer_dit_config])
def test_tensors_of_something_else_are_one_error(tmp_path: Path, infer: Any) -> None:
    for tensors in ({}, {"x": torch.ones(1)}, {"patch_embedding.weight": torch.ones(2)}):
        other = MemorySource(tensors)
        with pytest.raises(CheckpointError):
            infer(other)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"window_size": [8, 8]}, "window_size"),
        ({"window_size": 8}, "window_size"),
        ({"rope_theta": 5.0, "zz": 1}, "rope_theta, zz"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
@pytest.mark.parametrize("keys", [OFFICIAL, DIFFUSERS], ids=["official", "diffusers"])
def test_an_option_that_would_be_passed_over_is_refused_by_name(
    tmp_path: Path, keys: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        DIT.read_config(written(tmp_path, keys | more), source())
    unlimited = keys | {"window_size": [-1, -1], "rope_theta": None}
    assert DIT.read_config(written(tmp_path, unlimited), source()).dim == CONFIG.dim


def test_a_config_that_we_write_is_read_again(tmp_path: Path) -> None:
    odd = WanDiTConfig(**{**CONFIG.__dict__, "eps": 1e-5, "patch_size": (1, 1, 1), "cross_attn_norm": False})
    for config in (CONFIG, odd):
        stored = official_config(config)
        assert stored["model_type"] == "t2v"
        assert DIT.read_config(written(tmp_path, stored), source(config)) == config
