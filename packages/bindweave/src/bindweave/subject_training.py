"""Learning subjects: what the references and states of a clip become in a cache of examples, and in a batch.

BindWeave was trained by flow matching on the video alone; reference frames stand in front of it at the same timestep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindweave.families import CONNECTOR_PART, no_connector
from bindweave.request import MAX_REFERENCES
from wan_core import CheckpointError, RequestError
from wan_core.files import IMAGE_ENDINGS, plain_text
from wan_core.media import LatentSpec, VideoGeometry
from wan_core.tasks import Companion, Components, ExampleFiles, TrainingClip

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bindweave.dit import BindWeaveInputs

REFERENCES, STATES = "references", "states"
"""Names of an example's further files: ``CLIP.references`` or ``CLIP.references.png``, ``CLIP.states.safetensors``."""

SUBJECT_FILES: Mapping[str, Sequence[str]] = {
    REFERENCES: (*IMAGE_ENDINGS, ""),  # one picture, or a folder of them
    STATES: (".safetensors", ".pt"),
}

EMPTY_STATES = "empty_states"
"""In a cached example: the states of the same pictures without a prompt, for samples without caption."""


def empty_states_file(states: Path) -> Path:
    """Where the states of the empty prompt lie: beside those of the caption."""
    return states.with_name(f"{states.stem}_empty{states.suffix}")


def check_subjects(beside: ExampleFiles) -> None:
    """Open an example's pictures and states. Raises RequestError, MediaError, CheckpointError."""
    from bindweave.subjects import chosen_subjects

    chosen_subjects(beside.paths[REFERENCES])
    _read_states(beside)


def encode_subjects(clip: TrainingClip, components: Components, spec: LatentSpec, mllm_dim: int) -> dict[str, Tensor]:
    """What training reads of a clip's subjects, on the device of the run.

    ``channels`` [4 + C, 4 + T, h, w] are those of the reference frames and of the video behind them, ``image``
    [4 * tokens, dim] the CLIP states, ``states`` and perhaps ``empty_states`` [S, dim]; a new connector takes those of
    width ``mllm_dim``. Raises as `check_subjects`, and CheckpointError for states of another width than the network's.
    """
    import torch

    from bindweave.references import clip_tokens, reference_frames
    from bindweave.subjects import chosen_subjects, scattered, seeded

    if clip.beside is None:
        raise RequestError("this model learns from clips with references and states, and this one has none")
    place = clip.beside.paths[REFERENCES]
    geometry, device = clip.geometry(spec), components.device
    rng = seeded(f"{place.name}/{clip.beside.start}")
    shown = [scattered(each, geometry.width, geometry.height, rng) for each in chosen_subjects(place)]
    with components.part("image_encoder").active() as encoder:
        tokens = clip_tokens(shown, encoder, MAX_REFERENCES, device)
    with components.vae.active() as vae:
        frames = reference_frames(shown, vae, geometry.spec, MAX_REFERENCES, device)
    channels = torch.cat([frames, blank_channels(geometry, components)], dim=2)
    states = _read_states(clip.beside)
    for each in states.values():
        check_width(each.shape[1], components, clip.beside.paths[STATES], mllm_dim)
    return {"channels": channels[0], "image": tokens[0], **states}


def blank_channels(geometry: VideoGeometry, components: Components) -> Tensor:
    """Channels [1, 4 + C, T, h, w] of the video itself, which all videos of its size share."""
    from bindweave.references import blank_video

    def blank() -> Tensor:
        with components.vae.active() as vae:
            return blank_video(vae, geometry, components.device)

    return components.once("blank video", geometry, blank)


