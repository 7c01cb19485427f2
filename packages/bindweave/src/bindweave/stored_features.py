"""The samples that BindWeave's own feature extraction stored, as a cache to train on: ``bindweave import-features``.

A ``.pt`` file of one holds the video's latents, UMT5's and the language model's states with their masks, and the CLIP
and VAE features of references and grey video. Nothing in it is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindweave.request import MAX_REFERENCES
from bindweave.steps import digest_of
from bindweave.subject_training import STATES, check_width
from wan_core import CheckpointError, RequestError
from wan_core.checkpoints import read_weights
from wan_core.files import folder_files, natural_order, plain_text, sample_file
from wan_core.training import describe_conditions, write_cache

if TYPE_CHECKING:
    from torch import Tensor

    from wan_core.checkpoints import TensorSource
    from wan_core.pipeline import Pipeline

# The file's names, and how many dimensions each tensor has without those of 1 in front.
_SIDES = {
    "video": 4, "prompt_ids": 2, "prompt_mask": 1, "hidden_states": 2, "hidden_states_mask": 1, "i2v_clip_feature": 2,
    "i2v_vae_feature": 4,
}  # fmt: skip


def import_features(
    folder: Path, output: Path, pipeline: Pipeline, *, fps: float, report: Callable[[int], None] | None = None
) -> Path:
    """Make a cache of all ``.pt`` and ``.safetensors`` files in a folder, going on where an earlier run stopped.

    ``pipeline`` is the model to train: its text encoder makes the states of the empty caption, once. All files are
    looked at before anything is written. Raises RequestError for a folder without any, CheckpointError for a file that
    is no such sample or of another model.
    """
    files = sorted(folder_files(folder, (".pt", ".safetensors")), key=natural_order) if folder.is_dir() else []
    if not files:
        raise RequestError(
            f"{plain_text(folder)} holds no stored samples; they are .pt files of BindWeave's extraction"
        )
    frames = {_check(path, pipeline) for path in files}
    if len(frames) > 1:
        counts = " and ".join(map(str, sorted(frames)))
        raise RequestError(
            f"the samples in {plain_text(folder)} have {counts} latent frames; keep those of one length apart"
        )

    @cache
    def empty() -> Tensor:
        with pipeline.components.text_encoder.active() as encode:
            states: Tensor = encode([""])[0]
        return states.cpu()

    settings = {
        **describe_conditions(pipeline),
        "num_frames": (frames.pop() - 1) * pipeline.latent_spec.temporal_stride + 1,
        "fps": fps,
        "pictures": False,
        "examples": digest_of([[path.name, sample_file(path)] for path in files])[:16],
        "made_by": "bindweave import-features",
    }
    return write_cache(
        output, len(files), lambda number: {**read_stored(files[number]), "empty": empty()}, settings, report=report
    )


def read_stored(path: Path) -> dict[str, Tensor]:
    """The tensors of a stored sample as `wan_core.training` caches them; text and states without their padding.

    Raises CheckpointError for values that are not finite, and RequestError for hidden states with padding.
    """
    from bindweave.dit import count_tokens

    source = read_weights(path)
    found = {name: _plain(source.read(name), sides) for name, sides in _SIDES.items()}
    count_tokens(found["hidden_states_mask"][None], found["prompt_mask"][None])
    length = int((found["prompt_mask"] != 0).sum())
    if length and not bool((found["prompt_mask"][:length] != 0).all()):
        raise RequestError(f"{plain_text(path)}: prompt_mask has a gap; padding is at the end")
    tensors = {
        "latents": found["video"].half(),
        "context": found["prompt_ids"][: max(1, length)],
        "channels": found["i2v_vae_feature"].half(),
        "image": found["i2v_clip_feature"].half(),
        STATES: found["hidden_states"].half(),
    }
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{plain_text(path)}: {name} has values that are not finite; store the sample again")
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _check(path: Path, pipeline: Pipeline) -> int:
    """The latent frames of a stored sample that fits the model, by its header. Raises CheckpointError."""
    source = read_weights(path)
    missing = [name for name in _SIDES if name not in source]
    if missing:
        raise CheckpointError(f"{plain_text(path)} is no stored sample of BindWeave: it has no {', '.join(missing)}")
    shapes = {name: _shape(source, name, sides) for name, sides in _SIDES.items()}
    components, spec = pipeline.components, pipeline.latent_spec
    network = components.configs["dit"]
    depth, frames, *sides = shapes["video"]
    check_width(shapes["hidden_states"][1], components, path)
    wanted: Mapping[str, Any] = {
        "video": (spec.channels, frames, *sides),
        "prompt_ids": (shapes["prompt_mask"][0], network.text_dim),
        "hidden_states_mask": (shapes["hidden_states"][0],),
        "i2v_clip_feature": (MAX_REFERENCES * network.image_tokens, network.image_dim),
        "i2v_vae_feature": (network.in_dim - depth, MAX_REFERENCES + frames, *sides),
    }
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise CheckpointError(
                f"{plain_text(path)}: {name} is {list(shapes[name])}, this model and the other tensors want "
                f"{list(shape)}"
            )
    return frames


def _shape(source: TensorSource, name: str, sides: int) -> tuple[int, ...]:
    shape = tuple(source.info(name).shape)
    extra = len(shape) - sides
    if extra < 0 or any(side != 1 for side in shape[:extra]) or 0 in shape:
        raise CheckpointError(f"{plain_text(source.path)}: {name} has shape {list(shape)}; {sides} sides are wanted")
    return shape[extra:]


def _plain(tensor: Tensor, sides: int) -> Tensor:
    return tensor.reshape(tensor.shape[tensor.ndim - sides :])
