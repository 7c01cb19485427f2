"""Pictures of subjects to learn from: which of an example's are taken, and how one is cut out, turned and scaled.

The rules are those of BindWeave's training: a subject is cut out of its picture by a mask and lies on white, and is
turned and scaled at random, so that it is not copied from where it was. A picture without mask is taken as it is.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindweave.references import Box, Reference, letterbox, placed
from bindweave.request import MAX_REFERENCES
from bindweave.samples import read_object
from wan_core import MediaError, RequestError
from wan_core.files import IMAGE_ENDINGS, folder_files, natural_order, plain_text

if TYPE_CHECKING:
    from PIL import Image

SCORES = "scores.json"
"""In a folder of references: scores of its pictures, by their names."""
MASK = ".mask"
"""``a.mask.png`` is where in ``a.jpg`` the subject is."""

_OPAQUE = 127
_DEGREES, _LOG_SCALE = 45.0, 1.5
_LEAST_SHARE = 0.1
_LEAST_AESTHETIC, _LEAST_GME = 4.5, 0.6


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A subject: its ``image`` (RGB, on white) and where in it the subject is (``alpha``, ``L``).

    Without alpha the whole picture is meant. ``share`` is that of the picture that the subject's box covers.
    """

    image: Image.Image
    alpha: Image.Image | None = None
    share: float = 1.0


def cut_out(image: Image.Image, mask: Image.Image) -> Subject | None:
    """The subject of an RGB picture under a mask (``L``) of its size; None where the mask is empty."""
    from PIL import Image

    hard = mask.point(lambda value: 255 if value > _OPAQUE else 0)
    box = hard.getbbox()
    if box is None:
        return None
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=hard)
    area = (box[2] - box[0]) * (box[3] - box[1])
    return Subject(image=white.crop(box), alpha=hard.crop(box), share=area / (image.width * image.height))


def is_kept(share: float, aesthetic: float | None = None, gme: float | None = None) -> bool:
    """Whether a subject is worth learning from: large enough, and not both ugly and unlike its words."""
    is_poor = aesthetic is not None and gme is not None and aesthetic < _LEAST_AESTHETIC and gme < _LEAST_GME
    return share >= _LEAST_SHARE and not is_poor


def taken(kept: Sequence[bool], shares: Sequence[float], rng: random.Random, count: int = MAX_REFERENCES) -> list[int]:
    """Which subjects are shown, in their order: at most ``count`` of those kept, or the largest where none is."""
    found = [index for index, each in enumerate(kept) if each] or [shares.index(max(shares))]
    drawn = {index: rng.random() for index in found}
    return sorted(sorted(found, key=drawn.__getitem__)[:count])


def scattered(subject: Subject, width: int, height: int, rng: random.Random) -> Reference:
    """A subject in the middle of a frame, turned by up to 45 degrees and scaled by exp(-1.5) to exp(1.5) or to fit.

    One that is its whole picture is placed as a request's is. Raises RequestError as `letterbox` does.
    """
    from PIL import Image

    turn, grow = rng.uniform(-_DEGREES, _DEGREES), rng.uniform(-_LOG_SCALE, _LOG_SCALE)
    if subject.alpha is None:
        return letterbox(subject.image, width, height)
    # Colours and alpha apart: together they would be weighed with each other, and white would turn black.
    image, alpha = (each.rotate(turn, Image.Resampling.BICUBIC, expand=True) for each in (subject.image, subject.alpha))
    scale = min(math.exp(grow), width / image.width, height / image.height)
    size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    box = Box((width - size[0]) // 2, (height - size[1]) // 2, *size)
    image, alpha = (each.resize(size, Image.Resampling.LANCZOS) for each in (image, alpha))
    return placed(image, box, width, height, alpha)


def subject_files(place: Path) -> dict[Path, Path | None]:
    """The pictures of an example, each with its mask if it has one: ``place`` is one picture, or a folder of them.

    Raises RequestError for a folder without any, and for a mask without picture.
    """
    files = [place] if place.is_file() else sorted(folder_files(place, IMAGE_ENDINGS), key=natural_order)
    beside = folder_files(place.parent, IMAGE_ENDINGS) if place.is_file() else files
    masks = {each.stem.removesuffix(MASK): each for each in beside if each.stem.endswith(MASK)}
    pictures = {each: masks.get(each.stem) for each in files if not each.stem.endswith(MASK)}
    if not pictures:
        raise RequestError(f"{plain_text(place)} has no picture of a subject; put 1 to {MAX_REFERENCES} there")
    lonely = [each for each in files if each.stem.endswith(MASK) and each not in pictures.values()]
    if lonely:
        raise RequestError(f"{plain_text(lonely[0])} is the mask of no picture; call the picture {_named(lonely[0])}")
    return pictures


def load_subject(picture: Path, mask: Path | None) -> Subject:
    """The subject of a file: under its mask, else under its alpha, else the whole picture.

    Raises RequestError for a mask that is empty, MediaError for files that cannot be read or differ in size.
    """
    from wan_core.media import load_cutout, load_image

    image, alpha = load_cutout(picture)
    if mask is not None:
        alpha = load_image(mask).convert("L")
        if alpha.size != image.size:
            sizes = [f"{each.width}x{each.height}" for each in (alpha, image)]
            raise MediaError(f"{plain_text(mask)} is {sizes[0]}, its picture {sizes[1]}; a mask has the same size")
    if alpha is None or alpha.getextrema()[0] == 255:
        return Subject(image=image)
    subject = cut_out(image, alpha)
    if subject is None:
        raise RequestError(f"{plain_text(mask or picture)} shows nothing of its picture; mend the mask, or remove it")
    return subject


def chosen_subjects(place: Path) -> list[Subject]:
    """The one to four subjects of an example that are shown: always the same, to the language model and the others.

    Raises as `subject_files` and `load_subject`, and RequestError for scores that are none.
    """
    files = subject_files(place)
    subjects = [load_subject(*each) for each in files.items()]
    scores = _scores(place)
    kept = [
        each.alpha is None or is_kept(each.share, **scores.get(picture.name, {}))
        for picture, each in zip(files, subjects, strict=True)
    ]
    return [subjects[i] for i in taken(kept, [each.share for each in subjects], seeded(place.name))]


def seeded(name: str) -> random.Random:
    """The choices of an example, which its name determines."""
    return random.Random(zlib.crc32(name.encode()))


def _scores(place: Path) -> Mapping[str, Mapping[str, float]]:
    """The scores in a folder of references, by the names of its pictures."""
    path = place / SCORES
    if not path.is_file():
        return {}
    content = read_object(path, "scores by the names of pictures")
    for name, scores in content.items():
        if not isinstance(scores, dict) or not all(map(_is_score, scores.items())):
            raise RequestError(f"{plain_text(path)}: {plain_text(name)[:80]} must have numbers aesthetic and gme")
    return content


def _is_score(item: tuple[str, Any]) -> bool:
    name, value = item
    return name in ("aesthetic", "gme") and type(value) in (int, float) and math.isfinite(value)


def _named(mask: Path) -> str:
    return f"{mask.stem.removesuffix(MASK)}{mask.suffix}"
