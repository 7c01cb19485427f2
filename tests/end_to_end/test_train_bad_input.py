"""Bad requests to `wan train` and `wan cache`: one clear sentence, the right exit code, nothing read or left behind."""

import errno
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

import wan_core.loading
import wan_core.training
from wan_core.media import write_video
from wan_core.presets import get_preset
from wan_core.training import write_cache

Run = Callable[..., Result]
DATA = ["--data", "{tmp}/good"]
GOOD = [*DATA, "--output", "{tmp}/out"]

# name: (arguments after `wan train`, exit code, words that the message must have). {tmp} is the folder of `folder`.
CASES: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "no output": (DATA, 2, ("--output", "needed")),
    "no data": (["--output", "{tmp}/out"], 2, ("--data", "--cache")),
    "data and cache": ([*GOOD, "--cache", "{tmp}/good"], 2, ("--data", "--cache")),
    "missing folder": (["--data", "{tmp}/none", "--output", "{tmp}/out"], 2, ("none", "no folder")),
    "folder without examples": (["--data", "{tmp}/empty", "--output", "{tmp}/out"], 2, ("no examples",)),
    "video without caption": (["--data", "{tmp}/silent", "--output", "{tmp}/out"], 2, ("b.mp4", "no caption")),
    "caption without video": (["--data", "{tmp}/blind", "--output", "{tmp}/out"], 2, ("c.txt", "no video")),
    "empty caption": (["--data", "{tmp}/mute", "--output", "{tmp}/out"], 2, ("a.txt", "empty")),
    "video that is none": (["--data", "{tmp}/noise", "--output", "{tmp}/out"], 4, ("b.mp4",)),
    "video of no bytes": (["--data", "{tmp}/hollow", "--output", "{tmp}/out"], 4, ("b.mp4", "empty")),
    "video too short": ([*GOOD, "--num-frames", "81"], 4, ("a.mp4", "81 frames need 10.12 s")),
    "part too short": (["--data", "{tmp}/part", "--output", "{tmp}/out"], 4, ("a.mp4", "17 frames need 2.12 s")),
    "wrong column names": (["--data", "{tmp}/columns", "--output", "{tmp}/out"], 2, ("'clip'", "file, caption")),
    "file of metadata missing": (["--data", "{tmp}/gone", "--output", "{tmp}/out"], 2, ("line 2", "z.mp4")),
    "metadata that is no JSON": (["--data", "{tmp}/json", "--output", "{tmp}/out"], 2, ("line 1", "JSON")),
    "part that ends before it starts": (["--data", "{tmp}/turned", "--output", "{tmp}/out"], 2, ("below end",)),
    "shard with an unsafe name": (["--data", "{tmp}/tar-name", "--output", "{tmp}/out"], 2, ("../a.mp4", "unsafe")),
    "shard with a link": (["--data", "{tmp}/tar-link", "--output", "{tmp}/out"], 2, ("a.mp4", "link")),
    "shard with a strange file": (["--data", "{tmp}/tar-kind", "--output", "{tmp}/out"], 2, ("a.exe", ".mp4")),
    "shard without captions": (["--data", "{tmp}/tar-mute", "--output", "{tmp}/out"], 2, ("a.mp4", "no caption")),
    "shard that is no tar": (["--data", "{tmp}/tar-noise", "--output", "{tmp}/out"], 4, ("bad.tar",)),
    "no steps": ([*GOOD, "--steps", "0"], 2, ("steps", "at least 1", "0")),
    "negative rate": ([*GOOD, "--lr", "-0.1"], 2, ("lr", "-0.1", "1e-4")),
    "no batch": ([*GOOD, "--batch-size", "0"], 2, ("batch-size", "0")),
    "no accumulation": ([*GOOD, "--accumulation", "0"], 2, ("accumulation", "0")),
    "negative clipping": ([*GOOD, "--clip", "-1"], 2, ("clip_norm", "-1")),
    "negative warm-up": ([*GOOD, "--warmup", "-1"], 2, ("warmup", "-1")),
    "unknown schedule": ([*GOOD, "--schedule", "sawtooth"], 2, ("sawtooth", "cosine")),
    "unknown optimizer": ([*GOOD, "--optimizer", "sgd"], 2, ("sgd", "adamw")),
    "saved never": ([*GOOD, "--save-every", "0"], 2, ("save_steps", "0")),
    "nothing kept": ([*GOOD, "--keep", "0"], 2, ("kept", "0")),
    "averages beyond one": ([*GOOD, "--ema", "1.5"], 2, ("ema", "1.5")),
    "more than all captions dropped": ([*GOOD, "--caption-dropout", "2"], 2, ("caption-dropout", "2")),
    "patterns that match nothing": (
        [*GOOD, "--lora-rank", "4", "--lora-targets", "attn.*"], 2, ("attn.*", "blocks.*.ffn.0", "head.head")
    ),
    "no rank": ([*GOOD, "--lora-rank", "0"], 2, ("rank", "0")),
    "alpha without rank": ([*GOOD, "--lora-alpha", "8"], 2, ("--lora-rank",)),
    "expert of one network": ([*GOOD, "--expert", "high"], 2, ("tiny-ti2v", "one network")),
    "no such expert": ([*GOOD, "--model", "tiny-moe", "--expert", "middle"], 2, ("expert", "middle", "high")),
    "clean frames of a text model": ([*GOOD, "--model", "tiny-t2v", "--clean-frames", "1"], 2, ("clean-frames", "t2v")),
    "half precision": ([*GOOD, "--dtype", "float16"], 2, ("float16", "bfloat16")),
    "unknown dtype": ([*GOOD, "--dtype", "int3"], 2, ("int3",)),
    "absent device": ([*GOOD, "--device", "mps"], 5, ("mps", "cpu")),
    "unknown model": ([*GOOD, "--model", "t2v-15B"], 2, ("t2v-15B", "t2v-A14B")),
    "real model without folder": ([*GOOD, "--model", "ti2v-5B", "--num-frames", "17", "--fps", "8", "--size", "64*64"],
                                  2, ("--ckpt-dir",)),
    "missing weights": ([*GOOD, "--ckpt-dir", "{tmp}/none"], 3, ("none",)),
    "weights of another model": ([*GOOD, "--model", "tiny-i2v", "--ckpt-dir", "{tmp}/other"], 3,
                                 ("another model", "tiny-i2v")),
    "frames not 4n+1": ([*GOOD, "--num-frames", "16"], 2, ("num_frames", "16", "13", "17")),
    "clips without area": ([*GOOD, "--size", "4*4"], 2, ("area",)),
    "everything held out": ([*GOOD, "--held-out", "2"], 2, ("held-out", "2 of 2")),
    "empty validation prompt": ([*GOOD, "--validation-prompt", " "], 2, ("prompt is empty",)),
    "validation without its picture": ([*GOOD, "--model", "tiny-i2v", "--validation-prompt", "a"], 2,
                                       ("--validation-image",)),
    "missing validation picture": ([*GOOD, "--validation-prompt", "a", "--validation-image", "{tmp}/no.png"], 2,
                                   ("no.png",)),
    "output below a file": ([*DATA, "--output", "{tmp}/bad.toml/out"], 4, ("bad.toml", "no folder")),
    "missing config": ([*GOOD, "--config", "{tmp}/none.toml"], 2, ("none.toml",)),
    "config that is no TOML": ([*GOOD, "--config", "{tmp}/bad.toml"], 2, ("bad.toml", "TOML")),
    "config with an unknown name": ([*GOOD, "--config", "{tmp}/key.toml"], 2, ("lora_rang", "did you mean lora_rank")),
    "config with a table": ([*GOOD, "--config", "{tmp}/table.toml"], 2, ("optimizer", "table")),
    "config with a word for a number": ([*GOOD, "--config", "{tmp}/word.toml"], 2, ("--steps", "many")),
    "config with half a step": ([*GOOD, "--config", "{tmp}/half.toml"], 2, ("--steps", "2.5")),
    "config with a number without end": ([*GOOD, "--config", "{tmp}/long.toml"], 2, ("long.toml", "no TOML")),
    "config with a list for one value": ([*GOOD, "--config", "{tmp}/list.toml"], 2, ("steps", "one value")),
    "cache that is none": (["--cache", "{tmp}/good", "--output", "{tmp}/out"], 2, ("no cache", "wan cache")),
    "cache with a damaged index": (["--cache", "{tmp}/cache-index", "--output", "{tmp}/out"], 3, ("cache.json",)),
    "cache with a cut shard": (["--cache", "{tmp}/cache-cut", "--output", "{tmp}/out"], 3,
                               ("shard-00000.safetensors", "damaged")),
    "unfinished cache": (["--cache", "{tmp}/cache-part", "--output", "{tmp}/out"], 2, ("0 of 1", "wan cache")),
    "cache of another model": (["--cache", "{tmp}/cache", "--model", "tiny-i2v", "--output", "{tmp}/out"], 2,
                               ("conditions was 'ti2v', is 'i2v'", "name another folder")),
    "resumed with other settings": ([*DATA, "--output", "{tmp}/begun", "--lr", "0.01"], 2,
                                    ("rate was 0.0001, is 0.01", "another output")),
    "resumed as a LoRA": ([*DATA, "--output", "{tmp}/begun", "--lora-rank", "4"], 2, ("lora_rank was None, is 4",)),
    "damaged checkpoint": ([*DATA, "--output", "{tmp}/cut"], 3, ("step-00000007", "damaged")),
    "output that is a file": ([*DATA, "--output", "{tmp}/bad.toml"], 4, ("bad.toml", "it is a file", "folder")),
    "part that is a whole model": ([*GOOD, "--model", "tiny-t2v", "--part", "dit={tmp}/whole"],
        3, ("whole model", "--part dit=", "whole/t2v")),
    "vae that is a whole model": ([*GOOD, "--model", "tiny-t2v", "--part", "vae={tmp}/whole"],
        3, ("--part vae=", "whole/vae.safetensors")),
    "part of poze that is nowhere": ([*GOOD, "--model", "tiny-poze", "--num-frames", "5", "--part", "pi3=none-there"],
        3, ("no file or folder none-there", "OWNER/NAME")),
    "validation of several images without any": ([*GOOD, "--model", "tiny-mi2v", "--validation-prompt", "a"],
        2, ("--validation-image",)),
    "nothing left to train on": (["--data", "{tmp}/broken", "--output", "{tmp}/out", "--skip-bad"],
        2, ("a.mp4 is a link to", "which is not there", "no caption b.txt is a link", "nothing else is there")),
    "output in the data": ([*DATA, "--output", "{tmp}/good/out"], 2, ("good/out", "data folder", "outside")),
    "output that is the data": ([*DATA, "--output", "{tmp}/good"], 2, ("data folder", "outside")),
    "seed of more bits": ([*GOOD, "--seed", "2147483648"], 2, ("seed", "2147483648", "2147483647")),
    "negative seed": ([*GOOD, "--seed", "-1"], 2, ("seed", "-1")),
    "fewer steps than reached": ([*DATA, "--output", "{tmp}/begun", "--steps", "6"], 2, ("step 7", "6 steps")),
    **{f"{name} {value}": ([*GOOD, "--lora-rank", "2", name, value], 2, (f"'{name}'", value, "finite"))
       for name in ("--shift", "--lora-alpha", "--lr", "--clip", "--fps", "--ema", "--weight-decay", "--clean-share",
                    "--caption-dropout", "--decay-share") for value in ("nan", "inf")},
    "shift of nothing": ([*GOOD, "--shift", "0"], 2, ("shift", "above 0")),
    "number in a config that is none": ([*GOOD, "--config", "{tmp}/nan.toml"], 2, ("--lr", "nan", "finite")),
    "config with a name of the code": ([*GOOD, "--config", "{tmp}/option.toml"], 2, ("'jso'", "did you mean json")),
    "config with a strange name": ([*GOOD, "--config", "{tmp}/strange.toml"], 2, ("known are", ", json,", ", part,")),
    "validation image without prompt": ([*GOOD, "--validation-image", "{tmp}/good/a.mp4"], 2, ("--validation-prompt",)),
    "validation image of a text model": ([*GOOD, "--model", "tiny-t2v", "--validation-prompt", "a",
                                          "--validation-image", "{tmp}/good/a.mp4"], 2, ("takes no image",)),
    "targets without rank": ([*GOOD, "--lora-targets", "blocks.*"], 2, ("lora-targets", "--lora-rank")),
    "replicas of one process": ([*GOOD, "--replicas", "2"], 2, ("--replicas 2", "torchrun")),
    "unknown option": ([*GOOD, "--frobnicate"], 2, ("--frobnicate",)),
}  # fmt: skip


