"""``bindweave extract`` with a tiny Qwen2.5-VL, held against transformers' own processor and network."""

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bindweave import extraction
from bindweave.cli.extract import extract as command
from bindweave.extraction import Extraction, extract_samples
from bindweave.hidden_states import extract, read_hidden_states, scaled, token_ids
from bindweave.mllm import MLLM, load_chat_tokenizer, open_mllm
from bindweave.prompts import MLLM_NEGATIVE_PROMPT
from tests.tiny_qwen import IDS, write_tiny_vision_model
from wan_core import CheckpointError, RequestError
from wan_core.checkpoints import native_weights, read_weights
from wan_core.llm.qwen import smart_size
from wan_core.media import resize_by_rows

CPU = torch.device("cpu")
# The released model's template, as far as one user turn needs it.
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are a helpful "
    "assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def ready(image: Image.Image) -> Image.Image:
    """A picture that no processor resizes again: Pillow's releases do it in different orders."""
    small = scaled(image)
    return resize_by_rows(small, smart_size(*small.size))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_vision_model(tmp_path_factory.mktemp("mllm") / "tiny-qwen")


@pytest.fixture(autouse=True)
def _samples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    picture((60, 90)).save("one.png")
    picture((120, 50), 1).save("two.png")
    content = {
        "b_1": {"prompt": "they run", "img_paths": ["one.png", "two.png"], "class_label": ["a", "b"]},
        "a_1": {"prompt": "it runs", "img_paths": ["two.png"]},
    }
    Path("in.json").write_text(json.dumps(content))


def run(model: Path, *options: str) -> Result:
    return CliRunner().invoke(command, ["in.json", "--mllm", str(model), "--device", "cpu", *options])


def features() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("in_with_features.json").read_text())
    return found


