"""Stages "hear" and "speak": a speech encoder that hears loudness, and a transformer whose faces follow it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.tiny.dit_stage import stacked, text_states
from tools.tiny.family import load_bundled
from tools.tiny.speakers import (
    RATE,
    SPEAKERS_VERSION,
    Face,
    draw_voice,
    faces,
    loudness,
    openings,
    picture_of,
    render,
    training_speech,
)
from tools.tiny.vae_stage import split_optimizers, to_pixels
from wan_core.models import (
    S2VDiT,
    S2VInputs,
    TextEncoder,
    VideoVAE,
    Wav2Vec2,
    frame_rows,
    interpolate_states,
    states_at,
)
from wan_core.presets import get_preset
from wan_core.tasks.s2v import PROMPT, SpeechToVideo
from wan_core.training import Cache, NoiseLevels, make_flow_batch, write_cache

PRESET = get_preset("tiny-s2v")
TASK = PRESET.task
if not isinstance(TASK, SpeechToVideo):
    raise TypeError(f"{PRESET.name} is no speech-to-video model")
FPS = TASK.fps
CLIP = TASK.infer_frames
"""Video frames of a clip."""
STRIDE = PRESET.latent_spec.temporal_stride
HISTORY = TASK.motion_frames, (TASK.motion_frames - 1) // STRIDE + 1
"""Video frames, and latent frames, before a clip."""
VIDEOS = 280
VIDEO_FRAMES = 64
LEVELS = NoiseLevels(shift=3.0, std=1.2)
_MOUTH_CELLS = slice(4, 7), slice(2, 6)
_MOUTH_WEIGHT = 3.0
_BEGINS, _SILENT, _EMPTY_TEXT, _GREY_START, _NOISY_HISTORY = 0.3, 0.1, 0.4, 0.3, 0.5
_STATE_STEP, _FIRST_STATE = 320, 200  # samples from one state to the next, and before the first one's middle


# -- hearing


class HearStage:
    """The speech encoder with a layer that reads loudness out of each of its states, for `wan_core.training.train`."""

    def __init__(self, encoder: Wav2Vec2, batch: int = 6) -> None:
        torch.manual_seed(3)
        self.encoder = encoder.eval()  # without dropout
        self.model = nn.ModuleDict({"encoder": encoder, "reader": nn.Linear(encoder.config.dim, 1)})
        self.optimizers = [torch.optim.AdamW(self.model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)]
        self.batch = batch

    def loss(self, step: int, _: int) -> Tensor:
        """How far the read loudness of sounds of 1.5 s is from that of their samples."""
        rng = np.random.default_rng([43, step])
        voices = [draw_voice(rng, 1.5) for _ in range(self.batch)]
        states = self.encoder(torch.from_numpy(np.stack(voices)))
        read = self.model["reader"](states).squeeze(-1)
        target = torch.stack([state_loudness(voice, states.shape[2]) for voice in voices])[:, None]
        return (read - target).square().mean()


def state_loudness(waveform: np.ndarray, count: int) -> Tensor:
    """The loudness [count] that the states of a sound are to tell: that around the middle of each."""
    fine = torch.from_numpy(loudness(waveform, len(waveform) * FPS // RATE + 2))  # by video frames
    times = (torch.arange(count) * _STATE_STEP + _FIRST_STATE) / RATE * FPS
    low = times.floor().long()
    return torch.lerp(fine[low], fine[low + 1], times - low)


@torch.inference_mode()
def heard(encoder: Wav2Vec2, waveform: np.ndarray, frames: int) -> Tensor:
    """The states [layers, dim, frames] of the first video frames of a sound, zeros behind its end."""
    states = interpolate_states(encoder(torch.from_numpy(waveform)[None])[0])
    found = states_at(states, frame_rows(states.shape[1], CLIP, FPS)[:frames]).permute(1, 2, 0)
    return functional.pad(found, (0, frames - found.shape[2]))


# -- speaking


def speaker_cache(folder: Path, vae: VideoVAE) -> Cache:
    """``latents`` [24, 17, 8, 8] float16 of a picture and the 64 frames after it."""

    @torch.inference_mode()
    def encode(number: int) -> dict[str, Tensor]:
        speech = training_speech(number)
        shut = float(np.random.default_rng([45, number]).uniform(0, 0.4))
        shown = render(speech.face, openings(speech.waveform, VIDEO_FRAMES))
        video = np.concatenate([picture_of(speech.face, shut)[None], shown])
        return {"latents": vae.encode(to_pixels([video]), latents_per_chunk=None)[0].half()}

    settings = {"speakers": SPEAKERS_VERSION, "kind": "latents", "frames": VIDEO_FRAMES}
    return Cache(write_cache(folder, VIDEOS, encode, settings))


def new_speaker() -> S2VDiT:
    """The bundled text-to-video transformer that can also hear; history looks to it as video does, only coarser."""
    base = load_bundled("dit").state_dict()
    torch.manual_seed(4)
    dit: S2VDiT = PRESET.part("dit").family.build(PRESET.dit)
    dit.load_state_dict(base, strict=False)
    for projection in (dit.frame_packer.proj, dit.frame_packer.proj_2x, dit.frame_packer.proj_4x):
        patches = base["patch_embedding.weight"]
        with torch.no_grad():
            projection.weight.copy_(patches.expand_as(projection.weight) / projection.weight[0, 0].numel())
            projection.bias.copy_(base["patch_embedding.bias"])
    return dit


def speaker_optimizers(dit: S2VDiT) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of blocks and injectors, AdamW for the rest."""

    def is_matrix(name: str, weight: Tensor) -> bool:
        return weight.ndim == 2 and name.startswith(("blocks.", "audio_injector.injector."))

    return split_optimizers(dit, is_matrix, 0.01, 2e-3)


