"""What a task is: it turns a request into data (a :class:`Conditioning`); the one sampling loop does the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from wan_core import models
from wan_core.errors import RequestError
from wan_core.files import damage_of
from wan_core.media import LatentSpec, VideoGeometry
from wan_core.sampling import SOLVERS
from wan_core.tasks.conditioning import Conditioning
from wan_core.tasks.learning import Companion, ExampleFiles, TrainingClip
from wan_core.tasks.prompts import PromptCache

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from wan_core.media import AudioTrack
    from wan_core.models import CLIPVision, DiTInputs, TextEncoder, Tokenizer, VideoVAE, WanDiT, WanDiTConfig
    from wan_core.runtime import Placed

Value = TypeVar("Value")

Log = Callable[[str], None]
"""Takes a sentence for the user."""

_RANGES: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "num_inference_steps": (1, 1000),
    "flow_shift": (0.001, 1000),
    "fps": (1, 240),
}


@dataclass(frozen=True, kw_only=True)
class Experts(Generic[Value]):
    """A value for the high-noise and one for the low-noise expert of a two-expert model."""

    high: Value
    low: Value


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """A model's own settings; a request that leaves one open gets it from here. Sizes in pixels."""

    num_frames: int
    fps: int
    width: int
    height: int
    num_inference_steps: int
    flow_shift: float
    guidance_scale: float | Experts[float]
    negative_prompt: str
    solver: str = "unipc"


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(SamplingDefaults):
    """The settings of one video: a request's own where it has them, else the model's. Nothing is open."""

    seed: int


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What a user asks for. ``None`` means the model's default; ``negative_prompt=""`` means an empty one.

    ``width`` and ``height`` are pixels (image tasks: the area they span); ``guidance_scale`` is one number or one
    per expert; ``seed`` is a non-negative integer. Fields that a subclass adds become command-line options when
    their metadata has ``option`` (the option names) and ``help``; further metadata:

    - ``parse``, ``metavar``: the function that reads the option's text (raising ``RequestError``), and its name in help
    - ``output``: the field names a file to write, which several videos of one command number as they number theirs
    - ``part``: the field says where this part of the model comes from
    - ``recorded``: ``False`` keeps the field out of the record of how an output was made, as ``output`` does
    """

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: int | None = None
    num_inference_steps: int | None = None
    flow_shift: float | None = None
    guidance_scale: float | Experts[float] | None = None
    solver: str | None = None
    seed: int = 0

    def sampling(self, defaults: SamplingDefaults) -> SamplingSettings:
        """The settings of this request, checked; what is open comes from ``defaults``. Raises ``RequestError``."""
        if (self.width is None) != (self.height is None):
            raise RequestError("width and height belong together: give both or neither")
        self.validate()
        own = {f.name: getattr(self, f.name) for f in fields(SamplingSettings)}
        return SamplingSettings(**{name: getattr(defaults, name) if own[name] is None else own[name] for name in own})

    def validate(self) -> None:
        """Check the values that need no model. Raises ``RequestError``."""
        if not self.prompt.strip():
            raise RequestError("prompt is empty; describe the video, e.g. --prompt 'a cat surfs a wave'")
        for name in ("prompt", "negative_prompt"):
            damage = damage_of(getattr(self, name) or "")
            if damage is not None:
                raise RequestError(f"{name}, character {damage[0] + 1}: {damage[1]}; write it again in UTF-8")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RequestError(f"{name} must be {low} to {high}, got {value}")
        if self.solver is not None and self.solver not in SOLVERS:
            raise RequestError(f"solver must be one of {', '.join(SOLVERS)}, got {self.solver!r}")
        scales = self.guidance_scale
        for scale in (scales.high, scales.low) if isinstance(scales, Experts) else (scales,):
            if scale is not None and not 0 <= scale <= 100:
                raise RequestError(f"guidance_scale must be 0 to 100, got {scale}")

    def record(self) -> dict[str, Any]:
        """Every given value as plain JSON data, for the record kept with an output; files by name only."""
        kept = [f for f in fields(self) if f.metadata.get("recorded", True) and not f.metadata.get("output")]
        return {f.name: _plain(getattr(self, f.name)) for f in kept if getattr(self, f.name) is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Experts):
        return {"high": value.high, "low": value.low}
    if isinstance(value, Path):
        return value.name
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True, kw_only=True)
class Components:
    """The parts of a model, each loading itself at first use.

    ``parts`` by name, ``dit`` being one network or two experts; ``configs`` are the dims that their files tell;
    ``found`` is the file or folder of each, or the repository that it is still to be fetched from; ``tokenizer`` is
    that of the text encoder. Tensors of a :class:`Conditioning` are built on ``device``.
    """

    device: torch.device
    parts: Mapping[str, Any]
    configs: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, Path | str] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    prompt_cache: PromptCache = field(default_factory=PromptCache)
    _kept: dict[str, tuple[object, Any]] = field(default_factory=dict, repr=False)

    def once(self, what: str, key: object, make: Callable[[], Value]) -> Value:
        """What ``make`` gives, kept until another ``key`` is asked for: several videos of one image share it."""
        if what not in self._kept or self._kept[what][0] != key:
            self._kept[what] = (key, make())
        kept: Value = self._kept[what][1]
        return kept

    def lost_words(self, text: str) -> str:
        """The end of a prompt or caption that is beyond the length that the model reads; empty when all is read."""
        return "" if self.tokenizer is None else self.tokenizer.lost(text, self.configs["dit"].text_len)

    def unknown_words(self, text: str) -> list[str]:
        """The words of a prompt that the model has no token for."""
        return [] if self.tokenizer is None else self.tokenizer.unknown(text)

    def part(self, name: str) -> Placed[Any]:
        """The part called ``name``. Raises KeyError where the model has none."""
        part: Placed[Any] = self.parts[name]
        return part

    def with_part(self, name: str, part: Placed[Any] | Experts[Placed[Any]]) -> Components:
        """The same components with another part of that name."""
        return replace(self, parts={**self.parts, name: part}, _kept={})

    @property
    def dit(self) -> Placed[WanDiT] | Experts[Placed[WanDiT]]:
        """The denoising network, or both experts."""
        return self.parts["dit"]  # type: ignore[no-any-return]

    @property
    def networks(self) -> tuple[Placed[WanDiT], ...]:
        """The denoising network, or both experts, high first."""
        return (self.dit.high, self.dit.low) if isinstance(self.dit, Experts) else (self.dit,)

    @property
    def vae(self) -> Placed[VideoVAE]:
        """The video autoencoder."""
        return self.part("vae")

    @property
    def text_encoder(self) -> Placed[TextEncoder]:
        """Prompts to text states."""
        return self.part("text_encoder")

    @property
    def image_encoder(self) -> Placed[CLIPVision] | None:
        """Images to CLIP states, where the model has it."""
        return self.part("image_encoder") if "image_encoder" in self.parts else None


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip of a video: its index, and the conditions of the clip before, if any, with all that is remembered there.

    Of a task that does not stream it also has the frames of that one, [B, 3, T, H, W] in [-1, 1].
    """

    index: int = 0
    previous_frames: Tensor | None = None
    previous: Conditioning | None = field(default=None, repr=False)


