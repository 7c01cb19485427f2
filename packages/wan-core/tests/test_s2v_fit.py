"""How the picture of a speaker and frames of poses are brought to the size of the video."""

import pytest
import torch
from PIL import Image

from wan_core.media import fit_frame, fit_short_side, image_to_tensor


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (300, 100), (64, 64)])
def test_a_picture_and_a_frame_are_fitted_alike(size: tuple[int, int]) -> None:
    colours = torch.linspace(0, 255, size[0]).round().byte().expand(size[1], -1).numpy()
    image = Image.fromarray(colours).convert("RGB")
    fitted = image_to_tensor(fit_short_side(image, 128, 64))
    frame = fit_frame(image_to_tensor(image), 128, 64)
    assert fitted.shape == frame.shape == (3, 64, 128)
    inside = frame != 0  # around it the picture is black, the frame is grey
    assert (fitted - frame)[inside].abs().max() < 0.02


def test_what_falls_short_has_black_or_grey_around_it() -> None:
    white = Image.new("RGB", (64, 64), "white")
    fitted = image_to_tensor(fit_short_side(white, 128, 64))
    frame = fit_frame(image_to_tensor(white), 128, 64)
    assert (fitted[0, 0, :32].unique().item(), fitted[0, 0, 32:96].unique().item()) == (-1.0, 1.0)
    assert (frame[0, 0, :32].unique().item(), frame[0, 0, 96:].unique().item()) == (0.0, 0.0)


def test_what_is_too_long_loses_its_ends_alike() -> None:
    image = Image.new("RGB", (256, 64), "black")
    image.paste("white", (64, 0, 192, 64))
    assert image_to_tensor(fit_short_side(image, 128, 64)).unique().tolist() == [1.0]
