"""Three hundred and more seeded damaged files, every reader: one of our errors or a result, never anything else."""

import json
import random
import signal
import tarfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file

from wan_core.checkpoints import read_weights
from wan_core.checkpoints.lora.merge import read_lora
from wan_core.errors import WanError
from wan_core.hub import verify_folder, write_manifest
from wan_core.media import Provenance, load_audio, load_image, read_provenance, read_video, write_video
from wan_core.models import load_tokenizer
from wan_core.training import Cache, CheckpointFolder, data_folders, find_examples, read_config, write_cache

from .gguf_files import write_gguf
from .media_clips import smooth_clip
from .test_tokenizer import write_json
from .test_training_loop import run as train_a_little

SEEDS = 12
_SECONDS = 20
ODD_VALUES: tuple[Any, ...] = (
    None, [], {}, True, -1, 0, 1e308, 10**30, "", "x" * 200_000, "\x00", "../../x", "/dev/zero", "\ud800",
    [[[[[]]]]], {"a": {"b": {}}}, float("inf"), "high=", ["x"] * 1000,
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of file: ``make`` writes a good one and gives its path, ``read`` reads it as the product does."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "a.mp4").write_bytes(b"")
        (folder / name).write_text(text)
        return folder / name

    return make


def _image(name: str, **options: Any) -> Kind:
    def make(folder: Path) -> Path:
        noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name, **options)
        return folder / name

    return Kind(make, load_image)


def _video(name: str) -> Kind:
    def make(folder: Path) -> Path:
        return write_video([smooth_clip(6)], folder / name, fps=8, provenance=Provenance.of(preset="a", settings={}))

    def read(path: Path) -> None:
        for use in (read_provenance, read_video):
            with ours():
                use(path)

    return Kind(make, read)


def _shard(folder: Path) -> Path:
    for name, data in {"0.mp4": b"video", "0.txt": b"a caption", "1.png": b"image", "1.json": b'{"text": "b"}'}.items():
        (folder / name).write_bytes(data)
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for path in sorted(folder.glob("[01].*")):
            archive.add(path, path.name)
            path.unlink()
    return folder / "shard.tar"


def _tensors() -> dict[str, torch.Tensor]:
    layer = "diffusion_model.blocks.0.self_attn.q"
    return {f"{layer}.lora_A.weight": torch.ones(2, 8), f"{layer}.lora_B.weight": torch.ones(8, 2)}


def _safetensors(folder: Path) -> Path:
    save_file(_tensors(), folder / "a.safetensors", metadata={"training": "{}"})
    return folder / "a.safetensors"


def _pickle(folder: Path) -> Path:
    torch.save({"state_dict": _tensors(), "step": 3}, folder / "a.pt")
    return folder / "a.pt"


