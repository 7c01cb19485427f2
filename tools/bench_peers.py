"""The two sides of each benchmark row: wan-core and diffusers on the same seeded weights and inputs.

Weights are made by diffusers, saved in its layout, and read by wan-core through its checkpoint tables.
"""

import gc
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from torch import Tensor, nn

from tools.bench_bytes import moved_bytes
from wan_core.checkpoints import load_model, read_weights
from wan_core.models import ContextCache, DiTInputs, VAEConfig, WanDiTConfig
from wan_core.runtime import prepare_model
from wan_core.sampling import Denoiser, make_solver, sample

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
TEXT_LEN, TEXT_DIM = 512, 4096
STEPS, FLOW_SHIFT, GUIDANCE = 20, 3.0, 5.0


@dataclass(frozen=True)
class Settings:
    """Where and how large: ``folder`` holds the weights of the run, ``quick`` shrinks every dim."""

    device: str
    quick: bool
    folder: Path


@dataclass(frozen=True)
class Sides:
    """Both sides of a row: calls that return one measured value each, and the difference of their outputs.

    ``difference`` is the largest absolute one over the largest absolute output of the peer, None where a row has no
    outputs to compare. Computing it is also the warm-up.
    """

    ours: Callable[[], float]
    theirs: Callable[[], float]
    difference: Callable[[], float | None]
    tolerance: float = 0.0


def outputs(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], settings: Settings, dtype: torch.dtype) -> Sides:
    """Sides that time two calls whose outputs must agree."""

    def difference() -> float:
        a, b = ours().double(), theirs().double()
        return ((a - b).abs().max() / b.abs().max()).item()

    return Sides(seconds(ours, settings), seconds(theirs, settings), difference, TOLERANCES[dtype])


def seconds(call: Callable[[], Any], settings: Settings) -> Callable[[], float]:
    """A call that runs the given one without gradients and returns its wall time in seconds."""

    def timed() -> float:
        gc.collect()
        synchronise(settings.device)
        start = time.perf_counter()
        with torch.no_grad():
            call()
        synchronise(settings.device)
        return time.perf_counter() - start

    return timed


def synchronise(device: str) -> None:
    """Wait for the device's queue, if it has one."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def normal(*shape: int, seed: int, settings: Settings, dtype: torch.dtype = torch.float32) -> Tensor:
    """Seeded standard normal numbers, drawn on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(settings.device, dtype)


# -- the transformer ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiTSize:
    """Dims of a transformer and of the latents that it sees: tokens = frames * height * width / 4."""

    dim: int = 768
    heads: int = 12
    ffn: int = 3072
    layers: int = 12
    latents: tuple[int, int, int, int] = (16, 5, 30, 52)

    @property
    def ours(self) -> WanDiTConfig:
        return WanDiTConfig(
            in_dim=16, out_dim=16, dim=self.dim, ffn_dim=self.ffn, num_heads=self.heads, num_layers=self.layers
        )

    @property
    def theirs(self) -> dict[str, Any]:
        return {
            "num_attention_heads": self.heads,
            "attention_head_dim": self.dim // self.heads,
            "ffn_dim": self.ffn,
            "num_layers": self.layers,
        }


FORWARD = DiTSize()
LOOP = DiTSize(layers=4)
TINY = DiTSize(dim=96, heads=2, ffn=192, layers=2, latents=(16, 2, 8, 8))


def dit_folder(size: DiTSize, settings: Settings) -> Path:
    """A folder with the seeded weights of this size in diffusers' layout, made once per run."""
    folder = settings.folder / f"dit-{size.dim}-{size.layers}"
    if not folder.exists():
        torch.manual_seed(0)
        WanTransformer3DModel(**size.theirs).save_pretrained(folder, max_shard_size="100GB")
    return folder


