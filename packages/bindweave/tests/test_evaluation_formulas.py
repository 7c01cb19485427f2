"""The formulas of 'bindweave evaluate', against closed forms and against mutants of a perfect video."""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bindweave.evaluation import measuring
from bindweave.evaluation.aesthetic import AestheticHead
from bindweave.evaluation.cases import SampleVideo
from bindweave.evaluation.given_scores import read_scores
from bindweave.evaluation.measures import BENCHMARK, percent, total, weighted_mean
from bindweave.evaluation.measuring import Tools, consistency, measure, subject, unit
from bindweave.evaluation.video import chosen_frames, look_through
from wan_core import CheckpointError, MediaError, RequestError
from wan_core.media import load_image, read_video, write_video

PUBLISHED = {
    "aesthetic": 45.55, "motion_smoothness": 95.90, "motion_amplitude": 13.91, "facesim": 53.71, "gme_score": 67.79,
    "nexus_score": 46.84, "natural_score": 66.85,
}  # fmt: skip
WORDS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Colours:
    """An encoder of one's own: a picture is its mean colour, a text the colour that it names."""

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        return np.stack([np.asarray(each.convert("RGB"), dtype=np.float32).mean(axis=(0, 1)) for each in images])

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([next(WORDS[word] for word in text.split() if word in WORDS) for text in texts], np.float32)


def film(path: Path, frames: Sequence[np.ndarray]) -> Path:
    """A video of frames [H, W, 3], nearly without loss."""
    chunks = [torch.from_numpy(frame).permute(2, 0, 1)[:, None] / 127.5 - 1 for frame in frames]
    return write_video(chunks, path, fps=8, crf=1)


def plain(colour: tuple[int, int, int], count: int = 4) -> list[np.ndarray]:
    return [np.full((64, 64, 3), colour, dtype=np.uint8)] * count


def pan(step: int, count: int = 5, side: int = 96) -> list[np.ndarray]:
    """A smooth pattern that moves ``step`` pixels to the left in each frame."""
    wide = np.random.default_rng(0).integers(0, 256, (12, 12 + count, 3)).astype(np.uint8)
    large = cv2.resize(wide, (side + abs(step) * count, side), interpolation=cv2.INTER_CUBIC)
    return [large[:, abs(step) * index :][:, :side] for index in range(count)][:: 1 if step >= 0 else -1]


def case_of(folder: Path, video: Path, *colours: str, prompt: str = "a red ball") -> SampleVideo:
    for colour in colours:
        Image.new("RGB", (30, 50), colour).save(folder / f"{colour}.png")
    return SampleVideo("one", video, prompt, tuple(folder / f"{colour}.png" for colour in colours))


def values_of(folder: Path, frames: Sequence[np.ndarray], *colours: str) -> dict[str, float | None]:
    case = case_of(folder, film(folder / "video.mp4", frames), *colours)
    return measure(case, Tools({"colour": Colours()}, frames=8))[1]


def test_a_video_that_shows_its_reference_scores_highest_and_another_lower(tmp_path: Path) -> None:
    right, wrong = values_of(tmp_path, plain(WORDS["red"]), "red"), values_of(tmp_path, plain(WORDS["blue"]), "red")
    assert right["colour_subject"] == pytest.approx(1, abs=1e-3)
    assert right["colour_text"] == pytest.approx(1, abs=1e-3)
    assert wrong["colour_subject"] < 0.1
    assert wrong["colour_text"] < 0.1


def test_references_shuffled_among_videos_score_lower(tmp_path: Path) -> None:
    colours = list(WORDS)
    made = [film(tmp_path / f"{colour}.mp4", plain(WORDS[colour])) for colour in colours]

    def mean(order: Sequence[str]) -> float:
        cases = [case_of(tmp_path, video, colour) for video, colour in zip(made, order, strict=True)]
        return float(np.mean([measure(case, Tools({"c": Colours()}))[1]["c_subject"] for case in cases]))

    assert mean(colours) > mean(colours[1:] + colours[:1]) + 0.5


def test_one_of_two_references_is_half_of_both(tmp_path: Path) -> None:
    assert values_of(tmp_path, plain(WORDS["red"]), "red", "blue")["colour_subject"] == pytest.approx(0.5, abs=0.01)


def test_a_video_without_references_has_no_subject(tmp_path: Path) -> None:
    assert "colour_subject" not in values_of(tmp_path, plain(WORDS["red"]))


def test_a_still_video_does_not_move(tmp_path: Path) -> None:
    values = values_of(tmp_path, [pan(0, 1)[0]] * 4, "red")
    assert values["motion_amplitude"] == pytest.approx(0, abs=0.01)
    assert values["flow_magnitude"] == pytest.approx(0, abs=0.01)
    assert values["warp_error"] == pytest.approx(0, abs=1e-4)
    assert values["colour_consistency"] == pytest.approx(1, abs=1e-3)


def test_a_single_frame_has_no_motion(tmp_path: Path) -> None:
    values = values_of(tmp_path, plain(WORDS["red"], 1), "red")
    motion = ("motion_amplitude", "flow_magnitude", "warp_error", "colour_consistency")
    assert {values[name] for name in motion} == {None}


