"""``bindweave convert``: every layout there and back, nothing lost unsaid, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

from bindweave import BINDWEAVE
from bindweave.cli.convert import convert
from bindweave.presets import WEIGHTS
from wan_core.checkpoints import MemorySource, native_weights, read_weights, write_file
from wan_core.cli import wan

from .conftest import TINY

Run = Callable[..., Result]
INDEX = "diffusion_pytorch_model.safetensors.index.json"
LAYOUTS = {"plain": None, "pipeline": "[1,1]", "virtual": "[[1],[1]]"}


def to_mm(run: Run, files: Path, target: str, layers: str | None = None) -> Result:
    words = ["--source_path", files / "release", "--target_path", target, "--mode", "convert_to_mm"]
    return run(convert, *words, *(["--pp_vpp_layers", layers] if layers else []))


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for path in folder.glob("*.safetensors") for key, tensor in load_file(path).items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_is_the_release(run: Run, files: Path, layout: str) -> None:
    done = to_mm(run, files, "mm", LAYOUTS[layout])
    assert done.exit_code == 0, done.output
    assert "2 that no network uses left out" in done.output
    assert Path("mm/latest_checkpointed_iteration.txt").read_text() == "release"
    back = run(convert, "--source_path", "mm", "--target_path", "hf", "--mode", "convert_to_hf",
               "--ckpt_path", files / "release")  # fmt: skip
    assert back.exit_code == 0, back.output
    before, after = all_tensors(files / "release"), all_tensors(Path("hf"))
    assert {key for key in before if key not in after} == {f"blocks.{i}.attn2.norm_added_q.weight" for i in range(2)}
    assert all(torch.equal(after[key], before[key]) for key in after)
    # The shards are those of the release, and so are the files that its index names.
    assert {path.name for path in Path("hf").iterdir()} == {path.name for path in (files / "release").iterdir()}


def test_without_a_folder_to_follow_shards_are_our_own(run: Run, files: Path) -> None:
    to_mm(run, files, "mm", "[1,1]")
    done = run(convert, "--source_path", "mm", "--target_path", "hf", "--mode", "convert_to_hf")
    assert done.exit_code == 0, done.output
    assert set(read_weights("hf")) < set(read_weights(files / "release"))


def test_one_folder_for_both_gets_a_folder_below_it(run: Run, files: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(files / "release", "BindWeave_14B")
    words = ["--source_path", "./BindWeave_14B/", "--target_path", "./BindWeave_14B/", "--mode", "convert_to_mm"]
    done = run(convert, *words)
    assert done.exit_code == 0, done.output
    assert "the converted weights go into BindWeave_14B/mm" in done.stderr
    assert Path("BindWeave_14B/mm/release/mp_rank_00/model_optim_rng.pt").is_file()
    again = run(convert, *words)
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    assert set(read_weights("BindWeave_14B")) == set(read_weights(files / "release"))


def test_memory_holds_one_tensor_at_a_time(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wan_core.checkpoints.readers.file_source import FileSource

    held, most = set[str](), [0]
    read, release = FileSource.read, FileSource.release

    def reading(self: Any, name: str) -> torch.Tensor:
        held.add(name)
        most[0] = max(most[0], len(held))
        return read(self, name)

    def releasing(self: Any, name: str) -> None:
        held.discard(name)
        release(self, name)

    monkeypatch.setattr(FileSource, "read", reading)
    monkeypatch.setattr(FileSource, "release", releasing)
    assert to_mm(run, files, "mm", "[1,1]").exit_code == 0
    assert most == [1]
    assert not held


def test_a_trainings_save_is_read_and_inspected(run: Run, files: Path) -> None:
    to_mm(run, files, "mm")
    Path("mm/release").rename("mm/iter_0000500")
    Path("mm/latest_checkpointed_iteration.txt").write_text("500\n")
    assert len(read_weights("mm")) == len(read_weights(files / "release")) - 2
    told = run(wan, "inspect", "mm")
    assert told.exit_code == 0, told.output
    assert "BindWeave" in told.output


def broken(kind: str, files: Path) -> Path:
    """A copy of the release that lacks a tensor, has one too many, or one of another shape."""
    tensors, target = all_tensors(files / "release"), Path("broken")
    if kind == "missing":
        del tensors["blocks.1.ffn.net.2.bias"]
    elif kind == "unknown":
        tensors["blocks.1.attn3.to_q.weight"] = torch.zeros(2)
    else:
        tensors["proj_out.bias"] = torch.zeros(3)
    target.mkdir()
    save_file(tensors, target / "diffusion_pytorch_model.safetensors")
    return target


@pytest.mark.parametrize(
    ("kind", "words"),
    [("missing", "1 missing: blocks.1.ffn.2.bias"), ("unknown", "1 unexpected"), ("shape", "1 of another shape")],
)
def test_every_key_is_accounted_for(run: Run, files: Path, kind: str, words: str) -> None:
    done = run(convert, "--source_path", broken(kind, files), "--target_path", "mm")
    assert done.exit_code == 3, done.output
    assert words in done.stderr
    assert not Path("mm").exists()


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("[1,2]", "must add up to 2, got 3"),
        ("[[1,1],[1]]", "one number for each stage"),
        ("[0,2]", "a JSON list such as"),
        ("1,1", "a JSON list such as"),
        ("[true,1]", "a JSON list such as"),
    ],
)
def test_layers_that_are_not_the_networks_are_refused(run: Run, files: Path, layers: str, words: str) -> None:
    done = to_mm(run, files, "mm", layers)
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert not Path("mm").exists()


def test_a_target_with_files_stays_as_it_is(run: Run, files: Path) -> None:
    Path("mm").mkdir()
    Path("mm/note.txt").write_text("mine")
    done = to_mm(run, files, "mm")
    assert done.exit_code == 2
    assert "exists already" in done.stderr
    assert [path.name for path in Path("mm").iterdir()] == ["note.txt"]


def test_an_index_of_another_model_is_refused(run: Run, files: Path) -> None:
    Path("like").mkdir()
    index = json.loads((files / "release" / INDEX).read_text())
    words = [
        "--source_path",
        files / "release",
        "--target_path",
        "hf",
        "--mode",
        "convert_to_hf",
        "--ckpt_path",
        "like",
    ]
    for key, said in (("blocks.7.ffn.net.2.bias", "names blocks.7"), (None, "lacks")):
        weight_map = dict(index["weight_map"])
        if key is None:
            weight_map.pop("proj_out.bias")
        else:
            weight_map[key] = "diffusion_pytorch_model-00001-of-00003.safetensors"
        Path("like", INDEX).write_text(json.dumps({"weight_map": weight_map}))
        done = run(convert, *words)
        assert done.exit_code == 3, done.output
        assert said in done.stderr
    Path("like", INDEX).write_text(
        json.dumps({"weight_map": {**index["weight_map"], "proj_out.bias": "../x.safetensors"}})
    )
    done = run(convert, *words)
    assert done.exit_code == 3
    assert "no file beside it" in done.stderr
    assert not Path("hf").exists()


def test_stages_that_do_not_belong_together_are_refused(run: Run, files: Path) -> None:
    to_mm(run, files, "mm", "[1,1]")
    first, second = (Path(f"mm/release/mp_rank_00_00{stage}") for stage in range(2))
    alone = run(wan, "inspect", first)
    assert alone.exit_code == 3
    assert "one pipeline stage" in alone.stderr
    second.rename("elsewhere")
    done = run(convert, "--source_path", "mm", "--target_path", "hf", "--mode", "convert_to_hf")
    assert done.exit_code == 3
    assert "no tensor head.head.weight" in done.stderr
    Path("elsewhere").rename("mm/release/mp_rank_00_002")
    done = run(convert, "--source_path", "mm", "--target_path", "hf", "--mode", "convert_to_hf")
    assert done.exit_code == 3
    assert "stages [0, 2]" in done.stderr
    Path("mm/latest_checkpointed_iteration.txt").write_text("soon")
    assert "not release or the number" in run(wan, "inspect", "mm").stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mode", "convert_to_mm", "--ckpt_path", "x"], "belongs to --mode convert_to_hf"),
        (["--mode", "convert_to_hf", "--pp_vpp_layers", "[1,1]"], "belongs to --mode convert_to_mm"),
    ],
)
def test_options_of_the_other_direction_are_refused(run: Run, files: Path, words: list[str], said: str) -> None:
    done = run(convert, "--source_path", files / "release", "--target_path", "t", *words)
    assert done.exit_code == 2
    assert said in done.stderr


@pytest.mark.parametrize("mode", ["convert_to_mm", "convert_to_hf"])
def test_heads_that_only_the_source_tells_are_written_beside(run: Run, mode: str) -> None:
    network = BINDWEAVE.build(replace(TINY, num_heads=2))
    source = MemorySource(network.state_dict(), metadata={"config": json.dumps({"num_heads": 2})})
    write_file(source, Path("native/model.safetensors"))
    done = run(convert, "--source_path", "native", "--target_path", "out", "--mode", mode)
    assert done.exit_code == 0, done.output
    assert Path("out/config.json").is_file()
    assert BINDWEAVE.read_config(Path("out"), native_weights(read_weights("out"), BINDWEAVE)).num_heads == 2


def test_weights_in_fewer_bits_are_written_as_the_numbers_that_they_stand_for(run: Run) -> None:
    bundled = WEIGHTS / "dit"
    done = run(convert, "--source_path", bundled, "--target_path", "mm")
    assert done.exit_code == 0, done.output
    source, made = (native_weights(read_weights(place), BINDWEAVE) for place in (bundled, Path("mm")))
    assert set(made) == set(source)
    assert all(torch.equal(made.read(name), source.read(name)) for name in source)
