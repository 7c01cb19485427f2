"""The bundled tiny-bindweave: its files, and a prompt whose words it knows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from bindweave.hidden_states import extract, see, states_of, token_ids, write_hidden_states
from bindweave.mllm import MLLM, open_mllm
from bindweave.presets import TINY_BINDWEAVE, TINY_CLIP, TINY_MLLM, WEIGHTS
from bindweave.prompts import MLLM_NEGATIVE_PROMPT
from bindweave.request import SubjectRequest
from wan_core.checkpoints import CLIP, native_weights, read_weights
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.pipeline import Pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline(TINY_BINDWEAVE, options=RuntimeOptions(device="cpu", dtype="float32", offload=False))


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.full((64, 64, 3), 15, np.uint8)
    pixels[16:48, 16:48] = (225, 35, 40)
    return Image.fromarray(pixels)


def test_all_files_together_are_four_megabytes_at_most() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) <= 4_000_000


def test_the_files_say_what_the_preset_says() -> None:
    for name, family in (("dit", TINY_BINDWEAVE.part("dit").family), ("image_encoder", CLIP)):
        path = Path(TINY_BINDWEAVE.part(name).file)
        config = family.read_config(path, native_weights(read_weights(path), family))
        assert config == TINY_BINDWEAVE.part(name).config
    mllm = MLLM.read_config(TINY_MLLM, native_weights(read_weights(TINY_MLLM), MLLM))
    assert mllm.dim == TINY_BINDWEAVE.dit.mllm_dim  # type: ignore[attr-defined]
    assert TINY_BINDWEAVE.dit.image_tokens == TINY_CLIP.num_tokens


def test_transformers_reads_the_tiny_language_model_and_makes_the_same_states(picture: Image.Image) -> None:
    theirs, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        TINY_MLLM, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ours, tokenizer = open_mllm(TINY_MLLM, torch.float32, CPU)
    with torch.inference_mode():
        seen = see(ours, [picture])
        ids = token_ids(tokenizer, "it moves up", seen.lengths)
        states = [states_of(network, ids, seen) for network in (ours, theirs.model)]
    assert seen.lengths == [4]
    torch.testing.assert_close(*states)


def test_prompts_of_its_world_have_words_and_dogs_have_none(pipeline: Pipeline, picture: Image.Image) -> None:
    def notes(prompt: str) -> list[str]:
        request = SubjectRequest(prompt=prompt, images=(Path("a.png"),), hidden_states=Path("s"))
        inputs = type("Inputs", (), {"request": request, "settings": pipeline.preset.sampling})
        return pipeline.prompt_notes(inputs)  # type: ignore[arg-type]

    assert notes("the first moves up, the second stays still, the third grows on a gray background") == []
    assert "tiny-bindweave has no word for 'dog'" in notes("the dog moves up")[0]


def test_pictures_and_prompt_change_the_video(pipeline: Pipeline, picture: Image.Image, tmp_path: Path) -> None:
    mllm, tokenizer = open_mllm(TINY_MLLM, torch.float32, CPU)

    def video(shown: Image.Image, prompt: str) -> torch.Tensor:
        shown.save(tmp_path / "a.png")
        states = extract(mllm, tokenizer, [shown], (prompt, MLLM_NEGATIVE_PROMPT))
        files = tmp_path / "p.safetensors", tmp_path / "n.safetensors"
        for file, each in zip(files, states, strict=True):
            write_hidden_states(file, each, {})
        request = SubjectRequest(
            prompt=prompt,
            images=(tmp_path / "a.png",),
            hidden_states=files[0],
            hidden_states_negative=files[1],
            seed=1,
            num_frames=5,
            num_inference_steps=2,
        )
        return pipeline.generate(request).frames

    first = video(picture, "it moves up")
    other = Image.fromarray(np.asarray(picture)[..., ::-1].copy())
    assert first.shape == (5, 3, 64, 64)
    assert not torch.allclose(first, video(other, "it moves up"), atol=1e-2)
    assert not torch.allclose(first, video(picture, "it grows"), atol=1e-2)