def test_the_amplitude_is_the_benchmarks(tmp_path: Path) -> None:
    """Computed once more as its program does: grey of swapped channels, 16 columns, means with signs."""
    video = film(tmp_path / "pan.mp4", pan(3))
    frames = [each.permute(1, 2, 0).numpy() for each in read_video(video).frames]
    grey = [cv2.cvtColor(each, cv2.COLOR_BGR2GRAY) for each in frames]
    flows = [cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0) for a, b in pairwise(grey)]
    small = [cv2.resize(flow, (16, 16), interpolation=cv2.INTER_AREA) for flow in flows]
    expected = abs(float(np.mean(np.mean(np.array(small), axis=0))))
    found = look_through(video, 4).motion.amplitude
    assert found == pytest.approx(expected, rel=1e-4)
    assert 1 < found < 2  # 3 pixels across, none down, of which the mean is half


def test_the_amplitude_of_motions_against_each_other_cancels_and_the_magnitude_does_not(tmp_path: Path) -> None:
    there_and_back = film(tmp_path / "back.mp4", [*pan(3), *pan(3)[-2::-1]])
    motion, ahead = look_through(there_and_back, 4).motion, look_through(film(tmp_path / "a.mp4", pan(3)), 4).motion
    assert motion.amplitude < 0.1 * ahead.amplitude
    assert motion.magnitude == pytest.approx(ahead.magnitude, rel=0.1)


def test_frames_in_disorder_are_less_consistent_and_less_smooth(tmp_path: Path) -> None:
    frames = pan(2, 8)
    shuffled = [frames[index] for index in (0, 5, 1, 7, 2, 6, 3, 4)]
    calm = look_through(film(tmp_path / "calm.mp4", frames), 4).motion
    wild = look_through(film(tmp_path / "wild.mp4", shuffled), 4).motion
    assert wild.warp_error > calm.warp_error
    assert wild.magnitude > calm.magnitude


def test_consistency_is_the_mean_of_first_and_before_with_negatives_as_zero() -> None:
    frames = np.array([[1, 0], [0, 1], [0, -1]], dtype=np.float32)
    assert consistency(frames) == 0
    assert consistency(unit(np.array([[1, 0], [1, 1]], np.float32))) == pytest.approx(2**-0.5)
    assert consistency(frames[:1]) is None


def test_subject_is_the_mean_cosine() -> None:
    assert subject(np.eye(2, dtype=np.float32), np.array([[1, 0], [0.6, 0.8]], np.float32)) == pytest.approx(0.6)
    assert np.array_equal(unit(np.zeros((1, 3), np.float32)), np.zeros((1, 3), np.float32))


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [(81, 5, [0, 20, 40, 60, 80]), (10, 4, [0, 3, 6, 9]), (8, 3, [0, 3, 7]), (2, 4, [0, 0, 0, 1]), (1, 3, [0, 0, 0])],
)
def test_frames_are_chosen_as_the_benchmark_does(count: int, wanted: int, expected: list[int]) -> None:
    assert chosen_frames(count, wanted) == expected == list(np.linspace(0, count - 1, wanted, dtype=int))


def test_a_frame_of_a_short_video_counts_as_often_as_it_stands(tmp_path: Path) -> None:
    frames = [plain(WORDS["red"], 1)[0], plain(WORDS["blue"], 1)[0]]
    assert values_of(tmp_path, frames, "red")["colour_subject"] == pytest.approx(7 / 8, abs=0.01)


def test_the_published_total_comes_from_the_published_scores() -> None:
    assert total(PUBLISHED) == pytest.approx(57.61, abs=0.01)


@pytest.mark.parametrize("name", BENCHMARK)
def test_a_total_needs_every_measure(name: str) -> None:
    some = {key: value for key, value in PUBLISHED.items() if key != name}
    mean, left_out = weighted_mean(some)
    assert total(some) is None
    assert left_out == (name,)
    weight = BENCHMARK[name].weights["open"]
    assert mean == pytest.approx((total(PUBLISHED) - weight * PUBLISHED[name]) / (1 - weight))


def test_the_human_domain_has_no_nexus_score() -> None:
    some = {key: value for key, value in PUBLISHED.items() if key != "nexus_score"}
    assert total(some, "human") == total({**some, "nexus_score": 1.0}, "human") is not None


def test_weights_add_up_to_one() -> None:
    for domain in ("open", "human"):
        assert sum(its.weights[domain] for its in BENCHMARK.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("aesthetic", [4.0, 7.0], 50), ("aesthetic", [1.0, 9.0], 50), ("natural_score", [3, 0], 25),
        ("motion_amplitude", [0.5, 3.0], 75), ("facesim", [0.25, None, 0.75], 50), ("gme_score", [-0.5, 1.0], 25),
        ("nexus_score", [0.025, 0, 0], 50), ("nexus_score", [0.2], 100), ("nexus_score", [0], None),
        ("motion_smoothness", [], None),
    ],
)  # fmt: skip
def test_percents_are_the_benchmarks(name: str, values: list[float | None], expected: float | None) -> None:
    assert percent(name, values) == (expected if expected is None else pytest.approx(expected))


