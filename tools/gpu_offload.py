"""The GPU check's offload: a network that stays, one whose blocks pass through, and two that take turns."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tools.gpu_networks import Bench, dit_config, random_network, relative
from wan_core.checkpoints import DIT
from wan_core.models import DiTInputs
from wan_core.runtime import Between, HostCopy, Placed, choose_attention_backend, prepare_model

_PRESET = "ti2v-5B"


def offload(bench: Bench) -> dict[str, Any]:
    """Forwards of 5B: its weights on the device, in blocks that pass through, and beside another one's turn.

    ``turns`` are a forward of each of two networks, of which the second waits in page-locked host memory: it comes when
    it is its turn, or early, while the first computes. What is computed must be the same.
    """
    kernel = choose_attention_backend("auto", bench.device).name
    config, latents = dit_config(_PRESET, bench)
    noise = bench.normal(1, config.in_dim, *latents)
    inputs = DiTInputs(context=bench.normal(1, 120, config.text_dim, dtype=torch.bfloat16))
    timesteps = torch.full((1,), 500.0, device=bench.device)

    def load(host: HostCopy | None = None) -> Any:
        network = random_network(config, DIT, torch.bfloat16, bench, place=None if host is None else host.place)
        if host is not None:
            host.bind(network)
        prepare_model(network, inference=True, attention=kernel)
        return network

    def placed(between: Between, *, in_blocks: bool = False) -> Placed[Any]:
        part: Placed[Any] = Placed(lambda _: load(), bench.device, between=between, load_through=load)
        part.in_blocks = in_blocks
        return part

    def forward(network: nn.Module) -> Tensor:
        with torch.no_grad():
            velocity: Tensor = network(noise, timesteps, inputs)
        return velocity

    found: dict[str, Any] = {"latents": list(latents)}
    bench.clear()
    stays = placed(Between.KEEP)
    expected = forward(stays.module())
    found["stays"] = bench.timed(lambda: forward(stays.module()))
    waits = placed(Between.HOST)
    forward(waits.module())
    for label, is_early in (("turns, in order", False), ("turns, the second early", True)):
        turns = partial(_turns, stays, waits, forward, is_early)
        turns()  # the second network leaves
        found[label] = bench.timed(turns)
    del waits, turns
    stays.between = Between.DROP
    stays.rest()
    bench.clear()
    start = time.perf_counter()
    passes = placed(Between.DROP, in_blocks=True)
    difference = relative(forward(passes.module()), expected)
    bench.wait()
    found["in blocks"] = {"first_s": round(time.perf_counter() - start, 2), "difference": difference}
    found["in blocks"] |= bench.timed(lambda: forward(passes.module()))
    passes.rest()
    return found


def _turns(first: Placed[Any], second: Placed[Any], forward: Callable[[nn.Module], Tensor], is_early: bool) -> None:
    network = first.module()
    if is_early:
        second.prefetch()
    forward(network)
    forward(second.module())
    second.rest()
