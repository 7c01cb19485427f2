"""How well the video keeps its images: PSNR per anchored frame, and a sheet to look at."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from wan_core.media import contact_sheet, tensor_to_image, to_uint8, write_image
from wan_mi2v.inputs import MI2VInputs

_CELL_WIDTHS = 96, 320
_SHEET_PIXELS = 40_000_000
_CAPTION_HEIGHT = 16
_PAIRS_PER_ROW = 4


@dataclass(frozen=True)
class AnchorMatch:
    """One frame of the video beside the image it should show.

    ``image`` counts the images, ``latent_frame`` and ``frame`` the video's latent and pixel frames, all from 0;
    ``psnr`` is in dB over 8-bit values, infinite when they are equal.
    """

    image: int
    name: str
    latent_frame: int
    frame: int
    psnr: float


class AnchorWatch:
    """Compares frames with the images as they come, and keeps those it has compared."""

    def __init__(self, inputs: MI2VInputs) -> None:
        self.inputs = inputs
        self.kept: dict[int, Tensor] = {}
        self._wanted = anchored_pixels(inputs)
        self._seen = 0

    def add(self, chunk: Tensor) -> None:
        """The next frames, [3, t, H, W] in [-1, 1]."""
        frames = {frame for _, _, frame in self._wanted}
        for offset in range(chunk.shape[1]):
            if self._seen + offset in frames:
                self.kept[self._seen + offset] = to_uint8(chunk[:, offset]).cpu()
        self._seen += chunk.shape[1]

    def matches(self) -> list[AnchorMatch]:
        """Every anchored frame that has come, in the order of the images."""
        images = to_uint8(self.inputs.images)
        return [
            AnchorMatch(image, self.inputs.names[image], latent, frame, psnr(images[image], self.kept[frame]))
            for image, latent, frame in self._wanted
            if frame in self.kept
        ]


def anchored_pixels(inputs: MI2VInputs) -> list[tuple[int, int, int]]:
    """(image, latent frame, pixel frame) for every frame that an image fixes.

    The VAE is causal: latent frame 0 is frame 0 alone, latent frame k the ``stride`` frames up to ``stride * k``.
    """
    stride = inputs.geometry.spec.temporal_stride
    if inputs.joint:
        return [(frame, -(-frame // stride), frame) for frame in range(len(inputs.names))]
    return [
        (image, latent, frame)
        for image, latent in enumerate(inputs.positions)
        for frame in range(max(0, stride * (latent - 1) + 1), stride * latent + 1)
    ]


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 tensors of one shape; infinite when they are equal."""
    error = float((first.float() - second.float()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(255.0**2 / error)


def compare_anchors(inputs: MI2VInputs, frames: Tensor) -> list[AnchorMatch]:
    """How well a finished video [T, 3, H, W] in [-1, 1] keeps the images of its planned request."""
    watch = AnchorWatch(inputs)
    watch.add(frames.transpose(0, 1))
    return watch.matches()


def watch_anchors(
    inputs: MI2VInputs, frames: Iterator[Tensor], path: Path, log: Callable[[str], None]
) -> Iterator[Tensor]:
    """Chunks of frames unchanged; when the last one is out, the sheet is written and the numbers are reported."""
    watch = AnchorWatch(inputs)
    for chunk in frames:
        watch.add(chunk)
        yield chunk
    matches = watch.matches()
    write_image(draw_sheet(watch, matches), path)
    for best in best_matches(matches):
        log(f"{best.name} at latent frame {best.latent_frame}: {best.psnr:.1f} dB in frame {best.frame}")
    log(f"{path} (pictures beside frames)")


def best_matches(matches: list[AnchorMatch]) -> list[AnchorMatch]:
    """The closest frame of each image, in the order of the images."""
    best: dict[int, AnchorMatch] = {}
    for match in matches:
        if match.image not in best or match.psnr > best[match.image].psnr:
            best[match.image] = match
    return list(best.values())


def draw_sheet(watch: AnchorWatch, matches: list[AnchorMatch]) -> Image.Image:
    """One row per image with the frames it fixes; where they were encoded together, four pairs a row."""
    inputs = watch.inputs
    per_image = (
        1 if inputs.joint else max(len([m for m in matches if m.image == index]) for index in range(len(inputs.names)))
    )
    width, height = _cell_size(inputs.geometry.width, inputs.geometry.height, len(inputs.names) * (1 + per_image))
    cells: list[Image.Image] = []
    for index, name in enumerate(inputs.names):
        cells.append(_cell(inputs.images[index], name, width, height))
        own = [match for match in matches if match.image == index]
        cells += [_cell(watch.kept[m.frame], f"frame {m.frame}: {m.psnr:.1f} dB", width, height) for m in own]
        cells += [Image.new("RGB", cells[0].size, "white")] * (per_image - len(own))
    return contact_sheet(cells, 2 * _PAIRS_PER_ROW if inputs.joint else 1 + per_image)


def _cell_size(width: int, height: int, count: int) -> tuple[int, int]:
    """Cells of about the video's own size, but readable, and small enough for all of them to fit on a sheet."""
    narrow, wide = _CELL_WIDTHS
    fitting = math.isqrt(max(1, _SHEET_PIXELS * width // (count * height)))
    chosen = max(1, min(max(width, narrow), wide, fitting))
    return chosen, max(1, round(chosen * height / width))


def _cell(frame: Tensor, caption: str, width: int, height: int) -> Image.Image:
    cell = Image.new("RGB", (width, height + _CAPTION_HEIGHT), "white")
    cell.paste(tensor_to_image(frame).resize((width, height), Image.Resampling.LANCZOS))
    ImageDraw.Draw(cell).text((2, height + 2), caption, fill="black", font=ImageFont.load_default())
    return cell