def layers(*widths: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    pairs = list(pairwise(widths))
    weights = {f"layers.{2 * index}.weight": torch.randn(b, a) for index, (a, b) in enumerate(pairs)}
    return weights | {f"layers.{2 * index}.bias": torch.randn(b) for index, (_, b) in enumerate(pairs)}


def test_the_aesthetic_head_is_its_layers_one_after_the_other(tmp_path: Path) -> None:
    tensors = layers(6, 4, 1)
    save_file(tensors, tmp_path / "head.safetensors")
    head = AestheticHead(tmp_path / "head.safetensors")
    given = torch.randn(3, 6)
    hidden = given @ tensors["layers.0.weight"].T + tensors["layers.0.bias"]
    expected = hidden @ tensors["layers.2.weight"].T + tensors["layers.2.bias"]
    assert np.allclose(head(given.numpy()), expected[:, 0], atol=1e-5)
    assert (head.dim, head.is_released) == (6, False)


def test_the_released_head_is_known_by_its_widths(tmp_path: Path) -> None:
    torch.save(layers(768, 1024, 128, 64, 16, 1), tmp_path / "head.pth")
    assert AestheticHead(tmp_path / "head.pth").is_released


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensors: tensors.pop("layers.2.bias"),
        lambda tensors: tensors.update({"layers.2.weight": torch.zeros(1, 5)}),
        lambda tensors: tensors.update({"layers.2.weight": torch.zeros(2, 4), "layers.2.bias": torch.zeros(2)}),
        lambda tensors: tensors.clear() or tensors.update({"other": torch.zeros(1)}),
    ],
)
def test_another_network_is_no_aesthetic_head(
    tmp_path: Path, spoil: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    tensors = layers(6, 4, 1)
    spoil(tensors)
    save_file(tensors, tmp_path / "head.safetensors")
    with pytest.raises(CheckpointError, match="no aesthetic predictor"):
        AestheticHead(tmp_path / "head.safetensors")


def test_an_aesthetic_head_on_another_tower_has_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(layers(3, 1), tmp_path / "head.safetensors")
    case = case_of(tmp_path, film(tmp_path / "red.mp4", plain(WORDS["red"])), "red")
    tools = Tools({"c": Colours()}, aesthetic=AestheticHead(tmp_path / "head.safetensors"), aesthetic_on="c")
    values = measure(case, tools)[1]
    assert "aesthetic" not in values
    frame = load_image(tmp_path / "red.png")
    expected = tools.aesthetic(unit(Colours().embed_images([frame])))[0]
    assert values["aesthetic_head"] == pytest.approx(expected, abs=0.02)
    monkeypatch.setattr(measuring, "aesthetic_measure", lambda head, encoder: "aesthetic")
    assert "aesthetic" in measure(case, tools)[1]


def scores(folder: Path, **files: object) -> list[Path]:
    paths = [folder / f"{name}.json" for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        path.write_text(json.dumps(content))
    return paths


def test_the_benchmarks_own_files_are_read(tmp_path: Path) -> None:
    given = scores(
        tmp_path,
        motion_amplitude={"a": {"motion_fb": -0.35, "motion_lk": 7.2}},
        facesim={"a": {"cur_score": 0.9, "arc_score": 0.8}},
        aesthetic_score={"a": {"aes_score": 5.5}, "b": {"aes_score": 6}},
        naturalscore_1={"a": "4"},
        naturalscore_2={"a": "3"},
    )
    assert read_scores(given) == {
        "a": {"motion_amplitude": 0.35, "facesim": 0.9, "aesthetic": 5.5, "natural_score": 3.5},
        "b": {"aesthetic": 6.0},
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"one": {"a": {"beauty": 1}}}, "unknown score 'beauty'"),
        ({"one": {"a": {"gme_score": "much"}}}, "gme_score must be a number, got 'much'"),
        ({"one": {"a": {"gme_score": True}}}, "must be a number"),
        ({"naturalscore_1": {"a": "error"}}, "must be a number, got 'error'"),
        ({"one": {"a": 0.5}}, "must be an object"),
        ({"one": {"a": {"gme_score": 1}}, "two": {"a": {"gme_score": 1}}}, "stands in two of the files"),
        ({"one": {"a": {"cur_score": 1, "facesim_cur": 1}}}, "second value for facesim"),
        ({"one": []}, "must hold an object"),
    ],
)
def test_bad_scores_are_refused_with_their_place(tmp_path: Path, files: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_scores(scores(tmp_path, **files))


def test_a_video_that_changes_its_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(3, 32, 48, dtype=torch.uint8)])
    monkeypatch.setattr("wan_core.media.count_frames", lambda path: 2)
    monkeypatch.setattr("wan_core.media.stream_video", lambda path: sizes)
    with pytest.raises(MediaError, match="changes its frame size"):
        look_through(tmp_path / "odd.mp4", 2)
