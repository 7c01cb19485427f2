"""All measures of one video against its prompt and its pictures, each a closed formula over vectors of its frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bindweave.evaluation.aesthetic import AestheticHead
from bindweave.evaluation.cases import SampleVideo
from bindweave.evaluation.encoders import GME, Array, ImageEncoder, TextImageEncoder, TwoHalves, open_encoder
from bindweave.evaluation.faces import FaceEncoder
from bindweave.evaluation.measures import Value
from bindweave.evaluation.video import WatchedVideo, chosen_frames, in_order, look_through
from wan_core import RequestError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

FRAMES = 32
"""How many frames of a video are looked at, as OpenS2V-Eval does."""


@dataclass(frozen=True)
class Tools:
    """What videos are measured with: ``encoders`` by the names that their measures begin with, ``faces`` and the
    ``aesthetic`` head where there are any, ``frames`` of each video. The head is on the vectors of ``aesthetic_on``."""

    encoders: Mapping[str, ImageEncoder] = field(default_factory=dict)
    faces: FaceEncoder | None = None
    aesthetic: AestheticHead | None = None
    aesthetic_on: str = ""
    frames: int = FRAMES


def measure(case: SampleVideo, tools: Tools) -> tuple[WatchedVideo, dict[str, Value]]:
    """What was seen of a case's video, and its measures by name; None for one that cannot be measured.

    Raises RequestError, MediaError, BackendError.
    """
    from wan_core.media import load_image

    references = [load_image(path) for path in case.references]
    seen = look_through(case.video, tools.frames)
    frames, indices = in_order(seen.frames), sorted(seen.frames)
    # A frame of a short video stands several times, and counts as often.
    order = [indices.index(each) for each in chosen_frames(seen.num_frames, tools.frames)]
    values = dict(seen.motion.values())
    for name, encoder in tools.encoders.items():
        vectors = unit(encoder.embed_images(frames))
        values[f"{name}_consistency"] = consistency(vectors)
        if references:
            values[f"{name}_subject"] = subject(unit(encoder.embed_images(references)), vectors[order])
        if isinstance(encoder, TextImageEncoder):
            text = unit(encoder.embed_texts([case.prompt]))
            values[text_measure(name, encoder)] = float((vectors[order] @ text[0]).mean())
        if tools.aesthetic is not None and name == tools.aesthetic_on:
            scores = tools.aesthetic(vectors[order])
            values[aesthetic_measure(tools.aesthetic, encoder)] = float(scores.mean())
    if tools.faces is not None:
        values |= face_measures(tools.faces, references, [frames[each] for each in order])
    return seen, values


def text_measure(name: str, encoder: TextImageEncoder) -> str:
    """The benchmark's name for the encoder that it uses, else our own."""
    return "gme_score" if isinstance(encoder, GME) and encoder.is_benchmark else f"{name}_text"


def aesthetic_measure(head: AestheticHead, encoder: ImageEncoder) -> str:
    """The benchmark's name for its tower and head, else our own."""
    is_theirs = head.is_released and isinstance(encoder, TwoHalves) and encoder.is_aesthetic_tower
    return "aesthetic" if is_theirs else "aesthetic_head"


def unit(vectors: Array) -> Array:
    """Vectors [N, D] at length 1; one of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)


def subject(references: Array, frames: Array) -> float:
    """The mean cosine, -1 to 1, of each reference with each frame, all of unit length.

    With one reference this is CLIP-I or DINO-I of DreamBooth (Ruiz et al. 2023). Whole frames are compared, so of
    several subjects none reaches 1.
    """
    return float((references @ frames.T).mean())


def consistency(frames: Array) -> float | None:
    """How alike the frames are, 0 to 1: VBench's subject consistency (Huang et al. 2024), there of all frames and DINO.

    The mean over frames after the first of the cosines with the first and with the one before; negative ones count 0.
    """
    if len(frames) < 2:
        return None
    first = np.maximum(frames[1:] @ frames[0], 0)
    before = np.maximum((frames[1:] * frames[:-1]).sum(axis=1), 0)
    return float(((first + before) / 2).mean())


def face_measures(faces: FaceEncoder, references: Iterable[Image], frames: Sequence[Image]) -> dict[str, Value]:
    """``face_similarity``, 0 to 1, and ``face_found``; None without a face in the references.

    Of each reference's largest face, the largest cosine with a face of a frame, negative ones as 0, averaged over the
    frames in which there is a face, 0 without such; the mean over references. ``face_found`` is the share of frames in
    which there is one. OpenS2V-Eval's FaceSim is computed so for one person, with CurricularFace, and leaves zeros out.
    """
    wanted = [face for each in references if (face := faces.embed_main_face(each)) is not None]
    if not wanted:
        return {"face_similarity": None, "face_found": None}
    found: dict[int, Array] = {}  # a frame that stands several times is looked at once
    for frame in frames:
        if id(frame) not in found:
            found[id(frame)] = faces.embed_faces(frame)
    with_face = [unit(found[id(frame)]) for frame in frames if len(found[id(frame)])]
    rows = unit(np.stack(wanted))
    per_frame = [np.maximum((rows @ vectors.T).max(axis=1), 0) for vectors in with_face]
    return {
        "face_similarity": float(np.mean(per_frame)) if per_frame else 0.0,
        "face_found": len(with_face) / len(frames),
    }


def open_tools(places: Mapping[str, Path], head: Path | None, frames: int, device: torch.device | str) -> Tools:
    """The encoders of ``places`` by name, and the aesthetic predictor of the file ``head``, on a device.

    Raises RequestError for two folders of faces and a head that fits no encoder of texts and pictures, CheckpointError,
    ConfigError.
    """
    opened = {name: open_encoder(place, device) for name, place in places.items()}
    faces = {name: each for name, each in opened.items() if isinstance(each, FaceEncoder)}
    encoders = {name: each for name, each in opened.items() if not isinstance(each, FaceEncoder)}
    if len(faces) > 1:
        raise RequestError(f"{' and '.join(faces)} are both recognisers of faces; give one")
    aesthetic, on = None, ""
    if head is not None:
        aesthetic = AestheticHead(head)
        fitting = [n for n, each in encoders.items() if isinstance(each, TwoHalves) and each.dim == aesthetic.dim]
        if not fitting:
            raise RequestError(
                f"the aesthetic head takes vectors of {aesthetic.dim} numbers, and no encoder given is a CLIP of such; "
                "give --encoder clip=FOLDER of openai/clip-vit-large-patch14"
            )
        on = fitting[0]
    return Tools(encoders, next(iter(faces.values()), None), aesthetic, on, frames)
