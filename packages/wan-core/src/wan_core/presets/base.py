"""What a preset is: a model as values - network configs, a task, sampling defaults, file names."""

from collections.abc import Callable
from dataclasses import dataclass

from wan_core.media import LatentSpec
from wan_core.models import CLIPConfig, UMT5Config, VAEConfig, WanDiT, WanDiTConfig
from wan_core.tasks import Experts, SamplingDefaults, Task

NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
"""The negative prompt that the official Wan models were tuned with; used when a request gives none."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """Where the parts of a model lie inside its checkpoint folder; ``dit`` names folders, ``""`` is the root."""

    dit: str | Experts[str]
    vae: str
    text_encoder: str = "models_t5_umt5-xxl-enc-bf16.pth"
    tokenizer: str = "google/umt5-xxl"
    image_encoder: str | None = None


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One model, as plain values. Variants are made with ``dataclasses.replace``.

    ``boundary`` is the share of the 1000 training timesteps above which the high-noise expert works; ``sizes`` are
    the (width, height) the model was trained for; ``repository`` is where its weights are published; ``bundled`` is
    the folder of weights inside the package, for models that need no download. ``disk_gb`` is for people: the size of
    the download. ``adapt`` changes each transformer after its weights were read, such as its number of input channels.
    """

    name: str
    summary: str
    task: Task
    dit: WanDiTConfig
    vae: VAEConfig
    text_encoder: UMT5Config
    image_encoder: CLIPConfig | None = None
    sampling: SamplingDefaults
    files: CheckpointFiles
    sizes: tuple[tuple[int, int], ...]
    boundary: float | None = None
    repository: str | None = None
    bundled: str | None = None
    disk_gb: float = 0.0
    adapt: Callable[[WanDiT], WanDiT] | None = None

    @property
    def latent_spec(self) -> LatentSpec:
        """The latent space: channels and strides of the VAE, patch of the DiT."""
        return LatentSpec(
            channels=self.vae.z_dim,
            temporal_stride=self.vae.temporal_stride,
            spatial_stride=self.vae.spatial_stride,
            patch_size=self.dit.patch_size,
        )

    @property
    def has_experts(self) -> bool:
        return isinstance(self.files.dit, Experts)
