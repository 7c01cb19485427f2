"""Subject to video: reference pictures as latent frames and CLIP tokens, a language model's states before the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bindweave.config import MLLM_DIM
from bindweave.families import CONNECTOR_PART
from bindweave.request import MAX_REFERENCES, SubjectRequest
from bindweave.subject_training import (
    STATES,
    SUBJECT_FILES,
    blank_channels,
    check_connector,
    check_subjects,
    check_width,
    connector_companion,
    encode_subjects,
    subject_inputs,
    uncaptioned,
    without_empty_states,
)
from wan_core import CheckpointError, RequestError, media
from wan_core.files import plain_text
from wan_core.media import LatentSpec
from wan_core.tasks import (
    Clip,
    Companion,
    Components,
    Conditioning,
    ExampleFiles,
    Experts,
    GenerationRequest,
    SamplingSettings,
    Task,
    TaskInputs,
    TrainingClip,
    exact_geometry,
    text_states,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bindweave.dit import BindWeaveInputs
    from wan_core.models import WanDiTConfig


@dataclass(frozen=True, kw_only=True)
class SubjectInputs(TaskInputs[SubjectRequest]):
    """``pictures`` are those that are used; a batch of requests is planned at once, so they are opened when needed."""

    pictures: tuple[Path, ...]


class SubjectToVideo(Task[SubjectRequest, SubjectInputs]):
    """BindWeave: who or what is in the pictures appears in the video of the prompt.

    In training a batch has what ``subject_training`` makes of a clip, its references and states; a connector that the
    transformer lacks is trained beside, and takes states of width ``mllm_dim`` where it is new.
    """

    request_type: ClassVar[type[GenerationRequest]] = SubjectRequest
    prompt_kind: ClassVar[str] = ""  # states of a language model belong to the prompt; bindweave refine comes first
    conditions: ClassVar[str | None] = "bindweave"
    example_files: ClassVar[Mapping[str, Sequence[str]]] = SUBJECT_FILES
    mixed_lengths: ClassVar[tuple[str, ...]] = (STATES,)
    further_frames: ClassVar[int] = MAX_REFERENCES
    trained_parts: ClassVar[tuple[str, ...]] = (CONNECTOR_PART.name,)

    def __init__(self, *, mllm_dim: int = MLLM_DIM) -> None:
        self.mllm_dim = mllm_dim
        self._connector: nn.Module | None = None

    def load(self, request: SubjectRequest, settings: SamplingSettings, latent_spec: LatentSpec) -> SubjectInputs:
        from bindweave.references import fitted_box

        if _is_guided(settings) and request.hidden_states_negative is None:
            raise RequestError(
                "guidance needs the states of the negative prompt: --hidden-states-negative FILE, which 'bindweave "
                "extract' writes too; or --sample-guide-scale 1"
            )
        self.check_states(request)
        if request.schedule != "wan" and settings.solver != "unipc":
            raise RequestError(f"--schedule is UniPC's; leave it out, or {settings.solver} as --sample-solver")
        geometry = exact_geometry(settings, latent_spec)
        kept, rest = request.images[:MAX_REFERENCES], request.images[MAX_REFERENCES:]
        for path in kept:
            fitted_box(*media.load_image(path).size, geometry.width, geometry.height)
        ignored = ", ".join(plain_text(path.name) for path in rest)
        notes = (f"{MAX_REFERENCES} pictures are used; left out: {ignored}",) if rest else ()
        return SubjectInputs(request=request, settings=settings, geometry=geometry, pictures=kept, notes=notes)

    def check_states(self, request: SubjectRequest) -> None:
        """Raises RequestError for states that are not there."""
        for option in ("hidden_states", "hidden_states_negative"):
            path = getattr(request, option)
            if path is not None and not path.exists() and not path.with_suffix(".safetensors").exists():
                raise RequestError(f"--{option.replace('_', '-')}: there is no file {plain_text(path)}")

    def check(self, inputs: SubjectInputs, components: Components) -> SubjectInputs:
        if self._connector is None:
            check_connector(components)
        for path in _state_files(inputs):
            _states(path, components)
        return inputs

    def condition(self, inputs: SubjectInputs, components: Components, clip: Clip) -> Conditioning:
        from bindweave.dit import BindWeaveInputs

        context, negative = text_states(inputs, components)
        tokens, frames, blank = self._seen(inputs, components)

        def branch(text: Tensor, states: Path) -> BindWeaveInputs:
            return BindWeaveInputs(
                context=text,
                hidden_states=self._projected(_states(states, components).to(components.device), components),
                image_context=tokens,
                channel_concat=blank,
                references=frames,
                all_in_branch=inputs.request.all_in_branch,
            )

        files = _state_files(inputs)
        return Conditioning(
            positive=branch(context, files[0]),
            negative=None if negative is None else branch(negative, files[1]),
            latent_shape=(1, *inputs.geometry.latent_shape),
            solver_options={} if inputs.request.schedule == "wan" else {"grid": inputs.request.schedule},
        )

    def channels(self, latent_spec: LatentSpec) -> tuple[int, int]:
        return 2 * latent_spec.channels + latent_spec.temporal_stride, latent_spec.channels

    def tokens_at_once(self, inputs: SubjectInputs) -> int:
        return inputs.geometry.num_tokens + MAX_REFERENCES * inputs.geometry.tokens_per_frame

    def context_tokens(self, inputs: SubjectInputs, network: WanDiTConfig) -> int:
        from bindweave.hidden_states import count_states

        states = 0
        for path in _state_files(inputs):
            with suppress(CheckpointError):  # told where they are read
                states = max(states, count_states(path))
        return network.text_len + states + MAX_REFERENCES * network.image_tokens

    def describe(self, inputs: SubjectInputs) -> Mapping[str, object]:
        return {**super().describe(inputs), "references": len(inputs.pictures)}

    def _seen(self, inputs: SubjectInputs, components: Components) -> tuple[Tensor, Tensor, Tensor]:
        """CLIP tokens, channels of the reference frames, and those of the video, which all videos of its size share."""
        from bindweave.references import clip_tokens, letterbox, reference_frames

        geometry, device = inputs.geometry, components.device

        def encode() -> tuple[Tensor, Tensor]:
            images = map(media.load_image, inputs.pictures)
            references = [letterbox(image, geometry.width, geometry.height) for image in images]
            with components.part("image_encoder").active() as encoder:
                tokens = clip_tokens(references, encoder, MAX_REFERENCES, device)
            with components.vae.active() as vae:
                return tokens, reference_frames(references, vae, geometry.spec, MAX_REFERENCES, device)

        tokens, frames = components.once("references", (inputs.pictures, geometry), encode)
        return tokens, frames, blank_channels(geometry, components)

    def _projected(self, states: Tensor, components: Components) -> Tensor:
        """The states through a connector beside the network, where there is one."""
        if self._connector is not None:
            return _through(self._connector, states)
        if CONNECTOR_PART.name not in components.parts:
            return states
        with components.part(CONNECTOR_PART.name).active() as connector:
            return _through(connector, states)

    def check_files(self, beside: ExampleFiles, num_frames: int) -> None:
        check_subjects(beside)

    def encode_example(
        self, clip: TrainingClip, components: Components, latent_spec: LatentSpec
    ) -> Mapping[str, Tensor]:
        return encode_subjects(clip, components, latent_spec, self.mllm_dim)

    def unpack_example(self, row: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return without_empty_states(row)

    def without_caption(self, row: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return uncaptioned(row)

    def training_inputs(
        self, batch: Mapping[str, Tensor], context: Tensor, networks: Mapping[str, nn.Module]
    ) -> BindWeaveInputs:
        return subject_inputs(batch, context, networks)

    def companions(self, components: Components) -> Mapping[str, Companion]:
        return connector_companion(components, self.mllm_dim)

    def using(self, networks: Mapping[str, nn.Module]) -> SubjectToVideo:
        task = copy(self)
        task._connector = networks.get(CONNECTOR_PART.name)
        return task

    def validation_request(self, prompt: str, images: Sequence[Path], **settings: Any) -> GenerationRequest:
        raise RequestError(
            "a validation prompt has no states of the language model; give samples that have with 'bindweave train "
            "--validation-samples', or leave --validation-prompt out"
        )


def _is_guided(settings: SamplingSettings) -> bool:
    scale = settings.guidance_scale
    return isinstance(scale, Experts) or scale != 1


def _state_files(inputs: SubjectInputs) -> tuple[Path, ...]:
    """The files that this request's branches need: of the prompt, then of the negative one."""
    files = inputs.request.hidden_states, inputs.request.hidden_states_negative
    return tuple(path for path in files[: 1 + _is_guided(inputs.settings)] if path is not None)


def _states(path: Path, components: Components) -> Tensor:
    """The states [1, S, dim] in a file. Raises CheckpointError, also for those of another width than the network's."""
    from bindweave.hidden_states import read_hidden_states

    states = read_hidden_states(path)
    check_width(states.shape[2], components, path)
    return states


def _through(connector: nn.Module, states: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        projected: Tensor = connector(states)
    return projected
