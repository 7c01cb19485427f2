"""``wan convert``: round trips through every layout, and the peers load what it writes and compute the same."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.make_checkpoint import make_checkpoint
from wan_core.checkpoints import (
    DIT,
    ExportOptions,
    MemorySource,
    PipelineFacts,
    export_networks,
    find_weights,
    in_format,
    load_model,
    native_weights,
    networks_in,
    read_weights,
    write_file,
)
from wan_core.cli import wan
from wan_core.cli.progress import byte_progress
from wan_core.models import DiTInputs, WanDiTConfig

from .networks import build, infer_clip_config, infer_umt5_config, infer_vae_config

PRESETS = ["t2v-A14B", "ti2v-5B", "i2v-14B-480P"]
LAYOUTS = ["official", "diffusers", "single"]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def folder(preset: str) -> Path:
        return make_checkpoint(preset, tmp_path_factory.mktemp("official") / preset)

    return folder


def convert(*arguments: object) -> str:
    result = CliRunner().invoke(wan, ["convert", "--quiet", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def weights_of(path: Path) -> dict[str, dict[str, Tensor]]:
    """Native tensors of every network below a path; two transformers under their expert's name."""
    found = {}
    for network in networks_in(find_weights(path)):
        name = f"{network.family.name} {network.expert or ''}".strip()
        found[name] = {key: network.native.read(key).clone() for key in network.native}
    return found