def pack(archive: Path, members: dict[str, bytes], *, link: str | None = None) -> None:
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            file.addfile(info)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with one fault each; {tmp}/good has none."""
    root = tmp_path_factory.mktemp("training")
    video = root / "clip.mp4"
    write_video([torch.linspace(-1, 1, 17).view(1, 17, 1, 1).expand(3, 17, 64, 64)], video, fps=8)
    for name in ("good", "silent", "blind", "mute", "noise", "hollow", "part", "columns", "gone", "turned", "json"):
        folder = root / name
        folder.mkdir()
        for stem in ("a", "b"):
            shutil.copy(video, folder / f"{stem}.mp4")
            (folder / f"{stem}.txt").write_text(f"clip {stem}")
    (root / "empty").mkdir()
    (root / "broken").mkdir()
    (root / "broken/a.txt").write_text("a")
    (root / "broken/a.mp4").symlink_to("elsewhere.mp4")
    shutil.copy(video, root / "broken/b.mp4")
    (root / "broken/b.txt").symlink_to("elsewhere.txt")
    (root / "silent/b.txt").unlink()
    (root / "blind/c.txt").write_text("c")
    (root / "mute/a.txt").write_text(" \n")
    (root / "noise/b.mp4").write_bytes(b"no video at all")
    (root / "hollow/b.mp4").write_bytes(b"")
    metadata = {
        "part": [{"file": "a.mp4", "caption": "a", "start": 1.0}],
        "columns": [{"clip": "a.mp4", "caption": "a"}],
        "gone": [{"file": "a.mp4", "caption": "a"}, {"file": "z.mp4", "caption": "z"}],
        "turned": [{"file": "a.mp4", "caption": "a", "start": 2, "end": 1}],
    }
    for name, rows in metadata.items():
        (root / name / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "json/metadata.jsonl").write_text("file=a.mp4")
    clip = video.read_bytes()
    pack(root / "tar-name/bad.tar", {"../a.mp4": clip, "../a.txt": b"a"})
    pack(root / "tar-link/bad.tar", {"a.txt": b"a"}, link="a.mp4")
    pack(root / "tar-kind/bad.tar", {"a.mp4": clip, "a.txt": b"a", "a.exe": b"a"})
    pack(root / "tar-mute/bad.tar", {"a.mp4": clip})
    (root / "tar-noise").mkdir()
    (root / "tar-noise/bad.tar").write_bytes(b"no tar file" * 100)
    configs = {"bad": "steps = = 1", "key": "lora_rang = 4", "table": "[optimizer]\nlr = 1", "word": "steps = 'many'"}
    for name, text in {
        **configs,
        "half": "steps = 2.5",
        "long": "steps = " + "9" * 5000,
        "list": "steps = [1]",
        "nan": "lr = nan",
        "option": "jso = 1",
        "strange": "qqq = 1",
    }.items():
        (root / f"{name}.toml").write_text(text + "\n")
    spoil_weights(root)
    return root


def spoil_weights(root: Path) -> None:
    """A checkpoint folder in which the network of another model lies."""
    bundled = wan_core.loading.checkpoint_folder(get_preset("tiny-i2v"), None)
    shutil.copytree(bundled, root / "other")
    shutil.rmtree(root / "other/i2v")
    shutil.copytree(bundled / "t2v", root / "other/i2v")
    shutil.copytree(bundled, root / "whole")


@pytest.fixture(scope="session")
def folder(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of `pristine`, with caches and checkpoints, as the commands would have left them."""
    model = wan_core.training.examples.describe_conditions(wan_core.loading.load_pipeline("tiny-ti2v"))
    settings = {**model, "examples": "0", "num_frames": 17, "fps": 8.0}
    for name in ("cache", "cache-index", "cache-cut", "cache-part"):
        write_cache(pristine / name, 2, lambda number: {"latents": torch.zeros(24, 5, 8, 8)}, settings)
    (pristine / "cache-index/cache.json").write_text("{")
    shard = pristine / "cache-cut/shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    index = json.loads((pristine / "cache-part/cache.json").read_text())
    (pristine / "cache-part/cache.json").write_text(json.dumps({**index, "shards": {}}))
    plan = plan_of(["--data", str(pristine / "good"), "--output", str(pristine / "begun")])
    identity = wan_core.training.run_identity(plan.loop, plan.recipe(plan.parts[0]))
    for name, sizes in (("begun", {}), ("cut", {"model.safetensors": 100})):
        step = pristine / name / "checkpoints/step-00000007"
        step.mkdir(parents=True)
        state = {"step": 7, "settings": identity, "optimizers": [], "average_updates": 0, "sizes": sizes, "shapes": {}}
        (step / "state.json").write_text(json.dumps(state))
    (pristine / "cut/checkpoints/step-00000007/model.safetensors").write_bytes(b"cut off")
    return pristine


