"""Models in several files, under the names that programs give them, and trainers' folders that must be put together."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import gguf
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

from tools.make_checkpoint import make_checkpoint
from wan_core.checkpoints import (
    CheckpointLayout,
    find_weights,
    inspect_weights,
    native_weights,
    networks_in,
    read_weights,
    write_json,
)
from wan_core.cli import wan
from wan_core.errors import CheckpointError
from wan_core.loading import load_pipeline
from wan_core.models import WanDiTConfig
from wan_core.presets import get_preset

from .gguf_files import write_gguf
from .networks import build

DIT = WanDiTConfig(dim=128, ffn_dim=48, num_heads=1, num_layers=3, text_dim=24, text_len=512, freq_dim=16)
Tensors = dict[str, Tensor]


@cache
def weights() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(t.shape, generator=generator) for name, t in build(DIT).state_dict().items()}


def pieces(count: int) -> list[Tensors]:
    names = list(weights())
    return [{name: weights()[name] for name in names[start::count]} for start in range(count)]


def assert_read(path: Path, expected: Mapping[str, Tensor]) -> None:
    source = native_weights(read_weights(path), "dit")
    assert set(source) == set(expected)
    assert all(torch.equal(source.read(name), tensor) for name, tensor in expected.items())


def sharded(folder: Path, pattern: str, count: int = 2) -> list[Path]:
    paths = [folder / pattern.format(number, count) for number in range(1, count + 1)]
    for path, part in zip(paths, pieces(count), strict=True):
        save_file(part, path) if path.suffix == ".safetensors" else torch.save(part, path)
    return paths


NAMES = [
    "diffusion_pytorch_model-{:05d}-of-{:05d}.safetensors",
    "diffusion_pytorch_model-{:05d}-of-{:05d}.fp16.safetensors",
    "diffusion_pytorch_model.fp16-{:05d}-of-{:05d}.safetensors",
    "pytorch_model-{:05d}-of-{:05d}.bin",
    "pytorch_model-{:05d}-of-{:05d}.bf16.bin",
    "wan2.2_t2v-{:05d}-of-{:05d}.pth",
    "model_{:05d}-of-{:05d}.safetensors",
    "wan.part-{:d}-of-{:d}.safetensors",
]


@pytest.mark.parametrize("pattern", NAMES)
def test_numbered_shards_are_one_model_whichever_is_named(tmp_path: Path, pattern: str) -> None:
    paths = sharded(tmp_path, pattern)
    for path in (tmp_path, *paths):
        assert_read(path, weights())
        (found,) = find_weights(path).of("dit")
        assert found.files == tuple(paths)


@pytest.mark.parametrize("pattern", NAMES[:3])
@pytest.mark.parametrize(
    "index",
    [
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.fp16.safetensors.index.json",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
    ],
)
def test_an_index_may_have_a_variant_in_its_name(tmp_path: Path, pattern: str, index: str) -> None:
    paths = sharded(tmp_path, pattern)
    weight_map = {name: path.name for path, part in zip(paths, pieces(2), strict=True) for name in part}
    write_json(tmp_path / index, {"metadata": {}, "weight_map": weight_map})
    for path in (tmp_path, tmp_path / index):
        assert_read(path, weights())
    assert len(find_weights(tmp_path).weights) == 1


def test_weights_without_a_variant_are_taken_where_both_are_there(tmp_path: Path) -> None:
    for folder, with_index in ((tmp_path / "index", True), (tmp_path / "numbers", False)):
        folder.mkdir()
        for variant, factor in ((".fp16", 0.0), ("", 1.0)):
            weight_map: dict[str, str] = {}
            for number, part in enumerate(pieces(2), start=1):
                name = f"diffusion_pytorch_model-0000{number}-of-00002{variant}.safetensors"
                save_file({key: tensor * factor for key, tensor in part.items()}, folder / name)
                weight_map |= dict.fromkeys(part, name)
            if with_index:
                write_json(
                    folder / f"diffusion_pytorch_model.safetensors.index{variant}.json", {"weight_map": weight_map}
                )
        assert_read(folder, weights())
    (tmp_path / "one").mkdir()
    save_file(weights(), tmp_path / "one" / "model.safetensors")
    save_file({name: tensor * 0 for name, tensor in weights().items()}, tmp_path / "one" / "model.fp16.safetensors")
    assert_read(tmp_path / "one", weights())


PLAIN, SHARD = "diffusion_pytorch_model", "diffusion_pytorch_model-0000{}-of-00002"
VARIANTS = {  # the names without a variant and with one, as diffusers has written them
    "single": ([f"{PLAIN}.safetensors"], [f"{PLAIN}.bf16.safetensors"], ""),
    "bin": ([f"{PLAIN}.bin"], [f"{PLAIN}.non_ema.bin"], ""),
    "sharded": ([f"{SHARD}.safetensors"] * 2, [f"{SHARD}.bf16.safetensors"] * 2, ".safetensors.index.bf16.json"),
    "sharded, older": (
        [f"{SHARD}.safetensors"] * 2, [f"{PLAIN}.fp16-0000{{}}-of-00002.safetensors"] * 2,
        ".safetensors.index.fp16.json",
    ),
    "sharded without": ([f"{SHARD}.safetensors"] * 2, [f"{PLAIN}.bf16.safetensors"], ""),
    "sharded with": ([f"{PLAIN}.safetensors"], [f"{SHARD}.bf16.safetensors"] * 2, ".safetensors.index.bf16.json"),
    "any stem": (["wan.safetensors"], ["wan.fp16.safetensors"], ""),
}  # fmt: skip


def save_variants(folder: Path, kind: str, tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plain, variant, index = VARIANTS[kind]
    for names, factor, end in ((plain, 1.0, ".safetensors.index.json"), (variant, 0.0, index)):
        weight_map: dict[str, str] = {}
        for number, name in enumerate(names):
            part = {key: tensors[key] * factor for key in list(tensors)[number :: len(names)]}
            path = folder / name.format(number + 1)
            save_file(part, path) if path.suffix == ".safetensors" else torch.save(part, path)
            weight_map |= dict.fromkeys(part, path.name)
        if len(names) > 1:
            write_json(folder / f"{PLAIN}{end}", {"weight_map": weight_map})


@pytest.mark.parametrize("kind", VARIANTS)
def test_all_take_the_weights_without_a_variant_and_say_so(tmp_path: Path, kind: str) -> None:
    save_variants(tmp_path / "w", kind, weights())
    assert_read(tmp_path / "w", weights())
    (found,) = find_weights(tmp_path / "w").of("dit")
    (note,) = inspect_weights(found).notes
    assert "those without are taken" in note
    _, (variant, *_), _ = VARIANTS[kind]
    if "-of-" not in variant:  # which may be named, and is read without a word
        (given,) = find_weights(tmp_path / "w" / variant).of("dit")
        assert inspect_weights(given).notes == ()
        assert not given.source.read("head.head.bias").any()
    (network,) = networks_in(find_weights(tmp_path / "w"))
    assert network.notes == (note,)
    assert all(torch.equal(network.native.read(name), tensor) for name, tensor in weights().items())
    assert native_weights(read_weights(tmp_path / "w"), "dit").notes[0].endswith(note.partition(": of")[2])


@pytest.mark.parametrize("folder", ["transformer", "", "diffusion_models"])
@pytest.mark.parametrize("kind", VARIANTS)
def test_a_run_takes_the_weights_without_a_variant_and_says_so(tmp_path: Path, kind: str, folder: str) -> None:
    whole = make_checkpoint("t2v-1.3B", tmp_path / "w")
    source = read_weights(whole / "diffusion_pytorch_model.safetensors")
    stored = {name: source.read(name).clone() for name in source}
    config = (whole / "config.json").read_bytes()
    for path in [*whole.glob("diffusion_pytorch_model*"), whole / "config.json"]:
        path.unlink()
    save_variants(whole / folder, kind, stored)
    (whole / folder / "config.json").write_bytes(config)
    pipeline = load_pipeline("t2v-1.3B", whole)
    assert ["those without are taken" in note for note in pipeline.notes] == [True]
    with pipeline.components.dit.active() as network:
        assert torch.equal(network.state_dict()["head.head.bias"].float(), stored["head.head.bias"].float())
    assert [found.family for found in find_weights(whole).weights].count("dit") == 1


def test_what_accelerate_and_transformers_save_beside_weights_is_passed_over(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors")
    for name in ("optimizer.bin", "optimizer_1.bin", "scheduler.bin", "scaler.pt", "sampler.bin", "training_args.bin",
                 "rng_state_0.pth", "random_states_0.pkl", "scheduler.pt"):  # fmt: skip
        torch.save(
            {"state": {0: {"exp_avg": torch.ones(3)}}, "what": lambda: 0} if "args" not in name else [1],
            tmp_path / name,
        ) if False else (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    contents = find_weights(tmp_path)
    assert [found.family for found in contents.weights] == ["dit"]
    assert not contents.unreadable
    assert len(networks_in(contents)) == 1
    assert_read(tmp_path, weights())
    (tmp_path / "model.safetensors").rename(tmp_path / "any.safetensors")
    assert_read(tmp_path, weights())


def test_two_sets_of_shards_in_one_folder_are_two_models(tmp_path: Path) -> None:
    high = sharded(tmp_path, "wan_high-{:05d}-of-{:05d}.safetensors")
    low = sharded(tmp_path, "wan_low-{:05d}-of-{:05d}.safetensors", 3)
    assert [found.files for found in find_weights(tmp_path).of("dit")] == [tuple(high), tuple(low)]
    assert {network.expert for network in networks_in(find_weights(tmp_path))} == {"high", "low"}
    assert_read(low[1], weights())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    paths = sharded(tmp_path, NAMES[1], 3)
    paths[1].unlink()
    for path in (tmp_path, paths[0]):
        with pytest.raises(CheckpointError, match="lacks shards 2 of 3"):
            read_weights(path)


@pytest.mark.parametrize("pattern", [*NAMES[:4], "wan2.1-{:05d}-of-{:05d}.fp16.safetensors"])
@pytest.mark.parametrize("left", [0, 1])
def test_one_shard_alone_lacks_the_others(tmp_path: Path, pattern: str, left: int) -> None:
    paths = sharded(tmp_path, pattern)
    paths[1 - left].unlink()
    words = f"lacks shards {2 - left} of 2"
    for path in (tmp_path, paths[left]):
        with pytest.raises(CheckpointError, match=words):
            read_weights(path)
    with pytest.raises(CheckpointError, match=words):
        networks_in(find_weights(tmp_path))
    whole = make_checkpoint("t2v-1.3B", tmp_path / "w")
    (whole / "diffusion_pytorch_model.safetensors").unlink()
    paths[left].rename(whole / paths[left].name)
    with pytest.raises(CheckpointError, match=words):
        load_pipeline("t2v-1.3B", whole)


@pytest.mark.parametrize("empty_first", [False, True])
def test_split_gguf_files(tmp_path: Path, empty_first: bool) -> None:
    parts = [{}, *pieces(2)] if empty_first else pieces(3)
    for number, part in enumerate(parts):
        path = tmp_path / f"wan-Q8_0-{number + 1:05d}-of-00003.gguf"
        writer = gguf.GGUFWriter(path, "wan")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 3)
        for name, tensor in part.items():
            array = tensor.numpy()
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(array.shape))
            writer.add_tensor(name, array.reshape(array.shape[0], -1) if array.ndim > 4 else array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    for path in (tmp_path, *tmp_path.iterdir()):
        assert_read(path, weights())
    (tmp_path / "wan-Q8_0-00002-of-00003.gguf").unlink()
    with pytest.raises(CheckpointError, match="lacks shards 2 of 3"):
        read_weights(tmp_path / "wan-Q8_0-00001-of-00003.gguf")


def test_a_gguf_file_without_tensors_alone_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "w.gguf", {}, "F16")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_weights(tmp_path / "w.gguf")


@pytest.mark.parametrize(
    "pattern", ["wan_{}-{{:05d}}-of-{{:05d}}.safetensors", "{}-{{:05d}}-of-{{:05d}}.fp16.safetensors"]
)
def test_the_loader_takes_numbered_shards_as_single_files(tmp_path: Path, pattern: str) -> None:
    folder = make_checkpoint("t2v-A14B", tmp_path / "w")
    (folder / "diffusion_models").mkdir()
    for expert in ("high", "low"):
        source = read_weights(folder / f"{expert}_noise_model")
        names = list(source)
        for number in (1, 2):
            path = folder / "diffusion_models" / pattern.format(expert).format(number, 2)
            save_file({name: source.read(name).clone() for name in names[number - 1 :: 2]}, path)
        config = (folder / f"{expert}_noise_model" / "config.json").read_bytes()
        (folder / "diffusion_models" / "config.json").write_bytes(config)
    for path in folder.rglob("*_noise_model/*"):
        path.unlink()
    places = {part.expert: CheckpointLayout(folder).find(part).name for part in get_preset("t2v-A14B").dits}
    assert places == {expert: pattern.format(expert).format(1, 2) for expert in ("high", "low")}
    load_pipeline("t2v-A14B", folder)


def test_the_loader_takes_both_experts_of_one_file(tmp_path: Path) -> None:
    folder = make_checkpoint("t2v-A14B", tmp_path / "w")
    stored: Tensors = {}
    for name, expert in (("transformer", "high"), ("transformer_2", "low")):
        source = read_weights(folder / f"{expert}_noise_model")
        stored |= {f"{name}.{key}": source.read(key).clone() for key in source}
        (folder / "config.json").write_bytes((folder / f"{expert}_noise_model" / "config.json").read_bytes())
    for path in folder.rglob("*_noise_model/*"):
        path.unlink()
    save_file(stored, folder / "both.safetensors")
    experts = load_pipeline("t2v-A14B", folder).components.dit
    for name, placed in (("transformer", experts.high), ("transformer_2", experts.low)):
        with placed.active() as network:
            assert torch.equal(network.state_dict()["head.head.bias"].float(), stored[f"{name}.head.head.bias"].float())


# -- trainers' folders ------------------------------------------------------------------------------------------------

FOLDERS = {
    "dcp": ([".metadata", "__0_0.distcp", "__1_0.distcp"], "format_utils dcp_to_torch"),
    "dcp without metadata": (["__0_0.distcp"], "format_utils dcp_to_torch"),
    "zero": (["zero_to_fp32.py", "latest", "global_step100/mp_rank_00_model_states.pt"], "zero_to_fp32.py"),
    "zero, twice": (
        ["zero_to_fp32.py", *(f"global_step{i}/zero_pp_rank_0_mp_rank_00_optim_states.pt" for i in range(2))],
        "zero_to_fp32.py"),
    "zero, inside": (
        ["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"], "zero_to_fp32.py"),
    "zero 3": (["zero_pp_rank_0_mp_rank_00_model_states.pt"], "zero_to_fp32.py"),
    "megatron, cut up": ([f"mp_rank_0{rank}/model_optim_rng.pt" for rank in range(2)], "tensor parallelism"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_pieces_of_a_trainer_are_refused_with_the_command(tmp_path: Path, kind: str) -> None:
    files, command = FOLDERS[kind]
    for name in files:
        (tmp_path / "w" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "w" / name).write_bytes(b"PK\3\4" * 20)
    with pytest.raises(CheckpointError, match=command):
        read_weights(tmp_path / "w")
    with pytest.raises(CheckpointError, match=command):
        load_pipeline("t2v-1.3B", tmp_path / "w")
    for arguments in (["inspect", str(tmp_path / "w")], ["convert", str(tmp_path / "w"), str(tmp_path / "out")]):
        result = CliRunner().invoke(wan, arguments)
        assert result.exit_code == 3
        assert result.output.count(command) == 1


def test_a_piece_itself_names_the_command_too(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").write_bytes(b"PK\3\4" * 20)
    with pytest.raises(CheckpointError, match=f"dcp_to_torch {tmp_path} OUT.pt"):
        read_weights(tmp_path / "__0_0.distcp")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_command_of_torch_puts_a_checkpoint_together(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp.save({"app": {"model": weights(), "step": 3}}, checkpoint_id=tmp_path / "dcp")
    with pytest.raises(CheckpointError, match="dcp_to_torch"):
        read_weights(tmp_path / "dcp")
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "out.pt")
    assert_read(tmp_path / "out.pt", weights())


def test_whole_weights_in_the_folder_of_pieces_are_read(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors")
    (tmp_path / "zero_to_fp32.py").write_text("")
    (tmp_path / "global_step5").mkdir()
    assert_read(tmp_path, weights())


def test_the_weights_of_a_trainer_beside_its_pieces_are_found(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors")
    (tmp_path / "global_step5").mkdir()
    (tmp_path / "global_step5" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"PK\3\4" * 20)
    contents = find_weights(tmp_path)
    assert [found.family for found in contents.weights] == ["dit"]
    assert [name for name, _ in contents.unreadable] == ["global_step5"]
