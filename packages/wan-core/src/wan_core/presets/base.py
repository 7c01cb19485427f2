"""What a preset is: a model as values - its parts with their dims, a task, sampling defaults."""

from dataclasses import dataclass, replace
from typing import Any

from wan_core.checkpoints import CLIP, DIT, TOKENIZER, UMT5, VAE, Family, Part
from wan_core.errors import RequestError
from wan_core.media import LatentSpec
from wan_core.models import UMT5_XXL, CLIPConfig, VAEConfig, WanDiTConfig
from wan_core.tasks import Experts, GenerationRequest, SamplingDefaults, SamplingSettings, Task, TaskInputs

NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
"""The negative prompt that the official Wan models were tuned with; used when a request gives none."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One model, as plain values. Variants are made with ``dataclasses.replace`` and :meth:`with_part`.

    ``parts`` are what it is made of: ``dit`` (one, or one for each expert), ``vae``, ``text_encoder``, ``tokenizer``,
    where needed ``image_encoder``, and any further ones, which a task asks its components for by name. ``boundary`` is
    the share of the 1000 training timesteps above which the high-noise expert works; ``sizes`` are the (width, height)
    the model was trained for, and ``shifts`` the flow shift of such a size where it is not the model's usual one;
    ``tea_cache`` are the coefficients of its step cache, empty where none are known;
    ``repository`` is where its weights are published; ``bundled`` is the folder of weights inside the package, for
    models that need no download. For people: ``disk_gb`` is the size of the download, ``besides`` a sentence on what is
    published elsewhere, ``world`` one on what a model of few words knows.
    """

    name: str
    summary: str
    task: Task[Any, Any]
    parts: tuple[Part, ...]
    sampling: SamplingDefaults
    sizes: tuple[tuple[int, int], ...]
    shifts: tuple[tuple[tuple[int, int], float], ...] = ()
    boundary: float | None = None
    tea_cache: tuple[float, ...] = ()
    repository: str | None = None
    bundled: str | None = None
    disk_gb: float = 0.0
    besides: str = ""
    world: str = ""

    @property
    def part_names(self) -> tuple[str, ...]:
        """What parts there are; two experts are one name."""
        return tuple(dict.fromkeys(part.name for part in self.parts))

    def part(self, name: str) -> Part:
        """The part called ``name``, the high-noise one of two experts. Raises KeyError where the model has none."""
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(f"{self.name} has no part {name}")

    def with_part(self, name: str, **changes: Any) -> "Preset":
        """The same model with other values in the parts called ``name``. Raises KeyError where there are none."""
        self.part(name)
        return replace(self, parts=tuple(replace(p, **changes) if p.name == name else p for p in self.parts))

    @property
    def dits(self) -> tuple[Part, ...]:
        """The denoising network, or both experts, high first."""
        return tuple(part for part in self.parts if part.name == "dit")

    @property
    def dit(self) -> WanDiTConfig:
        """Dims of the denoising network."""
        config: WanDiTConfig = self.part("dit").config
        return config

    @property
    def vae(self) -> VAEConfig:
        """Dims of the autoencoder."""
        config: VAEConfig = self.part("vae").config
        return config

    @property
    def latent_spec(self) -> LatentSpec:
        """The latent space: channels and strides of the VAE, patch of the DiT."""
        return LatentSpec(
            channels=self.vae.z_dim,
            temporal_stride=self.vae.temporal_stride,
            spatial_stride=self.vae.spatial_stride,
            patch_size=self.dit.patch_size,
        )

    def settings_of(self, request: GenerationRequest) -> SamplingSettings:
        """The settings of a request, checked, what is open from this model's own. Raises ``RequestError``."""
        size = request.width or self.sampling.width, request.height or self.sampling.height
        shift = dict(self.shifts).get(size, self.sampling.flow_shift)
        return request.sampling(replace(self.sampling, flow_shift=shift))

    def plan(self, request: GenerationRequest, latent_spec: LatentSpec | None = None) -> TaskInputs[Any]:
        """Fill in the defaults, read and check the user's files; no weight is touched, so nothing here needs a device.

        ``latent_spec`` is that of loaded weights, where it differs. Raises ``RequestError`` or ``MediaError``.
        """
        wanted = self.task.request_type
        if not isinstance(request, wanted):
            raise TypeError(f"{self.name} needs a {wanted.__name__}, got {type(request).__name__}")
        if isinstance(request.guidance_scale, Experts) and not self.has_experts:
            raise RequestError(f"{self.name} is one network and takes one guidance_scale, got a low and a high one")
        inputs: TaskInputs[Any] = self.task.load(request, self.settings_of(request), latent_spec or self.latent_spec)
        return inputs

    @property
    def has_experts(self) -> bool:
        """Whether two networks share the work by noise level."""
        return len(self.dits) == 2


def wan_parts(
    dit: WanDiTConfig, vae: VAEConfig, *, experts: bool = False, image_encoder: CLIPConfig | None = None
) -> tuple[Part, ...]:
    """The parts of a published model, where its checkpoint folder has them."""
    if experts:
        dits = tuple(
            Part(name="dit", family=DIT, file=f"{e}_noise_model", config=dit, expert=e) for e in ("high", "low")
        )
    else:
        dits = (Part(name="dit", family=DIT, config=dit),)
    clip = () if image_encoder is None else (_official("image_encoder", CLIP, image_encoder),)
    tokenizer = Part(name="tokenizer", family=TOKENIZER, file="google/umt5-xxl")
    return (*dits, _official("vae", VAE, vae), _official("text_encoder", UMT5, UMT5_XXL), tokenizer, *clip)


def _official(name: str, family: Family, config: Any) -> Part:
    return Part(name=name, family=family, file=family.where.official(config, None), config=config)
