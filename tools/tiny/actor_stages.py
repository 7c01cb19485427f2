"""Stages "scenes" and "act": segments of driving folders as the task conditions them, and a transformer that acts.

A training example is what the task itself makes of a written folder: its channels, pose latents and CLIP states, of a
first segment or of one that goes on from the frames before it, in the picture's scene or in the driving video's.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tools.tiny.actors import ACTORS_VERSION, EVALUATION_FRAMES, SIZE, training_scene, write_driving
from tools.tiny.dit_stage import stacked
from tools.tiny.family import load_bundled
from tools.tiny.vae_stage import split_optimizers, to_pixels
from tools.tiny.world import Video
from wan_core.models import AnimateDiT, AnimateInputs
from wan_core.pipeline import Pipeline
from wan_core.presets import get_preset
from wan_core.tasks import AnimateRequest, Clip
from wan_core.tasks.animate import Animate, AnimateConditioning, AnimateTaskInputs
from wan_core.training import Cache, NoiseLevels, make_flow_batch, write_cache

PRESET = get_preset("tiny-animate")
SEGMENT = PRESET.sampling.num_frames
"""Video frames of a segment."""
STRIDE = PRESET.latent_spec.temporal_stride
CELL = PRESET.latent_spec.spatial_stride
SCENES = 720
PARTS = (1, 4, 8)
"""Into how many parts the boxes of masks are cut."""
LEVELS = NoiseLevels(shift=3.0, std=1.2)
_EMPTY_TEXT, _NOISY_PAST = 0.1, 0.5
_NOISE = 0.1
_FIGURE_WEIGHT, _HEAD_WEIGHT = 2.0, 4.0
_START = 0.5  # how a new way in sees latents at first: as noisy ones, by so much


@dataclass(frozen=True)
class Lesson:
    """What training example ``number`` shows: six in ten move in the picture's scene, four in the driving video's; four
    in ten go on from ``overlap`` frames of the segment before."""

    number: int

    @property
    def replaced(self) -> bool:
        """Whether the actor takes the driver's place."""
        return self.number % 10 >= 6

    @property
    def index(self) -> int:
        """0 for a first segment, 1 for one that goes on."""
        return int(self.number % 10 in (4, 5, 8, 9))

    @property
    def overlap(self) -> int:
        """Frames that segments overlap by."""
        return 1 if self.number // 10 % 2 else 5

    @property
    def begin(self) -> int:
        """The first frame of the segment in the video."""
        return self.index * (SEGMENT - self.overlap)

    @property
    def frames(self) -> int:
        """Frames of the driving video."""
        return EVALUATION_FRAMES if self.index else SEGMENT


def as_pixels(video: Video) -> Tensor:
    """[F, H, W, 3] uint8 as a video [1, 3, F, H, W] in [-1, 1]."""
    return to_pixels([video])


@torch.inference_mode()
def encode_lesson(pipeline: Pipeline, number: int) -> dict[str, Tensor]:
    """The tensors of one example.

    ``latents`` [24, 1 + T, 8, 8] to be made, the reference first; ``channels`` [28, 1 + T, 8, 8]; ``poses``
    [24, T, 8, 8]; ``image`` [17, 48]; ``faces`` [F, 3, 32, 32] uint8; ``weight`` [1 + T, 8, 8].
    """
    lesson, task = Lesson(number), PRESET.task
    if not isinstance(task, Animate):
        raise TypeError(f"{PRESET.name} is no model of a driving video")
    scene = training_scene(number, lesson.frames)
    target = scene.target(replaced=lesson.replaced)
    with tempfile.TemporaryDirectory() as folder:
        write_driving(Path(folder), scene, replaced=lesson.replaced, parts=PARTS[number % len(PARTS)])
        request = AnimateRequest(
            src_root_path=Path(folder), refert_num=lesson.overlap, replace_flag=lesson.replaced, seed=0
        )
        inputs = pipeline.plan(request)
        if not isinstance(inputs, AnimateTaskInputs):
            raise TypeError(f"{PRESET.name} plans something else")
        past = as_pixels(target[:SEGMENT]) if lesson.index else None
        made: AnimateConditioning = task.condition(
            inputs, pipeline.components, Clip(index=lesson.index, previous_frames=past)
        )
    shown = slice(lesson.begin, lesson.begin + SEGMENT)
    with pipeline.components.vae.active() as vae:
        latents = vae.encode(as_pixels(target[shown]), latents_per_chunk=None)[0]
    given: AnimateInputs = made.positive  # type: ignore[assignment]
    channels = _there(given.channel_concat)[0]
    return {
        "latents": torch.cat([channels[-len(latents) :, :1], latents], dim=1).half(),
        "channels": channels.half(),
        "poses": given.pose_latents[0].half(),
        "image": _there(given.image_context)[0].half(),
        "faces": made.face,
        "weight": error_weights(scene.drive[shown].body).half(),
    }