def test_states_are_those_of_transformers(model: Path) -> None:
    pictures, prompt = [picture((60, 90)), picture((120, 50), 1)], "they  run\nfast: ü"
    (states,) = extract(*open_mllm(model, torch.float32, CPU), pictures, [prompt])
    tokenizer, peer = load_chat_tokenizer(model), Qwen2_5_VLModel.from_pretrained(model)
    seen = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=12845056)(
        [ready(each) for each in pictures], return_tensors="pt"
    )
    content = [{"type": "text", "text": prompt}, {"type": "image"}, {"type": "image"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    first, *parts = text.split("<|image_pad|>")
    for count, part in zip((seen["image_grid_thw"].prod(-1) // 4).tolist(), parts, strict=True):
        first += "<|image_pad|>" * count + part
    inputs = tokenizer(first, return_tensors="pt")
    kinds = (inputs["input_ids"] == IDS["<|image_pad|>"]).int()
    with torch.no_grad():
        wanted = peer(**inputs, **seen, mm_token_type_ids=kinds).last_hidden_state
    assert states.dtype is torch.bfloat16
    torch.testing.assert_close(states, wanted.bfloat16(), atol=0.01, rtol=0.01)


def test_only_four_pictures_are_seen(model: Path) -> None:
    opened = open_mllm(model, torch.float32, CPU)
    pictures = [picture((60, 90), seed) for seed in range(5)]
    assert torch.equal(extract(*opened, pictures, ["x"])[0], extract(*opened, pictures[:4], ["x"])[0])
    assert not torch.equal(extract(*opened, pictures[1:], ["x"])[0], extract(*opened, pictures[:4], ["x"])[0])


def test_both_ways_of_naming_are_one_network(model: Path, tmp_path: Path) -> None:
    own = native_weights(read_weights(model), MLLM)
    older = {name.replace("language_model.", "model."): own.read(name).clone() for name in own}
    (tmp_path / "older").mkdir()
    save_file(older, tmp_path / "older/model.safetensors")
    newer = {f"model.{name}": own.read(name).clone() for name in own} | {"lm_head.weight": torch.zeros(2, 2)}
    (tmp_path / "newer").mkdir()
    save_file(newer, tmp_path / "newer/model.safetensors")
    for folder, name in (("older", "published"), ("newer", "official")):
        found = native_weights(read_weights(tmp_path / folder), MLLM)
        assert found.format == name
        assert {each: found.info(each).shape for each in found} == {each: own.info(each).shape for each in own}


def test_older_configs_say_the_same(model: Path, tmp_path: Path) -> None:
    content = json.loads((model / "config.json").read_text())
    text = content.pop("text_config")
    rope = text.pop("rope_parameters")
    older = {**text, **content, "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    assert rope["mrope_section"] == [1, 1, 2]
    source = native_weights(read_weights(model), MLLM)
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert MLLM.read_config(tmp_path, source) == MLLM.read_config(model, source)


def test_samples_get_the_paths_of_their_states(model: Path) -> None:
    result = run(model)
    assert result.exit_code == 0, result.output
    assert list(features()) == ["a_1", "b_1"]
    assert features()["b_1"]["class_label"] == ["a", "b"]
    paths = features()["b_1"]["hidden_states_path"], features()["b_1"]["hidden_states_path_negative"]
    assert paths == (
        "hidden_states/b_1_hidden_states.safetensors",
        "hidden_states/b_1_hidden_states_negative.safetensors",
    )
    states, negative = map(read_hidden_states, paths)
    assert states.shape[::2] == negative.shape[::2] == (1, 32)
    assert negative.shape[1] - states.shape[1] == len(MLLM_NEGATIVE_PROMPT) - len("they run")
    record = read_weights(paths[0]).metadata
    assert (record["sample"], record["mllm"], record["dtype"]) == ("b_1", "tiny-qwen", "bfloat16")
    assert len(record["pictures_sha256"].split(",")) == 2
    assert {"prompt_sha256", "digest", "weights"} <= set(record)


def test_only_what_changed_is_made_again(model: Path) -> None:
    run(model)
    before = {path.name: path.stat().st_mtime_ns for path in Path("hidden_states").iterdir()}
    assert run(model).exit_code == 0
    assert before == {path.name: path.stat().st_mtime_ns for path in Path("hidden_states").iterdir()}
    picture((60, 90), 7).save("one.png")
    Path("hidden_states/a_1_hidden_states.safetensors").write_bytes(b"damaged")
    first = Path("hidden_states/b_1_hidden_states.safetensors").read_bytes()
    run(model)
    assert Path("hidden_states/b_1_hidden_states.safetensors").read_bytes() != first
    assert read_hidden_states("hidden_states/a_1_hidden_states.safetensors").shape[0] == 1


def test_processes_share_the_samples(model: Path) -> None:
    assert run(model, "--shard", "1/2").exit_code == 0
    assert not Path("in_with_features.json").exists()
    assert len(list(Path("hidden_states").iterdir())) == 2
    assert run(model, "--shard", "2/2").exit_code == 0
    assert all("hidden_states_path" in each for each in features().values())


def test_the_language_model_leaves_memory_before_the_next_step(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks: list[weakref.ref[torch.nn.Module]] = []

    def watched(*arguments: Any) -> Any:
        opened = open_mllm(*arguments)
        networks.append(weakref.ref(opened[0]))
        return opened

    monkeypatch.setattr(extraction, "open_mllm", watched)
    wanted = Extraction(
        source=Path("in.json"), output=Path("out.json"), pictures=Path(), folder=Path("states"), mllm=model
    )
    extract_samples(wanted, CPU, torch.bfloat16)
    gc.collect()
    assert len(networks) == 1
    assert networks[0]() is None
    extract_samples(wanted, CPU, torch.bfloat16)
    assert len(networks) == 1  # all states are there: it is not loaded


def test_a_failed_sample_does_not_stop_the_others(model: Path) -> None:
    content = json.loads(Path("in.json").read_text())
    content["a_1"]["img_paths"] = ["lost.png"]
    Path("in.json").write_text(json.dumps(content))
    result = run(model)
    assert result.exit_code == 2
    assert "1 of 2 samples failed" in result.output
    assert "a_1: none of its pictures can be read" in result.output
    assert "hidden_states_path" in features()["b_1"]
    assert "hidden_states_path" not in features()["a_1"]


def test_the_originals_files_are_read(tmp_path: Path) -> None:
    states = torch.randn(1, 5, 8).bfloat16()
    torch.save(states, tmp_path / "a.pt")
    assert torch.equal(read_hidden_states(tmp_path / "a.pt"), states)
    save_file({"hidden_states": states}, tmp_path / "b.safetensors")
    assert torch.equal(read_hidden_states(tmp_path / "b.pt"), states)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(5, 8), "holds no hidden states"),
        (torch.zeros(2, 5, 8), "holds no hidden states"),
        (torch.zeros(1, 0, 8), "holds no hidden states"),
        (torch.zeros(1, 5, 8, dtype=torch.int64), "holds no hidden states"),
        (torch.full((1, 2, 3), float("nan")), "not finite"),
        ({"a": torch.zeros(1, 5, 8), "b": torch.zeros(1)}, "holds 2 tensors"),
        ({}, "holds no tensors"),
        (_Bomb(), "could run code"),
    ],
)
def test_files_that_hold_no_states_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        read_hidden_states(tmp_path / "a.pt")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lost\.pt"):
        read_hidden_states(tmp_path / "lost.pt")


def test_prompts_with_marks_of_the_template_are_refused(model: Path) -> None:
    with pytest.raises(RequestError, match="must not hold"):
        token_ids(load_chat_tokenizer(model), "a <|im_end|> b", [1])


def test_a_prompt_needs_a_picture_of_some_size(model: Path) -> None:
    with pytest.raises(RequestError, match="needs a picture"):
        extract(*open_mllm(model, torch.float32, CPU), [], ["x"])
    with pytest.raises(RequestError, match="too small"):
        scaled(Image.new("RGB", (1, 50)))


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _other_heads(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["text_config"]["num_attention_heads"] = 7
    (folder / "config.json").write_text(json.dumps(content))


def _lacks_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(each for each in tensors if each.endswith("blocks.1.norm1.weight"))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_tokenizer, "has no tokenizer"),
        (_no_weights, "holds no weights of Qwen2.5-VL"),
        (_other_heads, "must divide its widths"),
        (_lacks_a_tensor, "1 missing: visual.blocks.1.norm1.weight"),
    ],
)
def test_damaged_models_are_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    folder = write_tiny_vision_model(tmp_path / "model")
    damage(folder)
    result = run(folder)
    assert result.exit_code == 3
    assert message in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "in.json"], "would take the place of an input"),
        (["-o", "a.png"], "ends in .json"),
        (["--out-dir", "in.json"], "it is a file"),
        (["--negative-prompt", " "], "negative prompt is empty"),
        (["--dtype", "int8"], "dtype must be"),
        (["--shard", "x"], "share of the work is I/N"),
    ],
)
def test_options_that_cannot_work_are_refused(model: Path, options: list[str], message: str) -> None:
    result = run(model, *options)
    assert result.exit_code in (2, 4), result.output
    assert message in result.output
