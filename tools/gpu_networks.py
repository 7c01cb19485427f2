"""What the GPU check measures with: networks of real size with weights drawn on the device, time, memory, kernels."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wan_core.checkpoints import DIT, UMT5, VAE, DerivedSource, Family, MemorySource, Recipe, build_on_meta, load_model
from wan_core.checkpoints.load import Place
from wan_core.checkpoints.readers.sources import TensorInfo
from wan_core.models import UMT5_XXL, WAN21_VAE, WAN22_VAE, WanDiTConfig
from wan_core.presets import get_preset

# Latents (frames, height, width) of the videos that the models are for.
LATENTS = {"ti2v-5B": (31, 44, 80), "t2v-A14B": (21, 90, 160), "t2v-1.3B": (21, 60, 104)}
TINY_LATENTS = (3, 8, 8)


@dataclass(frozen=True)
class Bench:
    """Where and how long: ``end`` on the clock of `time.monotonic`; ``is_tiny`` shrinks every network."""

    device: torch.device
    is_tiny: bool = False
    end: float = float("inf")
    repeats: int = 3

    @property
    def has_gpu(self) -> bool:
        return self.device.type == "cuda"

    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.has_gpu:
            torch.cuda.synchronize(self.device)

    def clear(self) -> None:
        """Free what nobody holds, and forget the peak."""
        gc.collect()
        if self.has_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> float | None:
        """The most memory since `clear`, in GB; None on the CPU."""
        return round(torch.cuda.max_memory_allocated(self.device) / 1e9, 3) if self.has_gpu else None

    def timed(self, call: Callable[[], Any], *, repeats: int | None = None, warm: int = 1) -> dict[str, Any]:
        """Median and least seconds of a call after ``warm`` ones that do not count, and its peak memory."""
        with torch.no_grad():
            for _ in range(warm):
                call()
            self.wait()
            self.clear()
            taken = []
            for _ in range(repeats or self.repeats):
                start = time.perf_counter()
                call()
                self.wait()
                taken.append(time.perf_counter() - start)
        return {"s": round(statistics.median(taken), 5), "least_s": round(min(taken), 5), "peak_gb": self.peak()}

    def kernels(self, call: Callable[[], Any], top: int = 8) -> dict[str, Any] | None:
        """The GPU's kernels in one call: how many, and those that take longest, in milliseconds."""
        if not self.has_gpu:
            return None
        from torch.profiler import ProfilerActivity, profile

        with torch.no_grad(), profile(activities=[ProfilerActivity.CUDA]) as profiled:
            call()
            self.wait()
        rows = sorted(profiled.key_averages(), key=lambda row: -row.self_device_time_total)
        rows = [row for row in rows if row.self_device_time_total > 0]
        longest = [[row.key[:90], row.count, round(row.self_device_time_total / 1e3, 2)] for row in rows[:top]]
        return {"launches": sum(row.count for row in rows), "longest_ms": longest}

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        """Seeded normal numbers, drawn on the device."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device).to(dtype)


def random_network(config: Any, family: Family, dtype: torch.dtype, bench: Bench, *, place: Place | None = None) -> Any:
    """A network with small random weights, each of them drawn on the device as the loader asks for it."""
    shapes = build_on_meta(partial(family.build, config)).state_dict()
    recipes = {
        name: Recipe(
            (), TensorInfo(tuple(tensor.shape), torch.float32), partial(_weight, name, tuple(tensor.shape), bench)
        )
        for name, tensor in shapes.items()
    }
    source = DerivedSource(MemorySource({}, path=Path("random weights")), recipes)
    return load_model(config, source, family=family, dtype=dtype, device=bench.device, place=place)


def _weight(name: str, shape: tuple[int, ...], bench: Bench, *_: Any) -> Tensor:
    leaf = name.rpartition(".")[2]
    if leaf == "bias":
        return torch.zeros(shape, device=bench.device)
    if leaf == "gamma" or len(shape) <= 1:  # of norms
        return torch.ones(shape, device=bench.device)
    return bench.normal(*shape, seed=len(name)) * 0.02


def dit_config(name: str, bench: Bench) -> tuple[WanDiTConfig, tuple[int, int, int]]:
    """The network of a preset, and the latents of its largest usual video; both tiny where the bench is."""
    config = get_preset(name).dit
    if not bench.is_tiny:
        return config, LATENTS[name]
    return replace(config, dim=96, ffn_dim=128, num_heads=2, num_layers=2, text_dim=32), TINY_LATENTS


def random_dit(config: WanDiTConfig, bench: Bench, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """A denoising network, as `random_network`."""
    network: nn.Module = random_network(config, DIT, dtype, bench)
    return network


def random_vae(version: str, dtype: torch.dtype, bench: Bench) -> Any:
    """The autoencoder of Wan ``2.1`` or ``2.2``."""
    config = {"2.1": WAN21_VAE, "2.2": WAN22_VAE}[version]
    return random_network(replace(config, dim=16, dec_dim=16) if bench.is_tiny else config, VAE, dtype, bench)


def random_text_encoder(bench: Bench) -> Any:
    """UMT5-XXL in bfloat16."""
    tiny: Mapping[str, int] = {
        "vocab_size": 100,
        "dim": 64,
        "dim_attn": 64,
        "dim_ffn": 64,
        "num_heads": 2,
        "num_layers": 2,
    }
    config = replace(UMT5_XXL, **tiny) if bench.is_tiny else UMT5_XXL
    return random_network(config, UMT5, torch.bfloat16, bench)


def dit_tflop(config: WanDiTConfig, tokens: int, text: int = 512) -> float:
    """TFLOP of a forward with cached text keys: products of the blocks, and both attentions."""
    products = 2 * tokens * config.dim * (6 * config.dim + 2 * config.ffn_dim)
    return config.num_layers * (products + 4 * tokens * config.dim * (tokens + text)) / 1e12


def relative(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over that of ``expected``."""
    return round(((found.float() - expected.float()).norm() / expected.float().norm()).item(), 7)