def plan_of(arguments: list[str]) -> wan_core.training.TrainingPlan:
    from wan_core.cli.train import plan_of, train

    with train.make_context("train", arguments) as context:
        return plan_of(context.params)


def refuse_weights(*args: object, **kwargs: object) -> None:
    raise AssertionError("weights were read before the request was checked")


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_clear_sentence(name: str, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, exit_code, words = CASES[name]
    monkeypatch.setattr(wan_core.loading, "load_model", refuse_weights)
    before = sorted(folder.rglob("*"))
    result = run("train", *(word.format(tmp=folder) for word in arguments))
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) <= 8
    for word in words:
        assert word in " ".join(result.output.split()), result.output
    assert sorted(folder.rglob("*")) == before


def test_an_unwritable_folder_is_named(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(**options: object) -> None:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    result = run("train", *(word.format(tmp=folder) for word in GOOD))
    assert result.exit_code == 4
    assert "permission denied" in result.output


def test_a_missing_package_is_named_with_its_extra(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def absent(name: str) -> None:
        raise ImportError(name)

    arguments = [word.format(tmp=folder) for word in GOOD]
    monkeypatch.setattr(importlib, "import_module", absent)
    from wan_core.training.optimizers import require_optimizer
    from wan_core.training.tensorboard import require_tensorboard

    for check in (lambda: require_optimizer("adamw8bit"), require_tensorboard):
        with pytest.raises(wan_core.errors.BackendError, match=r"install 'wan-core\[train\]'"):
            check()
    assert arguments


def test_an_example_that_cannot_be_read_leaves_the_finished_shards(run: Run, folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(folder / "good", tmp_path / "data")
    clip = (data / "b.mp4").read_bytes()
    (data / "b.mp4").write_bytes(clip[: len(clip) * 2 // 3])
    result = run("cache", data, tmp_path / "cache", "--shard-size", "1", "--quiet")
    assert result.exit_code == 4, result.output
    assert "b.mp4" in result.output


def test_a_cache_among_its_data_is_refused(run: Run, folder: Path) -> None:
    result = run("cache", folder / "good", folder / "good/cache", "--quiet")
    assert (result.exit_code, "name a folder outside of it" in result.stderr) == (2, True)


def test_a_cache_made_with_other_settings_is_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    first = run("cache", folder / "good", tmp_path / "cache", "--quiet")
    assert first.exit_code == 0, first.output
    again = run("cache", folder / "good", tmp_path / "cache", "--num-frames", "13", "--quiet")
    assert again.exit_code == 2
    assert "num_frames was 17, is 13" in again.output
    (tmp_path / "cache/shard-00000.safetensors").write_bytes(b"")
    repaired = run("cache", folder / "good", tmp_path / "cache", "--quiet")
    assert repaired.exit_code == 0, repaired.output


def test_names_from_a_strangers_folder_do_not_command_the_terminal(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a\x1b[31m\u202eb.mp4").write_bytes(b"no video")
    result = run("train", "--data", tmp_path / "data", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "has no caption" in result.output
    assert not {"\x1b", "\u202e"} & set(result.output)
