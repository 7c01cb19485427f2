"""Encoders of 'bindweave evaluate', of random weights in the layouts of the real ones."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, Dinov2Model, Qwen2VLForConditionalGeneration

from bindweave.evaluation import faces as face_module
from bindweave.evaluation.encoders import GME, PretrainedEncoder, TextImageEncoder, TwoHalves, WanCLIP, open_encoder
from bindweave.evaluation.faces import FaceEncoder, similarity
from bindweave.evaluation.measuring import face_measures, open_tools, text_measure, unit
from tools.make_checkpoint import make_checkpoint
from wan_core import BackendError, CheckpointError, RequestError
from wan_core.llm import LocalEmbedder
from wan_core.runtime import optional_packages

from .encoder_folders import write_clip, write_dinov2, write_faces, write_gme, write_siglip

POINTS = np.array([[20, 25], [44, 24], [32, 36], [22, 48], [42, 49]], dtype=np.float32)
WRITERS = {"clip": write_clip, "siglip": write_siglip, "dino": write_dinov2, "gme": write_gme}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    for name, write in WRITERS.items():
        write(folder / name)
    make_checkpoint("i2v-14B-720P", folder / "wan")
    write_faces(folder / "faces", points=POINTS)
    return folder


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (rows, columns, 3), dtype=np.uint8))
        for rows, columns in ((40, 60), (70, 33), (40, 60))
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("clip", TwoHalves), ("siglip", TwoHalves), ("dino", PretrainedEncoder), ("gme", GME), ("wan", WanCLIP)],
)
def test_an_encoder_is_told_by_its_folder(folder: Path, name: str, kind: type) -> None:
    encoder = open_encoder(folder / name, "cpu")
    assert type(encoder) is kind
    assert isinstance(encoder, TextImageEncoder) == (kind in (TwoHalves, GME))
    vectors = encoder.embed_images(pictures())
    again = encoder.embed_images([pictures()[1]])
    assert vectors.dtype == np.float32
    assert np.allclose(vectors[1], again[0], atol=1e-5)  # neighbours in a batch do not matter
    assert not np.allclose(unit(vectors)[0], unit(vectors)[2], atol=1e-4)


def test_clip_is_that_of_transformers(folder: Path) -> None:
    encoder = open_encoder(folder / "clip", "cpu")
    model = CLIPModel.from_pretrained(folder / "clip")
    square = Image.fromarray(np.random.default_rng(1).integers(0, 256, (28, 28, 3), dtype=np.uint8))
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = ((np.asarray(square) / 255 - mean) / deviation).transpose(2, 0, 1)[None]
    with torch.inference_mode():
        states = model.vision_model(pixel_values=torch.tensor(pixels, dtype=torch.float32)).pooler_output
        expected = model.visual_projection(states)
    assert np.allclose(encoder.embed_images([square]), expected.numpy(), atol=1e-5)


def test_a_text_that_is_too_long_is_cut(folder: Path) -> None:
    encoder = open_encoder(folder / "clip", "cpu")
    vectors = encoder.embed_texts(["a" * 100, "a" * 200, "b"])
    assert np.allclose(vectors[0], vectors[1], atol=1e-5)
    assert not np.allclose(vectors[0], vectors[2], atol=1e-3)


def test_dinov2_gives_its_class_token(folder: Path) -> None:
    encoder = open_encoder(folder / "dino", "cpu")
    model = Dinov2Model.from_pretrained(folder / "dino")
    pixels = encoder._processor(images=pictures()[:1], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = model(pixel_values=pixels).last_hidden_state[:, 0]
    assert np.allclose(encoder.embed_images(pictures()[:1]), expected.numpy(), atol=1e-5)


def test_gme_is_the_last_state_of_its_markup(folder: Path) -> None:
    embedder = LocalEmbedder(folder / "gme")
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder / "gme")
    text = (
        "<|im_start|>system\nFind an image that matches the given text.<|im_end|>\n"
        "<|im_start|>user\na red cat<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
    )
    tokens = embedder._tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        states = model.model(**tokens).last_hidden_state[0, -1]
    assert torch.allclose(embedder.embed_texts(["a red cat"])[0], states / states.norm(), atol=1e-5)
    assert torch.allclose(embedder.embed_images(pictures()).norm(dim=1), torch.ones(3))


def test_only_gme_of_seven_billion_is_the_benchmarks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = open_encoder(folder / "gme", "cpu")
    assert isinstance(encoder, GME)
    assert text_measure("gme", encoder) == "gme_text"
    monkeypatch.setattr(LocalEmbedder, "dim", 3584)
    assert text_measure("gme", encoder) == "gme_score"


def test_gme_without_its_language_head_loads(folder: Path, tmp_path: Path) -> None:
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder / "gme")
    expected = LocalEmbedder(folder / "gme").embed_texts(["cat"])
    kept = {name: each for name, each in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(tmp_path, state_dict=kept)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / "gme" / name).read_bytes())
    assert torch.allclose(LocalEmbedder(tmp_path).embed_texts(["cat"]), expected, atol=1e-5)


def test_a_small_clip_is_not_the_tower_of_the_aesthetic_score(folder: Path) -> None:
    encoder = open_encoder(folder / "clip", "cpu")
    assert isinstance(encoder, TwoHalves)
    assert not encoder.is_aesthetic_tower
    for key, value in {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14, "image_size": 224}.items():
        setattr(encoder.config.vision_config, key, value)
    encoder.config.projection_dim = 768
    assert encoder.is_aesthetic_tower
    encoder.config.vision_config.hidden_act = "gelu"  # LAION's towers
    assert not encoder.is_aesthetic_tower


def spoiled(folder: Path, name: str, tmp_path: Path, change: Callable[[Path], object]) -> Path:
    for file in (folder / name).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: (path / "model.safetensors").write_bytes(b"no"), "cannot be read"),
        (lambda path: (path / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (lambda path: (path / "config.json").write_text(json.dumps({"model_type": "bert"})), "is a bert; encoders are"),
        (lambda path: [each.unlink() for each in path.iterdir()], "no weights in"),
    ],
)
def test_a_spoiled_folder_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_encoder(spoiled(folder, "clip", tmp_path, change), "cpu")


def test_a_place_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist; fetch it"):
        open_encoder(tmp_path / "none", "cpu")


def coloured(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (64, 64), colour)


def test_the_same_face_is_nearer_than_another(folder: Path) -> None:
    faces = open_encoder(folder / "faces", "cpu")
    assert isinstance(faces, FaceEncoder)
    red, blue = coloured((255, 40, 40)), coloured((40, 40, 255))
    same, other = face_measures(faces, [red], [red, red]), face_measures(faces, [red], [red, blue])
    assert same == {"face_similarity": pytest.approx(1), "face_found": 1}
    assert other["face_similarity"] < 0.8


def test_frames_without_a_face_are_counted_apart(folder: Path) -> None:
    faces = open_encoder(folder / "faces", "cpu")
    red, black = coloured((255, 40, 40)), coloured((0, 0, 0))
    assert face_measures(faces, [red], [red, black]) == {"face_similarity": pytest.approx(1), "face_found": 0.5}
    assert face_measures(faces, [red], [black]) == {"face_similarity": 0, "face_found": 0}


def test_a_reference_without_a_face_has_no_measure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = open_encoder(folder / "faces", "cpu")
    monkeypatch.setattr(face_module, "_GREY", 0)  # else the tiny detector takes the border for a face
    assert face_measures(faces, [coloured((0, 0, 0))], []) == {"face_similarity": None, "face_found": None}


def test_boxes_that_overlap_are_one_face(folder: Path) -> None:
    assert len(open_encoder(folder / "faces", "cpu").embed_faces(coloured((250, 250, 250)))) == 1


def test_faces_are_found_in_pixels_of_the_picture(folder: Path) -> None:
    boxes, points = open_encoder(folder / "faces", "cpu")._detect(np.full((32, 128, 3), 255, dtype=np.uint8))
    assert np.allclose(boxes, [[0, 0, 128, 128]])
    assert np.allclose(points, 2 * POINTS[None])


def test_a_face_is_turned_upright() -> None:
    angle, scale, shift = 0.4, 1.7, np.array([5.0, -3.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = similarity(POINTS, POINTS @ turn.T + shift)
    assert np.allclose(found, np.column_stack([turn, shift]))


def test_a_mirrored_face_is_not_mirrored_back() -> None:
    matrix = similarity(POINTS * (-1, 1), POINTS)[:, :2]
    assert np.linalg.det(matrix) > 0


def test_a_folder_with_two_recognisers_is_refused(folder: Path, tmp_path: Path) -> None:
    place = spoiled(
        folder, "faces", tmp_path, lambda path: (path / "x.onnx").write_bytes((path / "rec.onnx").read_bytes())
    )
    with pytest.raises(CheckpointError, match=r"one recogniser of faces, and holds rec\.onnx, x\.onnx"):
        open_encoder(place, "cpu")


def test_a_folder_without_a_detector_is_refused(folder: Path, tmp_path: Path) -> None:
    place = spoiled(folder, "faces", tmp_path, lambda path: (path / "det.onnx").unlink())
    with pytest.raises(CheckpointError, match="one detector of faces with five points, and holds none"):
        open_encoder(place, "cpu")


def test_faces_without_onnxruntime_name_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(optional_packages, "import_module", absent)
    with pytest.raises(BackendError, match=r"onnxruntime.*bindweave\[evaluate\]"):
        open_encoder(folder / "faces", "cpu")


def test_two_recognisers_and_a_head_without_its_clip_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="a and b are both recognisers of faces"):
        open_tools({"a": folder / "faces", "b": folder / "faces"}, None, 4, "cpu")
    torch.save({"layers.0.weight": torch.zeros(1, 9), "layers.0.bias": torch.zeros(1)}, tmp_path / "head.pth")
    with pytest.raises(RequestError, match="takes vectors of 9 numbers"):
        open_tools({"clip": folder / "clip"}, tmp_path / "head.pth", 4, "cpu")
