"""Subjects to learn from: how they are cut out, turned and scaled, and which of many are taken."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bindweave.references import letterbox
from bindweave.subjects import (
    Subject,
    chosen_subjects,
    cut_out,
    is_kept,
    load_subject,
    scattered,
    seeded,
    subject_files,
    taken,
)
from wan_core import MediaError, RequestError
from wan_core.media import LatentSpec

from .subject_clips import square

RED = (200, 10, 30)


class Fixed(random.Random):
    """Draws that are given: 0.5 is no turn and no change of size."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)


def test_a_subject_is_cut_to_its_box_and_lies_on_white() -> None:
    image, mask = Image.new("RGB", (20, 10), RED), square((20, 10), (4, 2, 12, 8))
    mask.putpixel((6, 4), 127)  # not above half
    subject = cut_out(image, mask)
    assert subject is not None
    assert subject.alpha is not None
    assert subject.image.size == subject.alpha.size == (8, 6)
    assert subject.image.getpixel((0, 0)) == RED
    assert subject.image.getpixel((2, 2)) == (255, 255, 255)
    assert subject.alpha.getpixel((2, 2)) == 0
    assert subject.share == pytest.approx(8 * 6 / 200)
    assert cut_out(image, Image.new("L", (20, 10))) is None


@pytest.mark.parametrize(
    ("share", "aesthetic", "gme", "kept"),
    [
        (0.1, None, None, True),
        (0.0999, 9.0, 0.9, False),
        (0.5, 4.4, 0.59, False),
        (0.5, 4.5, 0.59, True),
        (0.5, 4.4, 0.6, True),
        (0.5, 1.0, None, True),
    ],
)
def test_small_subjects_and_poor_ones_are_left_out(
    share: float, aesthetic: float | None, gme: float | None, kept: bool
) -> None:
    assert is_kept(share, aesthetic, gme) is kept


def test_where_none_is_worth_it_the_largest_is_taken() -> None:
    assert taken([False] * 3, [0.01, 0.05, 0.02], random.Random(0)) == [1]


def test_of_many_four_are_drawn_and_stay_in_their_order() -> None:
    draws = [taken([True] * 6, [1.0] * 6, random.Random(seed)) for seed in range(40)]
    assert all(len(each) == 4 and each == sorted(set(each)) for each in draws)
    assert {index for each in draws for index in each} == set(range(6))
    assert taken([True] * 6, [1.0] * 6, random.Random(3)) == taken([True] * 6, [1.0] * 6, random.Random(3))


def test_an_unturned_subject_of_its_own_size_stands_in_the_middle_on_black() -> None:
    subject = cut_out(Image.new("RGB", (20, 10), RED), square((20, 10), (4, 2, 12, 8)))
    assert subject is not None
    found = scattered(subject, 32, 16, Fixed(0.5, 0.5))
    assert tuple(found.box) == (12, 5, 8, 6)
    assert found.shown is not None
    assert found.shown.sum() == 48
    assert torch.equal((found.pixels * 255).round()[:, 5, 12], torch.tensor([float(each) for each in RED]))
    assert found.pixels[:, :, :12].max() == 0
    mask = found.mask(LatentSpec(channels=16))
    assert mask.shape == (2, 4)
    assert torch.equal(mask, found.shown[::8, ::8].float())


def test_the_size_goes_from_a_fifth_to_what_fits() -> None:
    subject = Subject(image=Image.new("RGB", (40, 40), RED), alpha=Image.new("L", (40, 40), 255))
    small, large = scattered(subject, 96, 64, Fixed(0.5, 0.0)), scattered(subject, 96, 64, Fixed(0.5, 1.0))
    assert tuple(small.box)[2:] == (8, 8)  # exp(-1.5) * 40 = 8.9
    assert tuple(large.box)[2:] == (64, 64)


def test_a_turn_keeps_the_subject_whole_and_black_outside() -> None:
    subject = Subject(image=Image.new("RGB", (40, 20), RED), alpha=Image.new("L", (40, 20), 255))
    found = scattered(subject, 96, 64, Fixed(0.999999, 0.5))  # 45 degrees
    assert found.shown is not None
    assert abs(int(found.shown.sum()) - 800) < 40
    assert min(found.box.width, found.box.height) > 40
    assert found.pixels[:, ~found.shown].max() < 0.55  # an edge of bicubic at most


def test_a_picture_without_mask_stands_as_in_a_request() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 30, 3), dtype=np.uint8))
    found, wanted = scattered(Subject(image=image), 32, 48, random.Random(1)), letterbox(image, 32, 48)
    assert torch.equal(found.pixels, wanted.pixels)
    assert found.shown is None


def test_alpha_is_a_mask_too_and_white_in_language(tmp_path: Path) -> None:
    image = Image.new("RGBA", (20, 10), (*RED, 255))
    image.putalpha(square((20, 10), (4, 2, 12, 8)))
    image.save(tmp_path / "a.png")
    subject = load_subject(tmp_path / "a.png", None)
    assert subject.alpha is not None
    assert subject.image.size == (8, 6)
    image.putalpha(255)
    image.save(tmp_path / "b.png")
    assert load_subject(tmp_path / "b.png", None).alpha is None


def test_the_choice_of_a_folder_depends_on_its_name_alone(tmp_path: Path) -> None:
    for place in ("a/0.references", "b/0.references"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / place / f"{number}.png")
    first, second = (
        [each.image.getpixel((0, 0)) for each in chosen_subjects(tmp_path / place)]
        for place in ("a/0.references", "b/0.references")
    )
    assert first == second
    assert len(first) == 4
    assert seeded("0.references").random() != seeded("1.references").random()


def test_scores_beside_the_pictures_decide_with_the_size(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        Image.new("RGB", (10, 10), RED).save(tmp_path / f"{name}.png")
        square((10, 10), (0, 0, 1, 1) if name == "c" else (0, 0, 8, 8)).save(tmp_path / f"{name}.mask.png")
    assert [each.share for each in chosen_subjects(tmp_path)] == [0.64, 0.64]
    (tmp_path / "scores.json").write_text(json.dumps({"a.png": {"aesthetic": 4, "gme": 0.5}}))
    assert len(chosen_subjects(tmp_path)) == 1


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({}, RequestError, "no picture of a subject"),
        ({"a.mask.png": (4, 4)}, RequestError, "no picture of a subject"),
        ({"a.png": (4, 4), "b.mask.png": (4, 4)}, RequestError, "the mask of no picture; call the picture b.png"),
        ({"a.png": (4, 4), "a.mask.png": (4, 5)}, MediaError, "a.mask.png is 4x5, its picture 4x4"),
        ({"a.png": (4, 4), "a.mask.png": (4, 4)}, RequestError, "shows nothing of its picture"),
    ],
)
def test_pictures_and_masks_that_cannot_be_are_named(
    files: dict[str, tuple[int, int]], error: type[Exception], words: str, tmp_path: Path
) -> None:
    for name, size in files.items():
        Image.new("RGB", size).save(tmp_path / name)
    with pytest.raises(error, match=words):
        chosen_subjects(tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"a.png": 3}', '{"a.png": {"beauty": 1}}', '{"a.png": {"gme": "x"}}', "{"])
def test_scores_that_are_none_are_refused(content: str, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(RequestError, match=r"scores\.json"):
        chosen_subjects(tmp_path)


def test_one_picture_may_have_its_mask_beside_it(tmp_path: Path) -> None:
    for name in ("0.references.png", "0.references.mask.png", "1.references.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    picture = tmp_path / "0.references.png"
    assert subject_files(picture) == {picture: tmp_path / "0.references.mask.png"}