def load_dits(size: DiTSize, settings: Settings, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Ours and theirs from the same file, each by its own loader, which keeps its float32 modules."""
    folder = dit_folder(size, settings)
    return our_dit(size, folder, dtype, settings.device), their_dit(folder, dtype, settings.device)


def our_dit(size: DiTSize, folder: Path, dtype: torch.dtype, device: str) -> nn.Module:
    source = read_weights(folder / "diffusion_pytorch_model.safetensors")
    return ready(load_model(size.ours, source, family="dit", dtype=dtype, device=device))


def ready(network: nn.Module) -> nn.Module:
    """A network of ours as a pipeline has it."""
    prepare_model(network, inference=True)
    return network.eval().requires_grad_(False)


def their_dit(folder: Path, dtype: torch.dtype, device: str) -> nn.Module:
    model = WanTransformer3DModel.from_pretrained(folder, torch_dtype=dtype)
    return model.to(device).eval().requires_grad_(False)


def text_states(seed: int, settings: Settings, dtype: torch.dtype) -> Tensor:
    """Text states of a full-length prompt, [1, 512, 4096]."""
    return normal(1, TEXT_LEN, TEXT_DIM, seed=seed, settings=settings, dtype=dtype)


def dit_calls(
    size: DiTSize, settings: Settings, dtype: torch.dtype, *, per_frame: bool = False
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """One forward of either side, without a text cache; ``per_frame`` timesteps as in ti2v (per token there)."""
    ours, theirs = load_dits(size, settings, dtype)
    latents = normal(1, *size.latents, seed=1, settings=settings, dtype=dtype)
    context = text_states(2, settings, dtype)
    timesteps = their_timesteps = torch.tensor([500.0], device=settings.device)
    if per_frame:
        _, frames, height, width = size.latents
        timesteps = torch.tensor([[0.0, *[500.0] * (frames - 1)]], device=settings.device)
        their_timesteps = timesteps.repeat_interleave(height * width // 4, dim=1)
    return (
        lambda: ours(latents, timesteps, DiTInputs(context=context)),
        lambda: theirs(latents, their_timesteps, context, return_dict=False)[0],
    )


def dit_forward(settings: Settings, dtype: torch.dtype) -> Sides:
    """One forward at 1,950 tokens."""
    return outputs(*dit_calls(TINY if settings.quick else FORWARD, settings, dtype), settings, dtype)


def dit_bytes(settings: Settings, dtype: torch.dtype, per_frame: bool = False) -> tuple[float, float]:
    """Bytes that either side moves outside of matrix products in the same forward."""
    calls = dit_calls(TINY if settings.quick else FORWARD, settings, dtype, per_frame=per_frame)
    ours, theirs = (moved_bytes(call).total() for call in calls)
    return ours, theirs


def sampling_loop(settings: Settings) -> Sides:
    """20 UniPC steps with guidance, two forwards a step; 4 layers of the forward row's width keep it under a minute."""
    size, dtype = TINY if settings.quick else LOOP, torch.float32
    ours, theirs = load_dits(size, settings, dtype)
    noise = normal(1, *size.latents, seed=1, settings=settings)
    positive, negative = text_states(2, settings, dtype), text_states(3, settings, dtype)

    def our_loop() -> Tensor:
        branches = [DiTInputs(context=context, context_cache=ContextCache()) for context in (positive, negative)]
        solver = make_solver("unipc", STEPS, flow_shift=FLOW_SHIFT, grid="diffusers")
        return sample(Denoiser(ours, *branches, GUIDANCE), solver, noise)

    def their_loop() -> Tensor:
        solver = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT)
        solver.set_timesteps(STEPS, device=settings.device)
        latents = noise
        for timestep in solver.timesteps:
            times = timestep.expand(1)
            conditional = theirs(latents, times, positive, return_dict=False)[0]
            unconditional = theirs(latents, times, negative, return_dict=False)[0]
            velocity = unconditional + GUIDANCE * (conditional - unconditional)
            latents = solver.step(velocity, timestep, latents, return_dict=False)[0]
        return latents

    return outputs(our_loop, their_loop, settings, dtype)


def dit_load(settings: Settings) -> Sides:
    """From the file in the page cache to a model on the device, float32."""
    size, dtype = TINY if settings.quick else FORWARD, torch.float32
    folder = dit_folder(size, settings)
    ours = seconds(lambda: our_dit(size, folder, dtype, settings.device), settings)
    theirs = seconds(lambda: their_dit(folder, dtype, settings.device), settings)
    return Sides(ours, theirs, lambda: ours() * 0 + theirs() * 0)