def subject_inputs(batch: Mapping[str, Tensor], context: Tensor, networks: Mapping[str, nn.Module]) -> BindWeaveInputs:
    """The conditions of a batch: as many frames of ``channels`` as go before those of ``latents`` are references.

    A connector among the ``networks`` brings the states to the width of text, else the transformer does.
    """
    from bindweave.dit import BindWeaveInputs

    channels, states = batch["channels"], batch[STATES]
    count = channels.shape[2] - batch["latents"].shape[2]
    if CONNECTOR_PART.name in networks:
        states = networks[CONNECTOR_PART.name](states)
    return BindWeaveInputs(
        context=context,
        hidden_states=states,
        image_context=batch["image"],
        references=channels[:, :, :count],
        channel_concat=channels[:, :, count:],
    )


def uncaptioned(row: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """An example whose states say nothing of the caption: those of the empty prompt, or zeros of the same number."""
    states = row.get(EMPTY_STATES)
    return {**row, STATES: row[STATES].new_zeros(row[STATES].shape) if states is None else states}


def without_empty_states(row: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """An example as rows of a batch have it: all of the same names, whether or not there are states without prompt."""
    return {name: tensor for name, tensor in row.items() if name != EMPTY_STATES}


def connector_companion(components: Components, mllm_dim: int) -> Mapping[str, Companion]:
    """The connector to train beside a transformer that has none, or in place of its own where a part is given.

    A new one takes states of width ``mllm_dim`` and is drawn as torch draws linear layers, by torch's generator, never
    zero: of zeros nothing is learned. Raises CheckpointError for one of another text width.
    """
    import torch

    from bindweave.config import ConnectorConfig
    from bindweave.dit import Connector

    network = components.configs["dit"]
    if CONNECTOR_PART.name in components.parts:
        check_connector(components)
        connector: Any = components.part(CONNECTOR_PART.name).trainable(torch.float32)
        for parameter in connector.parameters():
            parameter.data = parameter.data.clone()  # a mapped file is not to be written to
        return {CONNECTOR_PART.name: Companion(network=connector)}
    if network.mllm_dim is not None:
        return {}
    return {CONNECTOR_PART.name: Companion(network=Connector(ConnectorConfig(dim=mllm_dim, text_dim=network.text_dim)))}


def check_connector(components: Components) -> None:
    """Whether there is a connector that fits. Raises CheckpointError."""
    network, connector = components.configs["dit"], components.configs.get(CONNECTOR_PART.name)
    if connector is None and network.mllm_dim is None:
        raise no_connector(components.found["dit"])
    if connector is not None and connector.text_dim != network.text_dim:
        raise CheckpointError(
            f"{components.found[CONNECTOR_PART.name]} makes text states of width {connector.text_dim}, this network "
            f"takes {network.text_dim}; they belong to different models"
        )


def check_width(width: int, components: Components, path: Path, new: int | None = None) -> None:
    """Whether states of this width fit connector and network; ``new`` is that of one that is still to be made.

    Raises CheckpointError.
    """
    network, connector = components.configs["dit"], components.configs.get(CONNECTOR_PART.name)
    wanted = (network.mllm_dim or new) if connector is None else connector.dim
    if wanted is not None and width not in ((wanted, network.text_dim) if connector is None else (wanted,)):
        raise CheckpointError(
            f"{plain_text(path)} has states of width {width}, this network takes {wanted}; they are of another "
            "language model"
        )


def _read_states(beside: ExampleFiles) -> dict[str, Tensor]:
    """The states of an example's caption and, where they are, of the empty prompt: [S, dim] each."""
    from bindweave.hidden_states import read_hidden_states

    path = beside.paths[STATES]
    found = {STATES: read_hidden_states(path)[0]}
    empty = empty_states_file(path)
    if empty.exists():
        found[EMPTY_STATES] = read_hidden_states(empty)[0]
        if found[EMPTY_STATES].shape[1] != found[STATES].shape[1]:
            raise CheckpointError(
                f"{plain_text(empty)} has states of width {found[EMPTY_STATES].shape[1]}, {path.name} of "
                f"{found[STATES].shape[1]}; extract both again"
            )
    return found
