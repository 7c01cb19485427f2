"""Qwen2.5 and Qwen2.5-VL on this machine, of random weights, and how they read pictures."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.tiny_qwen import IDS, write_tiny_text_model, write_tiny_vision_model
from wan_core.errors import BackendError, CheckpointError, ConfigError, RequestError
from wan_core.llm import LocalChat, Message, chat_markup, picture_patches
from wan_core.llm.qwen import smart_size
from wan_core.media import resize_by_rows

RED = Image.new("RGB", (70, 100), "red")
HELLO = (Message("user", ("hello",)),)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_text_model(tmp_path_factory.mktemp("text") / "model")


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_vision_model(tmp_path_factory.mktemp("vision") / "model")


def test_a_seed_repeats_an_answer_and_leaves_other_draws_alone(text_model: Path) -> None:
    chat = LocalChat(text_model)
    state = torch.get_rng_state()
    answers = [chat.complete(HELLO, seed=seed).text for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    assert torch.equal(torch.get_rng_state(), state)
    assert chat.name == "model"
    assert not chat.sees


def test_a_picture_is_seen(vision_model: Path) -> None:
    chat = LocalChat(vision_model)
    blue = Image.new("RGB", RED.size, "blue")
    answers = [chat.complete([Message("user", ("hello", picture))]).text for picture in (RED, RED, blue)]
    assert answers[0] == answers[1] != answers[2]
    assert chat.complete(HELLO).text
    assert chat.sees


def test_pictures_need_a_model_that_sees(text_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot see pictures; take a Qwen2\.5-VL"):
        LocalChat(text_model).complete([Message("user", (RED,))])


def test_text_must_not_stand_for_pictures(vision_model: Path) -> None:
    with pytest.raises(ConfigError, match="must not hold"):
        LocalChat(vision_model).complete([Message("user", ("a <|image_pad|> here", RED))])


def test_an_answer_that_is_cut_off_is_none(text_model: Path) -> None:
    with pytest.raises(BackendError, match="cut off at 3 tokens"):
        LocalChat(text_model, max_tokens=3).complete(HELLO)


def test_the_template_of_the_model_is_used(text_model: Path, tmp_path: Path) -> None:
    folder = write_tiny_text_model(tmp_path / "own")
    before = LocalChat(folder).complete(HELLO).text
    (folder / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert LocalChat(folder).complete(HELLO).text != before


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder or repository of a language model"):
        LocalChat(tmp_path)


def _other_kind(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _without_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (_other_kind, ConfigError, "is a bert; a language model is one of qwen2, qwen2_5_vl"),
        (_cut, CheckpointError, "cannot be read"),
        (_without_a_weight, CheckpointError, r"lacks 1 weights .* model.layers.1.mlp.up_proj.weight"),
        (_pickled, CheckpointError, "cannot be read"),
    ],
)
def test_damaged_folders_are_refused(
    tmp_path: Path, damage: Callable[[Path], None], kind: type[Exception], message: str
) -> None:
    folder = write_tiny_text_model(tmp_path / "model")
    damage(folder)
    with pytest.raises(kind, match=message):
        LocalChat(folder)


def test_the_markup_is_that_of_the_released_template() -> None:
    text = chat_markup([Message("user", ("move", RED, RED))], [2, 1])
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nmove"
        "<|vision_start|><|image_pad|><|image_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat_markup([Message("system", ("S",)), *HELLO]).startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>u")


@pytest.mark.parametrize("size", [(70, 100), (33, 20), (501, 625), (900, 30)])
def test_pictures_become_the_patches_of_transformers(size: tuple[int, int]) -> None:
    noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.manual_seed(0), dtype=torch.uint8)
    given = Image.fromarray(noise.numpy())
    # Pillow's releases resize in different orders: the peer gets what it need not resize.
    picture = resize_by_rows(given, smart_size(*given.size, max_pixels=200_000))
    peer = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=200_000)(picture, return_tensors="pt")
    rows, grid = picture_patches(given, max_pixels=200_000)
    assert [list(grid)] == peer["image_grid_thw"].tolist()
    torch.testing.assert_close(rows, peer["pixel_values"], atol=2e-6, rtol=0)


def test_sides_are_multiples_within_the_area() -> None:
    assert smart_size(501, 625) == (504, 616)
    assert smart_size(42, 70) == (56, 56)  # half goes to the even count
    assert smart_size(20, 30) == (56, 84)
    assert smart_size(10_000, 5_000) == (5068, 2520)
    assert smart_size(10, 2000) == (28, 1988)


def test_a_picture_like_a_line_is_refused() -> None:
    with pytest.raises(RequestError, match="too narrow"):
        smart_size(1, 201)


def test_marks_are_single_tokens(vision_model: Path) -> None:
    chat = LocalChat(vision_model)
    assert chat._tokenizer("<|im_start|><|image_pad|>")["input_ids"] == [IDS["<|im_start|>"], IDS["<|image_pad|>"]]