# -- peak memory, each side in its own process -------------------------------------------------------------------------


def peak_memory(settings: Settings) -> Sides:
    """Peak memory of loading and one forward: MB of the process, or of the GPU on one. Both import both libraries."""
    size = TINY if settings.quick else FORWARD
    folder = dit_folder(size, settings)

    def probe(side: str) -> float:
        command = [sys.executable, str(Path(__file__).with_name("bench.py")), "--probe", side, str(folder)]
        command += ["--device", settings.device, *(["--quick"] if settings.quick else [])]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])

    return Sides(lambda: probe("ours"), lambda: probe("theirs"), lambda: None)


def probe_memory(side: str, settings: Settings) -> float:
    """Load one side, run one forward, and return the peak in MB; for a fresh process."""
    size, dtype = TINY if settings.quick else FORWARD, torch.float32
    latents = normal(1, *size.latents, seed=1, settings=settings)
    context, timesteps = text_states(2, settings, dtype), torch.tensor([500.0], device=settings.device)
    with torch.no_grad():
        if side == "ours":
            our_dit(size, settings.folder, dtype, settings.device)(latents, timesteps, DiTInputs(context=context))
        else:
            their_dit(settings.folder, dtype, settings.device)(latents, timesteps, context, return_dict=False)
    if torch.device(settings.device).type == "cuda":
        return torch.cuda.max_memory_allocated(settings.device) / 1e6
    return process_peak() / 1e6


def process_peak() -> int:
    """Bytes of this process's largest resident set. ``getrusage`` on Linux counts what its parent held at its start."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# -- the autoencoders --------------------------------------------------------------------------------------------------


def vae_configs(version: str, quick: bool) -> tuple[VAEConfig, dict[str, Any]]:
    """Narrow configurations of either release for both sides; latent statistics are 0 and 1."""
    dim = 8 if quick else 32 if version == "2.2" else 48
    if version == "2.1":
        return VAEConfig(dim=dim, z_dim=16), {"base_dim": dim, "z_dim": 16}
    ours = VAEConfig(dim=dim, dec_dim=dim, z_dim=48, patch_size=2, residual=True)
    theirs = {"base_dim": dim, "decoder_base_dim": dim, "z_dim": 48, "is_residual": True, "patch_size": 2}
    return ours, theirs | {"in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}


@cache
def load_vaes(version: str, settings: Settings) -> tuple[nn.Module, Any]:
    """Ours and theirs on the same weights."""
    config, peer = vae_configs(version, settings.quick)
    folder = settings.folder / f"vae-{version}"
    torch.manual_seed(0)
    AutoencoderKLWan(**peer).save_pretrained(folder)
    source = read_weights(folder / "diffusion_pytorch_model.safetensors")
    ours = ready(load_model(config, source, family="vae", device=settings.device))
    theirs = AutoencoderKLWan.from_pretrained(folder).to(settings.device).eval().requires_grad_(False)
    return ours, theirs


def vae(settings: Settings, version: str, direction: str) -> Sides:
    """Encode or decode 17 frames of 128 x 128 (quick: 5 of 32 x 32)."""
    ours, theirs = load_vaes(version, settings)
    frames, size = (5, 32) if settings.quick else (17, 128)
    if direction == "encode":
        video = normal(1, 3, frames, size, size, seed=4, settings=settings).clamp(-1, 1)

        def encode() -> Tensor:
            return theirs.encode(video).latent_dist.mode()

        return outputs(partial(ours.encode, video), encode, settings, torch.float32)
    channels, stride = (16, 8) if version == "2.1" else (48, 16)
    latents = normal(1, channels, (frames + 3) // 4, size // stride, size // stride, seed=5, settings=settings)

    def decode() -> Tensor:
        return theirs.decode(latents, return_dict=False)[0]

    return outputs(partial(ours.decode, latents), decode, settings, torch.float32)