def assert_same(left: dict[str, dict[str, Tensor]], right: dict[str, dict[str, Tensor]]) -> None:
    assert set(left) == set(right)
    for part, tensors in left.items():
        assert set(tensors) == set(right[part]), part
        for name, tensor in tensors.items():
            assert tensor.dtype == right[part][name].dtype, (part, name)
            assert torch.equal(tensor, right[part][name]), (part, name)


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_layout_survives_every_other(preset: str, official: Callable[[str], Path], tmp_path: Path) -> None:
    expected = weights_of(official(preset))
    folder = official(preset)
    for number, layout in enumerate(["diffusers", "single", "official", "single", "diffusers", "official"]):
        convert(folder, tmp_path / f"{number}", "--to", layout)
        folder = tmp_path / f"{number}"
        assert_same(weights_of(folder), expected)
    assert contents_of(tmp_path / "0") == contents_of(tmp_path / "4")
    assert contents_of(tmp_path / "1") == contents_of(tmp_path / "3")
    assert contents_of(tmp_path / "2") == contents_of(tmp_path / "5")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_official_layout_is_that_of_the_original(
    preset: str, official: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = official(preset)
    convert(folder, tmp_path / "w")
    names = {name for name in contents_of(folder) if "diffusion_pytorch_model" not in name}
    assert {name for name in contents_of(tmp_path / "w") if "diffusion_pytorch_model" not in name} == names
    for name in names:
        if name.endswith("config.json") and "tokenizer" not in name:
            assert json.loads((tmp_path / "w" / name).read_text()) == json.loads((folder / name).read_text())
        if name.endswith(".pth"):
            ours, theirs = (torch.load(root / name, weights_only=True) for root in (tmp_path / "w", folder))
            assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())
            assert set(ours) == set(theirs)  # of CLIP the text half, too


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    heads=st.integers(1, 3),
    layers=st.integers(1, 3),
    image=st.booleans(),
    form=st.sampled_from(["official", "diffusers"]),
    layouts=st.lists(st.sampled_from(LAYOUTS), min_size=1, max_size=3),
    shard=st.integers(1, 40_000),
)
def test_any_transformer_survives_any_chain_of_layouts(
    tmp_path_factory: pytest.TempPathFactory,
    heads: int,
    layers: int,
    image: bool,
    form: str,
    layouts: list[str],
    shard: int,
) -> None:
    config = WanDiTConfig(
        dim=heads * 12, num_heads=heads, num_layers=layers, ffn_dim=8, in_dim=36 if image else 16, text_dim=4,
        freq_dim=4, text_len=9, image_dim=8 if image else None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        native = MemorySource(build(config).state_dict())
    stated = {"config": json.dumps({"num_heads": heads, "text_len": 9})}
    root = tmp_path_factory.mktemp("chain")
    write_file(in_format(native, "dit", form), root / "w.safetensors", metadata=stated)
    path = root / "w.safetensors"
    for number, layout in enumerate(layouts):
        contents = find_weights(path)
        path = root / (f"{number}.safetensors" if layout == "single" else f"{number}")
        options = ExportOptions(layout=layout, max_shard_bytes=shard)  # type: ignore[arg-type]
        facts, quiet = PipelineFacts(flow_shift=5.0), byte_progress("", quiet=True)
        export_networks(networks_in(contents), contents, path, options, facts=facts, progress=quiet)
    (network,) = networks_in(find_weights(path))
    assert network.config == config
    assert all(torch.equal(network.native.read(name), native.read(name)) for name in native)
    assert set(network.native) == set(native)


# -- the peers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diffusers_folder(
    official: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    @cache
    def folder(preset: str) -> Path:
        out = tmp_path_factory.mktemp("diffusers") / preset
        convert(official(preset), out, "--to", "diffusers", "--shard-size", "200kB")
        return out

    return folder


@pytest.mark.parametrize(
    ("preset", "part"), [("t2v-A14B", "transformer_2"), ("ti2v-5B", "transformer"), ("i2v-14B-480P", "transformer")]
)
def test_diffusers_computes_the_same_with_our_transformer(
    preset: str, part: str, official: Callable[[str], Path], diffusers_folder: Callable[[str], Path]
) -> None:
    from diffusers import WanTransformer3DModel

    source = official(preset) / ("low_noise_model" if part == "transformer_2" else "")
    peer = WanTransformer3DModel.from_pretrained(diffusers_folder(preset) / part).eval()
    native = native_weights(read_weights(source), "dit")
    config = DIT.read_config(source, native)
    ours = load_model(config, native, family="dit")
    torch.manual_seed(0)
    latents, context = torch.randn(1, config.in_dim, 2, 4, 6), torch.randn(1, 512, config.text_dim)
    states = None if config.image_dim is None else torch.randn(1, 257, config.image_dim)
    with torch.no_grad():
        expected = peer(latents, torch.tensor([37.0]), context, encoder_hidden_states_image=states, return_dict=False)[
            0
        ]
        result = ours(latents, torch.tensor([37.0]), DiTInputs(context=context, image_context=states))
    assert torch.allclose(result, expected, atol=2e-5)


@pytest.mark.parametrize(("preset", "file"), [("t2v-A14B", "Wan2.1_VAE.pth"), ("ti2v-5B", "Wan2.2_VAE.pth")])
def test_diffusers_computes_the_same_with_our_vae(
    preset: str, file: str, official: Callable[[str], Path], diffusers_folder: Callable[[str], Path]
) -> None:
    from diffusers import AutoencoderKLWan

    peer = AutoencoderKLWan.from_pretrained(diffusers_folder(preset) / "vae", low_cpu_mem_usage=False).eval()
    native = native_weights(read_weights(official(preset) / file), "vae")
    config = infer_vae_config(native)
    ours = load_model(config, native, family="vae")
    torch.manual_seed(0)
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    mean, std = (torch.tensor(getattr(config, name)).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    assert list(config.latents_mean) == peer.config.latents_mean
    assert list(config.latents_std) == peer.config.latents_std
    with torch.no_grad():
        latents = peer.encode(video).latent_dist.mode()
        assert torch.allclose(ours.encode(video) * std + mean, latents, atol=5e-5)
        assert torch.allclose(ours.decode((latents - mean) / std), peer.decode(latents).sample, atol=5e-5)


def test_transformers_computes_the_same_with_our_encoders(
    official: Callable[[str], Path], diffusers_folder: Callable[[str], Path]
) -> None:
    from transformers import AutoTokenizer, CLIPVisionModel, UMT5EncoderModel

    folder, source = diffusers_folder("i2v-14B-480P"), official("i2v-14B-480P")
    peer, found = UMT5EncoderModel.from_pretrained(
        folder / "text_encoder", output_loading_info=True, dtype=torch.float32
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    native = native_weights(read_weights(next(source.glob("models_t5*"))), "umt5")
    ours = load_model(infer_umt5_config(native), native, family="umt5", dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder / "tokenizer")("a red circle", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(ours(ids), peer.eval()(ids).last_hidden_state, atol=2e-5)
        tower, found = CLIPVisionModel.from_pretrained(folder / "image_encoder", output_loading_info=True)
        assert not found["missing_keys"]
        native = native_weights(read_weights(next(source.glob("models_clip*"))), "clip")
        clip = load_model(infer_clip_config(native), native, family="clip")
        pixels = torch.rand(1, 3, 224, 224)
        expected = tower.eval()(pixels, output_hidden_states=True).hidden_states[-2]
        assert torch.allclose(clip.hidden_states(pixels, clip.config.num_layers - 1), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_diffusers_runs_the_whole_pipeline(preset: str, diffusers_folder: Callable[[str], Path]) -> None:
    from diffusers import WanImageToVideoPipeline, WanPipeline

    kind = WanImageToVideoPipeline if preset.startswith("i2v") else WanPipeline
    pipeline = kind.from_pretrained(diffusers_folder(preset))
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.config.boundary_ratio == (0.875 if preset == "t2v-A14B" else None)
    assert pipeline.config.expand_timesteps == (preset == "ti2v-5B")
    if kind is WanPipeline:
        video = pipeline("a red circle", height=64, width=64, num_frames=5, num_inference_steps=2, output_type="np")
        assert video.frames.shape == (1, 5, 64, 64, 3)


# -- options -----------------------------------------------------------------------------------------------------------


def test_dtype_and_shard_size(official: Callable[[str], Path], tmp_path: Path) -> None:
    convert(official("t2v-1.3B"), tmp_path / "w", "--dtype", "bfloat16", "--shard-size", "100kB")
    index = json.loads((tmp_path / "w" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    for name in files:
        shard = load_file(tmp_path / "w" / name)
        assert sum(tensor.nbytes for tensor in shard.values()) <= 100_000 or len(shard) == 1
    found = weights_of(tmp_path / "w")
    assert found["dit"]["blocks.0.ffn.0.weight"].dtype == torch.bfloat16
    assert found["dit"]["head.head.weight"].dtype == torch.float32  # stays so in our networks, too
    assert found["umt5"]["norm.weight"].dtype == torch.bfloat16
    assert found["vae"]["conv1.weight"].dtype == torch.float32  # kept: a VAE runs in float32
    convert(official("t2v-1.3B") / "Wan2.1_VAE.pth", tmp_path / "vae.safetensors", "--dtype", "float16")
    assert read_weights(tmp_path / "vae.safetensors").info("conv1.weight").dtype == torch.float16


def test_one_network_becomes_a_file_or_a_folder(official: Callable[[str], Path], tmp_path: Path) -> None:
    source = official("t2v-1.3B")
    convert(source / "diffusion_pytorch_model.safetensors", tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b", "--to", "diffusers")
    assert sorted(contents_of(tmp_path / "b")) == ["config.json", "diffusion_pytorch_model.safetensors"]
    convert(tmp_path / "b", tmp_path / "c.safetensors", "--to", "official")
    assert_same(weights_of(tmp_path / "c.safetensors"), weights_of(source / "diffusion_pytorch_model.safetensors"))
    convert(source / "models_t5_umt5-xxl-enc-bf16.pth", tmp_path / "t5", "--to", "diffusers")
    assert sorted(contents_of(tmp_path / "t5")) == ["config.json", "model.safetensors"]
    convert(source / "Wan2.1_VAE.pth", tmp_path / "vae", "--to", "official")
    assert sorted(contents_of(tmp_path / "vae")) == ["Wan2.1_VAE.pth"]


def test_a_whole_model_in_one_file_is_taken_apart(official: Callable[[str], Path], tmp_path: Path) -> None:
    source = official("i2v-14B-480P")
    convert(source, tmp_path / "single", "--to", "single")
    prefixes = {
        "diffusion_models": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoders": "text_encoders.umt5xxl.transformer.",
        "clip_vision": "clip_vision.",
    }
    whole: dict[str, Tensor] = {}
    for folder, prefix in prefixes.items():
        stored = load_file(next((tmp_path / "single" / folder).iterdir()))
        whole |= {f"{prefix}{name}": tensor for name, tensor in stored.items()}
    stated = {"config": json.dumps({"num_heads": 4})}
    save_file(whole, tmp_path / "all.safetensors", stated)
    convert(tmp_path / "all.safetensors", tmp_path / "w", "--to", "official")
    found, expected = weights_of(tmp_path / "w"), weights_of(source)
    assert_same(
        {part: tensors for part, tensors in found.items() if part != "clip"},
        {part: tensors for part, tensors in expected.items() if part != "clip"},
    )
    assert set(found) == set(expected)
    result = CliRunner().invoke(wan, ["inspect", str(tmp_path / "all.safetensors"), "--json"])
    report = json.loads(result.output)
    assert [entry["family"] for entry in report["weights"]] == ["dit", "vae", "umt5", "clip"]
    assert report["bytes"] == (tmp_path / "all.safetensors").stat().st_size


def test_single_files_of_text_encoders_carry_the_tokenizer(official: Callable[[str], Path], tmp_path: Path) -> None:
    convert(official("t2v-1.3B"), tmp_path / "w", "--to", "single")
    stored = load_file(tmp_path / "w" / "text_encoders" / "umt5_xxl.safetensors")
    assert (
        bytes(stored["spiece_model"].tolist()) == (official("t2v-1.3B") / "google/umt5-xxl/spiece.model").read_bytes()
    )
    assert "shared.weight" in stored


def test_overwrite_replaces_the_whole_folder(official: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "old.txt").write_text("old")
    convert(official("t2v-1.3B"), tmp_path / "w", "--overwrite")
    assert not (tmp_path / "w" / "old.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w"]


MEASURED = """
import sys
from click.testing import CliRunner
from memory import peak_memory, reset_peak
from wan_core.cli.convert import convert
def run(name, out):
    arguments = [f"{sys.argv[1]}/{name}.safetensors", f"{sys.argv[1]}/{out}", *sys.argv[2:], "--quiet"]
    result = CliRunner().invoke(convert, arguments)
    assert result.exit_code == 0, result.output
run("small", "first")  # what libraries load at first use is not the converter's
before = reset_peak()
run("w", "out")
print(peak_memory() - before)
"""


@pytest.mark.parametrize(
    ("options", "megabytes"),
    [(["--dtype", "float32"], 60), pytest.param(["--to", "diffusers"], 40, marks=pytest.mark.slow)],
)
def test_converting_needs_no_more_memory_than_one_shard(tmp_path: Path, options: list[str], megabytes: int) -> None:
    for name, layers in (("w", 4), ("small", 1)):
        dim = 1024 if name == "w" else 128
        config = WanDiTConfig(dim=dim, num_heads=8, num_layers=layers, ffn_dim=4 * dim, text_dim=64, freq_dim=64)
        with torch.device("meta"):
            shapes = {key: tensor.shape for key, tensor in build(config).state_dict().items()}
        stored = {key: torch.zeros(shape, dtype=torch.bfloat16) for key, shape in shapes.items()}
        write_file(MemorySource(stored), tmp_path / f"{name}.safetensors")
    arguments = [sys.executable, "-c", MEASURED, str(tmp_path), "--shard-size", f"{megabytes}MB", *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    assert int(result.stdout) <= 1.2e6 * megabytes, result.stdout
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
