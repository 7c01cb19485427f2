"""How well a video keeps its pictures: which frames are compared, the numbers, the sheet."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from wan_core.tasks import Clip, GeneratedClip
from wan_mi2v import compare_anchors
from wan_mi2v.preview import anchored_pixels, best_matches, psnr

from .mi2v_model import Model, colours


def test_psnr_of_one_level_of_difference() -> None:
    grey = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    assert psnr(grey, grey) == math.inf
    assert psnr(grey, grey + 1) == pytest.approx(20 * math.log10(255))
    assert psnr(grey, grey + 10) == pytest.approx(20 * math.log10(25.5))


def test_latent_frame_zero_is_one_frame_and_the_others_are_four() -> None:
    inputs = Model().plan(pictures=colours(2), at=(0, 3))
    assert anchored_pixels(inputs) == [(0, 0, 0), (1, 3, 9), (1, 3, 10), (1, 3, 11), (1, 3, 12)]


def test_images_encoded_together_are_compared_one_by_one() -> None:
    inputs = Model().plan(pictures=colours(5), joint=True)
    assert anchored_pixels(inputs) == [(0, 0, 0), (1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 1, 4)]


def test_a_video_of_the_images_themselves_matches_without_error() -> None:
    inputs = Model().plan(pictures=colours(2))
    video = torch.zeros(13, 3, 32, 32)
    video[0], video[3] = inputs.images
    best = best_matches(compare_anchors(inputs, video))
    assert [(match.frame, match.psnr) for match in best] == [(0, math.inf), (3, math.inf)]
    assert len(compare_anchors(inputs, video)) == 5


@pytest.mark.parametrize(
    ("values", "cells"),
    [({"pictures": 2}, (5, 2)), ({"pictures": 1}, (2, 1)), ({"pictures": 5, "joint": True}, (8, 2))],
)
def test_the_sheet_has_a_cell_for_every_image_and_frame(
    values: dict[str, object], cells: tuple[int, int], tmp_path: Path
) -> None:
    model, reported, path = Model(), list[str](), tmp_path / "s.png"
    pictures = colours(int(str(values["pictures"])))
    inputs = model.plan(**{**values, "pictures": pictures}, preview=path)
    chunks = list(model.pipeline.stream(inputs, log=reported.append))
    assert sum(chunk.shape[1] for chunk in chunks) == 13
    width, height = cells
    assert Image.open(path).size == (width * (96 + 4) + 4, height * (96 + 16 + 4) + 4)
    assert len(reported) == len(pictures) + 1
    assert "picture 0 at latent frame 0" in reported[0]


def test_without_a_preview_the_frames_pass_untouched() -> None:
    model = Model()
    frames = iter([torch.zeros(3, 1, 32, 32)])
    inputs = model.plan(pictures=colours(1))
    conditioning = model.pipeline.preset.task.condition(inputs, model.pipeline.components, Clip())
    clip = GeneratedClip(conditioning=conditioning, latents=conditioning.anchors.latents, frames=frames)
    assert model.pipeline.preset.task.report(inputs, clip, print) is frames