def _adapter(folder: Path) -> Path:
    save_file({f"base_model.model.{n}": t for n, t in _tensors().items()}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {".*q": 2}, "target_modules": ["q"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / "adapter_config.json"


def _index(folder: Path) -> Path:
    save_file(_tensors(), folder / "m-00001-of-00001.safetensors")
    names = dict.fromkeys(_tensors(), "m-00001-of-00001.safetensors")
    (folder / "m.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder / "m.safetensors.index.json"


def _state(folder: Path) -> Path:
    train_a_little(folder, 2)
    return CheckpointFolder(folder).path(2) / "state.json"


def _cache(folder: Path) -> Path:
    write_cache(folder, 2, lambda number: {"latents": torch.zeros(2)}, {"fps": 8})
    return folder / "cache.json"


def _manifest(folder: Path) -> Path:
    (folder / "a.bin").write_bytes(b"a")
    write_manifest(folder)
    return folder / "manifest.sha256"


def _sound(folder: Path) -> Path:
    soundfile.write(folder / "a.wav", np.zeros((800, 2)), 8000)
    return folder / "a.wav"


def _all_of(path: Path) -> None:
    source = read_weights(path)
    for name in source:
        with ours():
            source.read(name)
    with ours():
        read_lora(path)


KINDS = {
    "metadata.jsonl": Kind(
        _text("metadata.jsonl", '{"file": "a.mp4", "caption": "x", "start": 1, "end": 2.5}\n' * 3),
        lambda path: find_examples(path.parent),
    ),
    "metadata.csv": Kind(
        _text("metadata.csv", 'file,caption,start\na.mp4,"a, b",1\na.mp4,c,2\n'),
        lambda path: find_examples(path.parent),
    ),
    "metadata.json": Kind(
        _text("metadata.json", '[{"video": "a.mp4", "prompt": "x"}]'), lambda path: find_examples(path.parent)
    ),
    "datasets.toml": Kind(
        _text("datasets.toml", '[[datasets]]\npath = "a"\nrepeats = 2\nclips = "uniform:3"\n'),
        lambda path: data_folders([path]),
    ),
    "config.toml": Kind(
        _text("config.toml", 'steps = 4\nlr = 1e-3\ndata = ["a"]\n[lora]\nrank = 2\n'),
        lambda path: read_config(path, ["steps", "lr", "data"]),
    ),
    "shard.tar": Kind(_shard, lambda path: find_examples(path.parent)),
    "tokenizer.json": Kind(
        lambda folder: write_json(folder) / "tokenizer.json", lambda path: load_tokenizer(path)("a red ball", 8)
    ),
    "state.json": Kind(_state, lambda path: train_a_little(path.parents[1], 3)),
    "cache.json": Kind(_cache, lambda path: Cache(path.parent)[1]),
    "manifest": Kind(_manifest, lambda path: verify_folder(path.parent)),
    "safetensors": Kind(_safetensors, _all_of),
    "pickle": Kind(_pickle, _all_of),
    "gguf": Kind(
        lambda folder: (write_gguf(folder / "a.gguf", {"a.weight": torch.ones(32, 32)}, "Q8_0"), folder / "a.gguf")[1],
        _all_of,
    ),
    "adapter_config.json": Kind(_adapter, lambda path: read_lora(path.parent)),
    "index.json": Kind(_index, lambda path: _all_of(path.parent)),
    "png": _image("a.png"),
    "jpeg": _image("a.jpg"),
    "webp": _image("a.webp"),
    "tiff": _image("a.tif"),
    "avif": _image("a.avif"),
    "mp4": _video("a.mp4"),
    "gif": _video("a.gif"),
    "animated webp": _video("b.webp"),
    "wav": Kind(_sound, load_audio),
}


@contextmanager
def ours() -> Iterator[None]:
    """One of our errors is an answer: one sentence, of a length that can be read, safe for a terminal."""
    try:
        yield
    except WanError as error:
        text = str(error)
        assert 10 < len(text) < 3_000, text[:200]
        assert not {"\x1b", "\x00"} & set(text)


@contextmanager
def bounded(seconds: int) -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still reading after {seconds} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def damage(data: bytes, generator: random.Random) -> bytes:
    """Bytes changed, cut, doubled or, where they are JSON or TOML, a value exchanged for an odd one."""
    tree = _parsed(data)
    if tree is not None and generator.random() < 0.7:
        return _odd(tree, generator)
    content = bytearray(data)
    for _ in range(generator.choice((1, 3, 30))):
        place = generator.randrange(len(content)) if content else 0
        match generator.randrange(5):
            case 0:
                content[place : place + 1] = bytes([generator.randrange(256)])
            case 1:
                del content[place:]
            case 2:
                content[place:place] = content[: generator.randrange(1, 200)]
            case 3:
                content[place : place + 8] = b"\xff" * 8
            case _:
                content[place : place + 4] = b"\0" * 4
    return bytes(content)


def _parsed(data: bytes) -> Any:
    for parse in (json.loads, tomllib.loads):
        try:
            return parse(data.decode())
        except (ValueError, UnicodeDecodeError):
            continue
    return None


def _odd(tree: Any, generator: random.Random) -> bytes:
    places = list(_places(tree))
    holder, key = generator.choice(places) if places else ([tree], 0)
    match generator.randrange(4):
        case 0:
            del holder[key]
        case 1:
            return (json.dumps(tree)[: generator.randrange(200)] + "[" * 50_000).encode("utf-8", "surrogatepass")
        case _:
            holder[key] = generator.choice(ODD_VALUES)
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(inner):
        yield tree, key
        yield from _places(value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(SEEDS + 2))
def test_a_damaged_file_is_read_or_refused(kind: str, seed: int, tmp_path: Path) -> None:
    generator = random.Random(f"{kind} {seed}")
    path = KINDS[kind].make(tmp_path)
    path.write_bytes(damage(path.read_bytes(), generator))
    with bounded(_SECONDS), ours():
        KINDS[kind].read(path)
