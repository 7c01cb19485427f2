"""What a task is: it turns a request into data (a :class:`Conditioning`); the one sampling loop does the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from wan_core import models
from wan_core.errors import RequestError
from wan_core.files import hash_file
from wan_core.media import LatentSpec, VideoGeometry
from wan_core.tasks.conditioning import Conditioning, Outline
from wan_core.tasks.learning import Companion, ExampleFiles, TrainingClip
from wan_core.tasks.prompts import PromptCache
from wan_core.tasks.request import Experts, GenerationRequest, SamplingSettings, Value, content_hashes, plain

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from wan_core.media import AudioTrack
    from wan_core.models import CLIPVision, DiTInputs, TextEncoder, Tokenizer, VideoVAE, WanDiT, WanDiTConfig
    from wan_core.runtime import Placed

Log = Callable[[str], None]
"""Takes a sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class Components:
    """The parts of a model, each loading itself at first use.

    ``parts`` by name, ``dit`` being one network or two experts; ``configs`` are the dims that their files tell;
    ``found`` is the file or folder of each, or the repository that it is still to be fetched from; ``tokenizer`` is
    that of the text encoder; ``loras`` are merged into the network. Tensors of a :class:`Conditioning` are built on
    ``device``.
    """

    device: torch.device
    parts: Mapping[str, Any]
    configs: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, Path | str] = field(default_factory=dict)
    loras: tuple[Path, ...] = ()
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

    Of one whose latents were there already they are the outline alone.

    Of a task that does not stream it also has the frames of that one, [B, 3, T, H, W] in [-1, 1].
    """

    index: int = 0
    previous_frames: Tensor | None = None
    previous: Outline | None = field(default=None, repr=False)


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
        filled = {f.name: plain(getattr(self.settings, f.name)) for f in fields(self.settings)}
        return {**self.request.record(), **filled}

    @property
    def files(self) -> Mapping[str, Path]:
        """Files that were read and that no field of the request names, by name."""
        return {}

    def contents(self) -> dict[str, str | list[str]]:
        """What was read, by content: see :func:`content_hashes`, and the same of `files`. Raises as that does."""
        return {**content_hashes(self.request), **{name: hash_file(path)[:16] for name, path in self.files.items()}}


@dataclass(frozen=True, kw_only=True)
class GeneratedClip:
    """A clip on its way out: denoised ``latents`` [1, C, T, h, w] and its ``frames`` in chunks [3, t, H, W].

    Where the latents were there already, of several clips, ``conditioning`` is the outline alone.
    """

    conditioning: Outline
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

    def outline(self, inputs: InputsT, components: Components, clip: Clip) -> Outline:
        """What `condition` says of a clip but for what the network sees: enough where its latents are there already.

        Tasks of several clips that do not stream leave out here what denoising alone needs.
        """
        return self.condition(inputs, components, clip)

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

    def tokens_at_once(self, inputs: InputsT) -> int:
        """The tokens of the largest forward of the network, those beside the video's included."""
        return inputs.geometry.num_tokens

    def context_tokens(self, inputs: InputsT, network: WanDiTConfig) -> int:
        """The tokens that cross-attention sees, for the memory of their keys: of text, and of images where it has them.

        ``network`` are the dims that its files tell.
        """
        return network.text_len + (network.image_tokens if network.image_dim is not None else 0)

    def kept_bytes(self, inputs: InputsT, network: WanDiTConfig, itemsize: int) -> int:
        """Memory of what a network of these dims remembers, for ``--dry-run``; ``itemsize`` bytes a number."""
        return 0

    def finish(self, conditioning: Conditioning, components: Components) -> Conditioning:
        """The conditions of a clip with what its network makes of them once: asked for where it is denoised next.

        The network is left where :meth:`.Placed.module` puts it.
        """
        return conditioning

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
            "tokens": self.tokens_at_once(inputs),
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
