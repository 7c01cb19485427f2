"""What the GPU check measures, section by section: ``SECTIONS`` by name, with the seconds that each needs at most."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tools.gpu_networks import (
    Bench,
    dit_config,
    dit_tflop,
    random_dit,
    random_network,
    random_text_encoder,
    random_vae,
    relative,
)
from tools.gpu_offload import offload
from tools.gpu_training import training
from wan_core.checkpoints import VAE
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.models import DiTInputs
from wan_core.models.vae.tiling import Tiling
from wan_core.pipeline import Pipeline
from wan_core.presets import get_preset
from wan_core.runtime import Between, Placed, choose_attention_backend, prepare_model
from wan_core.runtime.attention_backends import GPU_BACKENDS, make_attention
from wan_core.runtime.attention_choice import backend_problem
from wan_core.tasks import Components

Section = Callable[[Bench], dict[str, Any]]

HALF = torch.bfloat16
# Heads, queries and keys of 128 numbers: self- and cross-attention of a forward.
ATTENTION = {
    "1.3B self": (12, 32760, 32760),
    "5B self": (24, 27280, 27280),
    "5B cross": (24, 27280, 512),
    "14B self": (40, 75600, 75600),
}
RUNS = ("tiny-t2v", "tiny-ti2v", "tiny-moe")
STEPS = 4


def machine(bench: Bench) -> dict[str, Any]:
    """Products in bfloat16, copies on the device, and copies to and from pageable and pinned host memory."""
    size, count = (256, 10**6) if bench.is_tiny else (8192, 2 * 10**9)
    left, right = (bench.normal(size, size, dtype=HALF, seed=seed) for seed in range(2))
    found: dict[str, Any] = {"matmul_tflops": _rate(2 * size**3, 1e12, bench.timed(lambda: left @ right, repeats=10))}
    there, here = torch.zeros(count, dtype=torch.uint8, device=bench.device), torch.zeros(count, dtype=torch.uint8)
    found["copy_tb_per_s"] = _rate(2 * count, 1e12, bench.timed(there.clone))
    found["up_gb_per_s"] = _rate(count, 1e9, bench.timed(lambda: there.copy_(here)))
    found["down_gb_per_s"] = _rate(count, 1e9, bench.timed(lambda: here.copy_(there)))
    if bench.has_gpu:
        pinned = here.pin_memory()
        found["up_pinned_gb_per_s"] = _rate(count, 1e9, bench.timed(lambda: there.copy_(pinned, non_blocking=True)))
    return found


def attention(bench: Bench) -> dict[str, Any]:
    """Every kernel on every shape; its order is that of the longest one, and what ``auto`` should try first."""
    found: dict[str, Any] = {"auto": choose_attention_backend("auto", bench.device).name}
    usable = ["sdpa"]
    for name in GPU_BACKENDS:
        problem = backend_problem(name, bench.device)
        if problem is None:
            usable.append(name)
        else:
            found[name] = problem
    for shape, (heads, queries, keys) in ATTENTION.items():
        if bench.is_tiny:
            heads, queries, keys = 2, queries % 97 + 8, keys % 89 + 8
        query, key, value = (bench.normal(1, count, heads, 128, dtype=HALF) for count in (queries, keys, keys))
        work = 4 * heads * 128 * queries * keys
        for name in usable:
            taken = bench.timed(partial(make_attention(name, bench.device), query, key, value))
            found.setdefault(name, {})[shape] = taken | {"tflops": _rate(work, 1e12, taken)}
    longest = list(ATTENTION)[-1]
    found["order"] = sorted(usable, key=lambda name: found[name][longest]["s"])
    return found


def dit(name: str, *, compiled: bool = True) -> Section:
    """A forward of a network in bfloat16 as it is used, and with compiled blocks."""

    def measure(bench: Bench) -> dict[str, Any]:
        config, latents = dit_config(name, bench)
        bench.clear()
        network = random_dit(config, bench)
        found: dict[str, Any] = {"latents": list(latents), "weights_gb": bench.peak()}
        kernel = choose_attention_backend("auto", bench.device).name
        prepare_model(network, inference=True, attention=kernel)
        noise = bench.normal(1, config.in_dim, *latents)
        inputs = DiTInputs(context=bench.normal(1, 120, config.text_dim, dtype=HALF)).with_cache()
        timesteps = torch.full((1,), 500.0, device=bench.device)

        def forward() -> Tensor:
            with torch.no_grad():
                velocity: Tensor = network(noise, timesteps, inputs)
            return velocity

        expected = forward()
        work = dit_tflop(config, latents[0] * latents[1] * latents[2] // 4)
        found |= {"finite": bool(expected.isfinite().all()), "attention": kernel, "tflop": round(work, 1)}
        with _without_waiting(bench):
            forward()
        found["eager"] = bench.timed(forward)
        found["eager"] |= {"tflops": _rate(work, 1, found["eager"]), "kernels": bench.kernels(forward)}
        if compiled and bench.left() > 90:
            found["compiled"] = _compiled(network, forward, expected, bench)
            found["compiled"]["tflops"] = _rate(work, 1, found["compiled"])
        return found

    return measure


def _compiled(network: Any, forward: Callable[[], Tensor], expected: Tensor, bench: Bench) -> dict[str, Any]:
    start = time.monotonic()
    for block in network.blocks:
        block.compile(backend="eager" if bench.is_tiny else "inductor")
    difference = relative(forward(), expected)
    bench.wait()
    first = round(time.monotonic() - start, 1)
    return {"first_s": first, "difference": difference} | bench.timed(forward)


@contextmanager
def _without_waiting(bench: Bench) -> Iterator[None]:
    """A step must not wait for the host: torch raises where it does."""
    if bench.has_gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if bench.has_gpu:
            torch.cuda.set_sync_debug_mode("default")


def vae(version: str) -> Section:
    """Decoding in five variants, each compared with the first, and encoding one picture."""

    def measure(bench: Bench) -> dict[str, Any]:
        sizes = {"2.1": (21, 90, 160), "2.2": (31, 44, 80)}
        frames, height, width = (2, 6, 6) if bench.is_tiny else sizes[version]
        found: dict[str, Any] = {"latents": [frames, height, width]}
        network = random_vae(version, torch.float32, bench)
        latents = bench.normal(1, network.config.z_dim, frames, height, width)
        few = latents[:, :, :2]
        expected = _decoded(network, few)
        found["float32"] = bench.timed(lambda: _run(network.stream_decode(latents)), repeats=1, warm=0)
        with torch.no_grad():
            picture = network.decode(latents[:, :, :1]).clamp(-1, 1)
        found["encode one picture"] = bench.timed(lambda: network.encode(picture), repeats=1)
        for label, change in _VARIANTS.items():
            if bench.left() < 30:
                found[label] = "no time left"
                continue
            options = change(network, bench)
            dtype = next(network.parameters()).dtype
            given = latents.to(dtype)
            difference = relative(_decoded(network, few.to(dtype), **options), expected)
            taken = bench.timed(
                lambda given=given, o=options: _run(network.stream_decode(given, **o)), repeats=1, warm=0
            )
            found[label] = taken | {"difference": difference}
            torch.backends.cudnn.benchmark = False
        return found

    return measure


def _decoded(network: Any, latents: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        video: Tensor = network.decode(latents, **options)
    return video


def _run(chunks: Iterable[Tensor]) -> int:
    return sum(chunk.shape[2] for chunk in chunks)


def _tiled(network: nn.Module, bench: Bench) -> dict[str, Any]:
    small = {"tile_height": 32, "tile_width": 32, "stride_height": 16, "stride_width": 16}
    return {"tiling": Tiling(**small) if bench.is_tiny else Tiling()}


def _channels_last(network: nn.Module, bench: Bench) -> dict[str, Any]:
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.Conv2d):
            is_3d = isinstance(module, nn.Conv3d)
            module.to(memory_format=torch.channels_last_3d if is_3d else torch.channels_last)  # type: ignore[call-overload]
    return {}


def _benchmarked(network: nn.Module, bench: Bench) -> dict[str, Any]:
    torch.backends.cudnn.benchmark = True
    return {}


def _in_half(network: nn.Module, bench: Bench) -> dict[str, Any]:
    network.to(HALF)
    return {}


# Each changes the network, and those before it stay; what they give are options of the decoder.
_VARIANTS: Mapping[str, Callable[[nn.Module, Bench], dict[str, Any]]] = {
    "float32 tiled": _tiled,
    "float32 channels last": _channels_last,
    "float32 channels last, cudnn.benchmark": _benchmarked,
    "bfloat16 channels last": _in_half,
}


def text_encoder(bench: Bench) -> dict[str, Any]:
    """Two prompts of UMT5; and that a prompt alone and in a batch with padding has the same states."""
    bench.clear()
    network = random_text_encoder(bench)
    found: dict[str, Any] = {"weights_gb": bench.peak()}
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, network.config.vocab_size, (2, 512), generator=generator).to(bench.device)
    mask = torch.ones(2, 512, dtype=torch.bool, device=bench.device)
    mask[1, 37:] = False
    found |= bench.timed(lambda: network(ids, mask))
    with torch.no_grad():
        found["alone_difference"] = relative(network(ids[1:, :37]), network(ids, mask)[1:, :37])
    return found


def parity(bench: Bench) -> dict[str, Any]:
    """Trained weights (the bundled ``tiny-t2v``) on the device against float32 on the CPU: a forward, and a decode."""

    def results(device: str, dtype: str) -> dict[str, Tensor]:
        pipeline = load_pipeline("tiny-t2v", options=RuntimeOptions(device=device, dtype=dtype))
        config, generator = pipeline.components.dit.module().config, torch.Generator().manual_seed(0)
        noise = torch.randn(1, config.in_dim, 4, 8, 8, generator=generator).to(device)
        context = torch.randn(1, 12, config.text_dim, generator=generator).to(device)
        with torch.no_grad():
            timesteps = torch.full((1,), 500.0, device=device)
            velocity = pipeline.components.dit.module()(noise, timesteps, DiTInputs(context=context))
            with pipeline.components.vae.active() as network:
                video = network.decode(noise[:, : network.config.z_dim, :3])
        return {"dit": velocity.float().cpu(), "vae": video.float().cpu()}

    expected, found = results("cpu", "float32"), {}
    for dtype in ("float32", "bfloat16"):
        parts = results(str(bench.device), dtype)
        found[dtype] = {name: relative(tensor, expected[name]) for name, tensor in parts.items()}
    return found


def runs(bench: Bench) -> dict[str, Any]:
    """Whole videos: of three bundled models, and of ti2v-5B with random weights and as little kept as can be."""
    found: dict[str, Any] = {}
    for name in RUNS:
        pipeline = load_pipeline(name, options=RuntimeOptions(device=str(bench.device)))
        found[name] = _video(pipeline, {}, bench)
    if bench.left() > 60 or bench.is_tiny:
        size = {"num_frames": 5, "width": 32, "height": 32} if bench.is_tiny else {}
        name = "tiny-ti2v" if bench.is_tiny else "ti2v-5B"
        found[f"{name}, random weights"] = _video(_random_pipeline(name, bench), size, bench)
    return found


def _video(pipeline: Pipeline, size: Mapping[str, int], bench: Bench) -> dict[str, Any]:
    """Seconds from the request to latents and to the last frame, of which each is on the host, and peak memory."""
    request = pipeline.preset.task.request_type(prompt="a red circle", seed=1, num_inference_steps=STEPS, **size)
    inputs = pipeline.plan(request)
    marks: dict[str, Any] = {}
    bench.clear()
    start = time.monotonic()

    def note(latents: Tensor) -> None:
        bench.wait()
        marks["latents_s"] = round(time.monotonic() - start, 2)

    frames = [chunk.cpu() for chunk in pipeline.stream(inputs, on_latents=note)]
    finite = all(bool(chunk.isfinite().all()) for chunk in frames)
    count = sum(chunk.shape[1] for chunk in frames)
    marks |= {"s": round(time.monotonic() - start, 2), "frames": count, "finite": finite, "peak_gb": bench.peak()}
    return marks


def _random_pipeline(name: str, bench: Bench) -> Pipeline:
    preset, kernel = get_preset(name), choose_attention_backend("auto", bench.device).name

    class Text(nn.Module):
        def forward(self, prompts: list[str]) -> list[Tensor]:
            return [bench.normal(min(120, preset.dit.text_len), preset.dit.text_dim, dtype=HALF) for _ in prompts]

    def network(_: torch.device) -> nn.Module:
        made = random_dit(preset.dit, bench)
        prepare_model(made, inference=True, attention=kernel)
        return made

    def autoencoder(_: torch.device) -> Any:
        return random_network(preset.vae, VAE, torch.float32, bench)

    parts = {
        "text_encoder": Placed(lambda _: Text(), bench.device),
        "vae": Placed(autoencoder, bench.device, between=Between.DROP),
        "dit": Placed(network, bench.device, between=Between.DROP),
    }
    return Pipeline(preset, Components(device=bench.device, parts=parts), latent_spec=preset.latent_spec)


def _rate(work: float, unit: float, taken: Mapping[str, Any]) -> float:
    """Work in units per second."""
    return round(work / unit / max(taken["s"], 1e-9), 2)


SECTIONS: Mapping[str, tuple[Section, int]] = {
    "machine": (machine, 20),
    "parity": (parity, 20),
    "attention": (attention, 30),
    "dit-5B": (dit("ti2v-5B"), 60),
    "dit-A14B": (dit("t2v-A14B"), 90),
    "dit-1.3B": (dit("t2v-1.3B"), 30),
    "vae-2.2": (vae("2.2"), 60),
    "vae-2.1": (vae("2.1"), 60),
    "text-encoder": (text_encoder, 20),
    "runs": (runs, 60),
    "offload": (offload, 60),
    "training": (training, 60),
}