def caption_of(face: Face) -> str:
    """The nearest that the bundled text encoder has words for."""
    return f"a {face.color} circle stays still on a {face.background} background"


@torch.no_grad()
def speaker_texts(encoder: TextEncoder) -> dict[str, Tensor]:
    """Text states [24, 96] of no text, of the task's own prompt and of the caption of each look."""
    every = [face for held_back in (False, True) for face in faces(held_back=held_back)]
    captions = ["", PROMPT, *map(caption_of, every)]
    return dict(zip(captions, text_states(encoder, captions).clone(), strict=True))


@dataclass(frozen=True)
class SpeakStage:
    """Flow matching on clips of talking faces, for `wan_core.training.train`; a step sees beginnings or continuations.

    ``states`` [N, layers, dim, 64] are what the speech encoder hears of each video, ``looks`` its faces. ``grey``
    [24, 2, 8, 8] are the latents of a grey video, which a second clip has before what was shown.
    """

    dit: S2VDiT
    videos: Cache
    states: Tensor
    looks: list[Face]
    texts: dict[str, Tensor]
    grey: Tensor
    batch: int

    def loss(self, step: int, _: int) -> Tensor:
        """The loss of one step; errors where the mouth is count three times."""
        rng = np.random.default_rng([44, step])
        begins = bool(rng.random() < _BEGINS)
        count, before = CLIP // STRIDE, HISTORY[1]
        numbers = [int(number) for number in rng.integers(0, len(self.videos), self.batch)]
        latents, states = stacked([self.videos[number] for number in numbers], "latents"), self.states[numbers]
        last = latents.shape[2] - count
        starts = [1 if begins else int(rng.integers(before, last + 1)) for _ in numbers]
        rows = list(enumerate(starts))
        clips = torch.stack([latents[row, :, start : start + count] for row, start in rows])
        audio = torch.stack([states[row, ..., (start - 1) * STRIDE :][..., :CLIP] for row, start in rows])
        audio = audio * torch.from_numpy(rng.random(self.batch) >= _SILENT).view(-1, 1, 1, 1)
        history = None
        if not begins:
            history = torch.stack([latents[row, :, start - before : start] for row, start in rows])
            history = self._worn(history, rng)
        inputs = S2VInputs(
            context=torch.stack([self._text(number, rng) for number in numbers]),
            audio=audio,
            reference_latents=latents[:, :, :1],
            motion_latents=history,
            motion_frames=HISTORY,
        )
        batch = make_flow_batch(clips, LEVELS.sample(self.batch), torch.randn_like(clips))
        with torch.autocast("cpu", torch.bfloat16):
            velocity = self.dit(batch.latents, batch.timesteps, inputs)
        weight = torch.ones(clips.shape[3:])
        weight[_MOUTH_CELLS] = _MOUTH_WEIGHT
        return ((velocity.float() - batch.target).square() * (weight / weight.mean())).mean()

    def _worn(self, history: Tensor, rng: np.random.Generator) -> Tensor:
        """History as sampling has it: made by the model, and in a second clip with grey before it."""
        grey = torch.from_numpy(rng.random(self.batch) < _GREY_START)
        history[grey, :, :2] = self.grey.to(history)
        noisy = torch.from_numpy(rng.random(self.batch) < _NOISY_HISTORY)
        return history + 0.1 * torch.randn_like(history) * noisy.view(-1, 1, 1, 1, 1)

    def _text(self, number: int, rng: np.random.Generator) -> Tensor:
        kind = rng.random()
        if kind < _EMPTY_TEXT:
            return self.texts[""]
        return self.texts[PROMPT if kind < (1 + _EMPTY_TEXT) / 2 else caption_of(self.looks[number])]


@torch.inference_mode()
def grey_latents(vae: VideoVAE) -> Tensor:
    """The first two latent frames [24, 2, 8, 8] of a grey video."""
    return vae.encode(torch.zeros(1, 3, 5, 64, 64), latents_per_chunk=None)[0].clone()