def _there(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError("the task gave no such condition")
    return tensor


def error_weights(body: np.ndarray) -> Tensor:
    """How much errors count in each cell [1 + T, 8, 8] of joints [F, 18, 2]: most at the head, more on the figure."""
    cells = SIZE // CELL
    frames = [body[:1], *np.split(body[1:], range(STRIDE, len(body) - 1, STRIDE))]
    weights = torch.ones(1 + len(frames), cells, cells)
    for row, joints in zip(weights[1:], frames, strict=True):
        for weight, points, reach in ((_FIGURE_WEIGHT, joints, 4.0), (_HEAD_WEIGHT, joints[:, :1], 4.0)):
            middles = (torch.arange(cells) + 0.5) * CELL - 0.5
            places = torch.from_numpy(points.reshape(-1, 2)).float()
            near = (places[:, None] - middles[:, None]).abs() <= CELL / 2 + reach  # by x and y, of every cell
            row[(near[:, None, :, 0] & near[:, :, None, 1]).any(dim=0)] = weight
    return weights


def write_lessons(folder: Path, pipeline: Pipeline, part: tuple[int, int]) -> None:
    """Make every training example of a part, (index, count), where it is missing."""
    settings = {"actors": ACTORS_VERSION, "segment": SEGMENT}
    write_cache(folder, SCENES, lambda number: encode_lesson(pipeline, number), settings, part=part)


def new_actor() -> AnimateDiT:
    """The bundled text-to-video transformer that also sees a reference and poses, as it sees video, and no face yet."""
    base = load_bundled("dit").state_dict()
    patches = base.pop("patch_embedding.weight")
    torch.manual_seed(4)
    dit: AnimateDiT = PRESET.part("dit").family.build(PRESET.dit)
    dit.load_state_dict(base, strict=False)
    channels = patches.shape[1]
    with torch.no_grad():
        weight = dit.patch_embedding.weight
        weight.zero_()
        weight[:, :channels] = patches
        weight[:, -channels:] = _START * patches
        dit.pose_patch_embedding.weight.copy_(_START * patches)
        nn.init.zeros_(dit.pose_patch_embedding.bias)
        for block in dit.blocks:
            nn.init.zeros_(block.cross_attn.v_img.weight)
            nn.init.zeros_(block.cross_attn.v_img.bias)
        for block in dit.face_adapter.fuser_blocks:
            nn.init.zeros_(block.linear2.weight)
            nn.init.zeros_(block.linear2.bias)
    return dit


def actor_optimizers(dit: AnimateDiT) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of blocks and of what looks at faces, AdamW for the rest; faster for the motion encoder,
    whose weights are large and scaled down where they are used."""
    motion = list(dit.motion_encoder.parameters())

    def is_matrix(name: str, weight: Tensor) -> bool:
        return weight.ndim == 2 and name.startswith(("blocks.", "face_adapter."))

    for weight in motion:
        weight.requires_grad_(False)
    optimizers = split_optimizers(dit, is_matrix, 0.01, 2e-3)
    for weight in motion:
        weight.requires_grad_(True)
    return [*optimizers, torch.optim.AdamW(motion, lr=1e-2, betas=(0.9, 0.98), weight_decay=0.0)]


@dataclass(frozen=True)
class ActStage:
    """Flow matching on segments, for `wan_core.training.train`.

    ``texts`` [2, 24, 96] are states of the task's prompt and of none, ``rank`` numbers processes that train together.
    """

    dit: AnimateDiT
    lessons: Cache
    texts: Tensor
    batch: int
    rank: int = 0

    def loss(self, step: int, _: int) -> Tensor:
        """The loss of one step."""
        rng = np.random.default_rng([64, step, self.rank])
        numbers = [int(number) for number in rng.integers(0, len(self.lessons), self.batch)]
        examples = [self.lessons[number] for number in numbers]
        latents, channels, weight = (stacked(examples, name) for name in ("latents", "channels", "weight"))
        noisy = torch.from_numpy(rng.random(self.batch) < _NOISY_PAST).view(-1, 1, 1, 1, 1)
        # What sampling goes on from was made by the model: not quite what is drawn.
        channels[:, STRIDE:, 1:] += _NOISE * torch.randn_like(channels[:, STRIDE:, 1:]) * noisy
        inputs = AnimateInputs(
            context=self.texts[torch.from_numpy(rng.random(self.batch) < _EMPTY_TEXT).long()],
            image_context=stacked(examples, "image"),
            channel_concat=channels,
            pose_latents=stacked(examples, "poses"),
            face_tokens=self.dit.encode_face(stacked(examples, "faces").transpose(1, 2) / 127.5 - 1),
        )
        batch = make_flow_batch(latents, LEVELS.sample(self.batch), torch.randn_like(latents))
        velocity = self.dit(batch.latents, batch.timesteps, inputs)
        error = (velocity - batch.target).square().mean(dim=1)
        return (error * weight).sum() / weight.sum()