RequestT = TypeVar("RequestT", bound=GenerationRequest)


@dataclass(frozen=True, kw_only=True)
class TaskInputs(Generic[RequestT]):
    """What :meth:`Task.load` read: the request, its settings, the geometry, and in subclasses the user's media.

    ``notes`` are sentences that the user should see before the work starts. A video with ``sound`` is written with it
    and ends no later.
    """

    request: RequestT
    settings: SamplingSettings
    geometry: VideoGeometry
    notes: tuple[str, ...] = ()
    sound: AudioTrack | None = field(default=None, repr=False)

    def record(self) -> dict[str, Any]:
        """The request with its settings filled in, as plain JSON data: what is kept with an output."""
        filled = {f.name: _plain(getattr(self.settings, f.name)) for f in fields(self.settings)}
        return {**self.request.record(), **filled}


@dataclass(frozen=True, kw_only=True)
class GeneratedClip:
    """A clip on its way out: denoised ``latents`` [1, C, T, h, w] and its ``frames`` in chunks [3, t, H, W]."""

    conditioning: Conditioning
    latents: Tensor
    frames: Iterator[Tensor]


InputsT = TypeVar("InputsT", bound=TaskInputs[Any])


class Task(ABC, Generic[RequestT, InputsT]):
    """A way of conditioning. Stateless; one instance serves any number of models.

    The first methods make videos; those from :meth:`encode_example` on are for training. ``conditions`` says in a cache
    of examples how they are conditioned; a task that cannot be trained has None. ``has_clean_frames``: leading latent
    frames may be given to the network as they are, at timestep 0. ``learns_from_images``: a single image may be a clip.
    ``example_files`` are files that each example needs besides, by name, with their endings ("" is a folder);
    ``mixed_lengths`` are tensors whose shapes differ among examples; ``further_frames`` stand beside a clip's latent
    ones. ``condition_dropout`` is the share of training samples that a batch marks as `DROPPED`; ``trained_parts`` are
    parts that are trained as `companions`, so no example is encoded with them. ``streams``: a clip goes on from what
    the one before it left, so networks, and the ``held_parts`` that were used, stay where they are between clips.
    """

    request_type: ClassVar[type[GenerationRequest]] = GenerationRequest
    prompt_kind: ClassVar[str] = "ti2v"  # how a language model extends prompts: as t2v, i2v, either, flf2v, s2v, not ""
    conditions: ClassVar[str | None] = None
    has_clean_frames: ClassVar[bool] = False
    learns_from_images: ClassVar[bool] = True
    example_files: ClassVar[Mapping[str, Sequence[str]]] = {}
    mixed_lengths: ClassVar[tuple[str, ...]] = ()
    further_frames: ClassVar[int] = 0
    condition_dropout: float = 0.0
    trained_parts: ClassVar[tuple[str, ...]] = ()
    streams: ClassVar[bool] = False
    held_parts: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def load(self, request: RequestT, settings: SamplingSettings, latent_spec: LatentSpec) -> InputsT:
        """Read and check the user's files; ``settings`` are the request's, filled in. No model is touched.

        Raises ``RequestError`` for impossible values and ``MediaError`` for unreadable files.
        """

    @abstractmethod
    def condition(self, inputs: InputsT, components: Components, clip: Clip) -> Conditioning:
        """Encode text and media into the data of one clip."""

    def check(self, inputs: InputsT, components: Components) -> InputsT:
        """The inputs as the parts that there are take them; no weight is read yet, and optional parts may be absent.

        Inputs that were checked stay as they are. Raises ``RequestError`` for a part that the request needs and that is
        not there, ``CheckpointError`` for one of another model.
        """
        return inputs

    def prompt_images(self, inputs: InputsT) -> Sequence[Any]:
        """Images (paths or Pillow's) that a language model sees with the prompt: by default the request's ``image``."""
        return [image for image in [getattr(inputs.request, "image", None)] if image is not None]

    def num_clips(self, inputs: InputsT) -> int:
        """How many clips make the video."""
        return 1

    def kept_bytes(self, inputs: InputsT, network: WanDiTConfig, itemsize: int) -> int:
        """Memory of what a network of these dims remembers, for ``--dry-run``; ``itemsize`` bytes a number."""
        return 0

    def report(self, inputs: InputsT, clip: GeneratedClip, log: Log) -> Iterator[Tensor]:
        """The frames of a clip on their way out, unchanged.

        A task may look at them, at the latents, and at what it found (in its own subclass of :class:`Conditioning`),
        write what the request asks for besides the video, and ``log`` sentences.
        """
        return clip.frames

    def noise_seed(self, seed: int, clip: Clip) -> int:
        """The seed of a clip's initial noise."""
        return seed + clip.index

    def channels(self, latent_spec: LatentSpec) -> tuple[int, int]:
        """(in_dim, out_dim) of a DiT for this task."""
        return latent_spec.channels, latent_spec.channels

    def takes(self, network: WanDiTConfig, usual: WanDiTConfig, latent_spec: LatentSpec) -> bool:
        """Whether a DiT of these dims serves this task, to refuse another model's weights; ``usual`` are the preset's.

        What decides are its channels and whether it has an image branch.
        """
        has_branch, wanted = network.image_dim is not None, usual.image_dim is not None
        return (network.in_dim, network.out_dim) == self.channels(latent_spec) and has_branch == wanted

    def describe(self, inputs: InputsT) -> Mapping[str, object]:
        """Shapes and counts for ``--dry-run``."""
        geometry = inputs.geometry
        return {
            "width": geometry.width,
            "height": geometry.height,
            "num_frames": geometry.num_frames,
            "latent_shape": [1, *geometry.latent_shape],
            "tokens": geometry.num_tokens,
            "clips": self.num_clips(inputs),
        }

    def encode_example(
        self, clip: TrainingClip, components: Components, latent_spec: LatentSpec
    ) -> Mapping[str, Tensor]:
        """What training reads of a clip besides ``latents``, ``context`` and ``empty``: tensors of any other names."""
        return {}

    def check_files(self, beside: ExampleFiles, num_frames: int) -> None:
        """Open the further files of an example whose clip has ``num_frames``, before long work.

        Raises ``RequestError`` or ``MediaError`` for what cannot be used.
        """

    def unpack_example(self, row: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A cached example with what `encode_example` packed as the tensors of a batch. Raises ``CheckpointError``."""
        return row

    def without_caption(self, row: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A cached example as one without caption, but for ``context``, which `training_inputs` gets empty."""
        return row

    def training_inputs(
        self, batch: Mapping[str, Tensor], context: Tensor, networks: Mapping[str, nn.Module]
    ) -> DiTInputs:
        """The conditions of stacked examples: ``batch`` has what `encode_example` gave with a leading dimension B.

        ``context`` [B, L, dim] are text states, ``networks`` the `companions`.
        """
        return models.DiTInputs(context=context)

    def clean_latents(self, batch: Mapping[str, Tensor], counts: Sequence[int], alone: Sequence[bool]) -> Tensor:
        """The latents [B, C, T, h, w] of a batch whose first ``counts`` frames are shown clean, as sampling shows them.

        ``alone``: frames after the first as if encoded on their own, where the batch has them. For tasks that have
        clean frames.
        """
        return batch["latents"]

    def companions(self, components: Components) -> Mapping[str, Companion]:
        """The networks that are trained beside the transformer, by name, new or as their files have them."""
        return {}

    def using(self, networks: Mapping[str, nn.Module]) -> Task[RequestT, InputsT]:
        """The same task with these companions."""
        return self

    def validation_request(self, prompt: str, images: Sequence[Path], **settings: Any) -> GenerationRequest:
        """The request for a video such as this task is trained on. Raises ``RequestError`` for too many images, or few.

        ``settings`` are fields that all requests have.
        """
        if images:
            raise RequestError("this model takes no image; leave --validation-image out")
        return self.request_type(prompt=prompt, **settings)
