"""One process of several: ``networks_worker.py FOLDER [CASE ...]`` compares forwards of all of them with its own.

For every arrangement of the processes and every case it notes the largest difference in ``FOLDER/RANK.json``.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from bindweave import BindWeaveConfig
from bindweave.dit import BindWeaveDiT, BindWeaveInputs
from selfforcing_unianimate import CausalDiTConfig
from selfforcing_unianimate.causal_dit import CausalDiT, CausalInputs
from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.memory import CausalMemory
from wan_core.models import (
    AnimateDiT,
    AnimateDiTConfig,
    AnimateInputs,
    DiTInputs,
    S2VConfig,
    S2VDiT,
    S2VInputs,
    WanDiT,
    WanDiTConfig,
)
from wan_core.models.dit.layout import TokenLayout, TokenSequence
from wan_core.runtime import launched, prepare_model, process_group
from wan_core.runtime.mesh import ParallelPlan
from wan_core.runtime.sequence_parallel import apply_sequence_parallel

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {"dim": 48, "ffn_dim": 40, "num_layers": 3, "freq_dim": 8, "text_dim": 6, "text_len": 5}
TEXT = WanDiTConfig(in_dim=3, out_dim=3, num_heads=4, **SIZES)
IMAGE = WanDiTConfig(in_dim=5, out_dim=3, num_heads=4, image_dim=7, image_tokens=4, **SIZES)
SPEECH = S2VConfig(
    in_dim=3, out_dim=3, num_heads=4, cond_dim=2, audio_dim=7, audio_layers=4, num_audio_token=2,
    audio_inject_layers=(0, 2), **SIZES,
)  # fmt: skip
ANIMATE = AnimateDiTConfig(
    in_dim=9, out_dim=3, num_heads=4, image_dim=7, image_tokens=4, pose_dim=2, motion_encoder_channels=(3, 4, 5),
    motion_style_dim=6, motion_dim=3, motion_encoder_dim=8, face_encoder_hidden_dim=5, face_encoder_num_heads=2,
    inject_face_latents_blocks=1, **SIZES,
)  # fmt: skip
CAUSAL = CausalDiTConfig(in_dim=3, out_dim=3, num_heads=4, pose_dim=10, **SIZES)
SUBJECTS = BindWeaveConfig(in_dim=9, out_dim=3, num_heads=4, image_dim=24, image_tokens=5, mllm_dim=28, **SIZES)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def network(kind: type[WanDiT], config: WanDiTConfig, *, fast: bool = False, dtype: Any = None) -> WanDiT:
    """Random weights, none of them neutral; ``fast`` with the kernels of inference."""
    generator = torch.Generator().manual_seed(3)
    model = kind(config).eval().requires_grad_(False)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + ("norm" in name))
    if dtype is not None:
        for name, parameter in model.named_parameters():
            if not any(each in name for each in model.float32_modules):
                parameter.data = parameter.data.to(dtype)
    prepare_model(model, inference=fast)
    return model


class TailDiT(WanDiT):
    """Five tokens behind those of the video; samples attend to the first of them, or to none."""

    def embed_latents(self, latents: Tensor, inputs: DiTInputs, start: Any = (0, 0, 0)) -> TokenSequence:
        base = super().embed_latents(latents, inputs, start)
        tail = noise(1, 5, self.config.dim).expand(latents.shape[0], -1, -1)
        lengths = torch.tensor([base.length + 1, base.length // 3])[: latents.shape[0]]
        return replace(
            base,
            tokens=torch.cat([base.tokens, tail], dim=1),
            rope=torch.cat([base.rope, base.rope[:5]]),
            key_lengths=lengths,
        )


class MaskedDiT(WanDiT):
    """Each head sees other tokens."""

    def embed_latents(self, latents: Tensor, inputs: DiTInputs, start: Any = (0, 0, 0)) -> TokenSequence:
        base = super().embed_latents(latents, inputs, start)
        mask = noise(1, self.config.num_heads, base.length, base.length) > 0.3
        return replace(base, mask=mask | torch.eye(base.length, dtype=torch.bool))


@dataclass(frozen=True)
class Case:
    """A network, and what is asked of it; ``tolerance`` is the largest difference that rounding explains."""

    make: Callable[[], WanDiT]
    run: Callable[[Any], Tensor]
    tolerance: float = 1e-5


def text(model: WanDiT, timesteps: Any = (640.0,), size: tuple[int, int, int] = (3, 6, 10)) -> Tensor:
    """A forward with every field of plain inputs, the batch as large as ``timesteps`` has rows."""
    frames, height, width = size
    times = torch.tensor(timesteps)
    batch, config = times.shape[0], model.config
    extra = config.in_dim - 3
    inputs = DiTInputs(
        context=noise(batch, 3, config.text_dim),
        image_context=None if config.image_dim is None else noise(batch, 4, config.image_dim),
        extra_context=noise(batch, 2, config.dim),
        channel_concat=noise(batch, extra, *size) if extra else None,
        add_condition=noise(batch, frames, height * width // 4, config.dim),
    ).with_cache()
    noisy = noise(batch, 3, *size, seed=9)
    once = model(noisy, times, inputs)
    return torch.cat([once, model(noisy + once, times * 0.5, inputs)])


def speech(model: WanDiT) -> Tensor:
    inputs = S2VInputs(
        context=noise(2, 4, 6),
        audio=noise(2, 4, 7, 12),
        reference_latents=noise(2, 3, 1, 8, 16),
        motion_latents=noise(2, 3, 5, 8, 16),
        pose_latents=noise(2, 2, 3, 8, 16),
        motion_frames=(17, 5),
    )
    return model(noise(2, 3, 3, 8, 16), torch.tensor([700.0, 3.0]), inputs)


def driven(model: WanDiT) -> Tensor:
    """The reference and three latent frames, whose batch of two has a face each."""
    assert isinstance(model, AnimateDiT)
    inputs = AnimateInputs(
        context=noise(2, 4, 6),
        image_context=noise(2, 4, 7),
        channel_concat=noise(2, 6, 4, 6, 10),
        pose_latents=noise(2, 2, 3, 6, 10),
        face_tokens=model.encode_face(noise(2, 3, 9, 16, 16).clamp(-1, 1)),
    )
    return model(noise(2, 3, 4, 6, 10), torch.tensor([700.0, 30.0]), inputs)


def remembered(model: WanDiT, blocks: FrameBlocks) -> Tensor:
    """Seven frames, block after block, each of them twice."""
    inputs = CausalInputs(context=noise(1, 3, 6), add_condition=noise(1, 7, 15, 10), blocks=blocks).with_cache()
    inputs = replace(inputs, memory=CausalMemory(blocks, 7))
    parts = []
    for start, stop in blocks.spans(7):
        cut, times = noise(1, 3, 7, 6, 10)[:, :, start:stop], noise(1, 7).abs()[:, start:stop] * 400
        first = model(cut, times, inputs.frames(start, stop))
        parts += [first, model(cut - first, times * 0.1, inputs.frames(start, stop))]
    return torch.cat(parts, dim=2)


def masked(model: WanDiT, clean: Tensor | None) -> Tensor:
    blocks = FrameBlocks(size=2, first_alone=True)
    inputs = CausalInputs(context=noise(1, 3, 6), blocks=blocks, clean_latents=clean)
    return model(noise(1, 3, 7, 6, 10), noise(1, 7).abs() * 400, inputs)


def subjects(model: WanDiT) -> Tensor:
    inputs = BindWeaveInputs(
        context=noise(1, 4, 6),
        hidden_states=noise(1, 3, 28),
        image_context=noise(1, 20, 24),
        channel_concat=noise(1, 6, 2, 6, 10),
        references=noise(1, 6, 4, 6, 10),
    )
    return model(noise(1, 3, 2, 6, 10), torch.tensor([500.0]), inputs)


PER_FRAME = ((0.0, 9.0, 700.0), (7.0, 7.0, 8.0))
CASES = {
    "text": Case(lambda: network(WanDiT, TEXT), text),
    "text-fast": Case(lambda: network(WanDiT, TEXT, fast=True), text),
    "per-frame": Case(lambda: network(WanDiT, TEXT), lambda model: text(model, PER_FRAME)),
    "per-frame-fast": Case(lambda: network(WanDiT, TEXT, fast=True), lambda model: text(model, PER_FRAME)),
    "image": Case(lambda: network(WanDiT, IMAGE, fast=True), lambda model: text(model, (10.0, 900.0))),
    "even": Case(lambda: network(WanDiT, TEXT), lambda model: text(model, PER_FRAME, (3, 8, 8))),
    "fewer-tokens-than-processes": Case(
        lambda: network(WanDiT, TEXT, fast=True), lambda model: text(model, (500.0,), (1, 2, 4))
    ),
    "lengths": Case(lambda: network(TailDiT, TEXT), lambda model: text(model, (640.0, 3.0))),
    "masked-heads": Case(lambda: network(MaskedDiT, TEXT), text),
    "speech": Case(lambda: network(S2VDiT, SPEECH), speech),
    "speech-fast": Case(lambda: network(S2VDiT, SPEECH, fast=True), speech),
    "speech-plain": Case(lambda: network(S2VDiT, replace(SPEECH, enable_adain=False, enable_framepack=False)), speech),
    "animate": Case(lambda: network(AnimateDiT, ANIMATE), driven),
    "animate-fast": Case(lambda: network(AnimateDiT, ANIMATE, fast=True), driven),
    "causal": Case(lambda: network(CausalDiT, CAUSAL, fast=True), lambda model: remembered(model, FrameBlocks())),
    "causal-window": Case(
        lambda: network(CausalDiT, CAUSAL), lambda model: remembered(model, FrameBlocks(size=2, window=5, sink=1))
    ),
    "causal-masked": Case(lambda: network(CausalDiT, CAUSAL), lambda model: masked(model, None)),
    "teacher-forcing": Case(lambda: network(CausalDiT, CAUSAL), lambda model: masked(model, noise(1, 3, 7, 6, 10))),
    "subjects": Case(lambda: network(BindWeaveDiT, SUBJECTS, fast=True), subjects),
    "bfloat16": Case(lambda: network(WanDiT, TEXT, dtype=torch.bfloat16), text, tolerance=0.1),
}


def plans(world: int) -> Iterator[ParallelPlan]:
    """Every way to arrange the processes in which a sequence is divided."""
    for ring in range(1, world + 1):
        for ulysses in range(1, world // ring + 1):
            if world % (ring * ulysses) == 0 and ring * ulysses > 1 and TEXT.num_heads % ulysses == 0:
                yield ParallelPlan(data=world // (ring * ulysses), ring=ring, ulysses=ulysses)


@torch.no_grad()
def main(folder: Path, names: list[str]) -> None:
    launch = launched()
    assert launch is not None
    differences = {}
    with process_group(launch, CPU):
        meshes = {f"ring{plan.ring}-ulysses{plan.ulysses}": plan.open(CPU) for plan in plans(launch.world)}
        for name in names or list(CASES):
            case = CASES[name]
            model = case.make()
            expected = case.run(model)
            for plan, mesh in meshes.items():
                apply_sequence_parallel(model, mesh)
                for passes_on in (False, True):  # as on the CPU, and as on GPUs
                    model.layout.passes_on = passes_on
                    found = case.run(model)
                    scale = expected.abs().max().clamp(min=1)
                    key = f"{plan} {name} {passes_on}"
                    differences[key] = [float((found - expected).abs().max() / scale), case.tolerance]
            model.layout = TokenLayout()
        distributed.barrier()
    (folder / f"{launch.rank}.json").write_text(json.dumps(differences))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
