"""Families ua_*: the teacher's step cache, network and loop, windows and LoRA."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from selfforcing_unianimate.picture import with_reference
from selfforcing_unianimate.windows import window_spans
from tests.goldens.handlers.dit import build_dit
from tests.goldens.harness import GoldenCase, handles
from wan_core.checkpoints import LoRA, MemorySource, TensorSource, with_loras
from wan_core.models import DiTInputs
from wan_core.presets import get_preset
from wan_core.runtime.step_cache import SkippableBlocks
from wan_core.sampling import Denoiser, StepCache, StepCacheRule, make_solver, sample


class Doubled(nn.Module):
    """A block that maps h to 2h + 1."""

    def forward(self, tokens: Tensor, *_rest: Any) -> tuple[Tensor, None]:
        return 2 * tokens + 1, None


PRESETS = {
    "Wan2.1-T2V-1.3B": "t2v-1.3B",
    "Wan2.1-T2V-14B": "t2v-14B",
    "Wan2.1-I2V-14B-480P": "i2v-14B-480P",
    "Wan2.1-I2V-14B-720P": "i2v-14B-720P",
}


@handles("ua_teacache")
def check_step_cache(case: GoldenCase) -> Mapping[str, Tensor]:
    ours = get_preset(PRESETS[case.call["model_id"]]).tea_cache
    assert torch.allclose(torch.tensor(ours), case.inputs["coefficients"], rtol=1e-6)
    rule = StepCacheRule(ours, case.call["rel_l1_thresh"])  # the file's are rounded
    cache = StepCache(rule, case.call["num_inference_steps"])
    blocks = SkippableBlocks([Doubled()])
    blocks.cache = cache
    skips, means = [], []
    for index, embedding in enumerate(case.inputs["t_mod"]):
        before, tokens = cache.skipped, torch.full((1, 2, 2), float(index))
        for block in blocks:
            tokens, _ = block(tokens, embedding, None, None)
        skips.append(cache.skipped - before)
        means.append(tokens.mean())
    return {"out.skip": torch.tensor(skips), "out.hidden_mean": torch.stack(means)}


@handles("ua_long_video_windows")
def check_windows(case: GoldenCase) -> Mapping[str, Tensor]:
    return {
        f"out.n{frames}_s{size}_o{overlap}": torch.tensor([[*span] for span in window_spans(frames, size, overlap)])
        for frames, size, overlap in case.call["cases"]
    }


@handles("ua_dit_add_condition")
def check_teacher(case: GoldenCase) -> Mapping[str, Tensor]:
    inputs, call = case.inputs, case.call
    latents = inputs["x"]
    frames, rows, columns = (n // p for n, p in zip(latents.shape[2:], case.config["patch_size"], strict=True))
    text_len = max(inputs["context_pos"].shape[1], inputs["context_neg"].shape[1])
    model = build_dit(replace(case, config={**case.config, "text_len": text_len}), case.weights)
    condition = inputs["add_condition"].unflatten(1, (frames, rows * columns))
    channels = inputs.get("y")
    if channels is not None and "random_ref" in inputs:
        channels = with_reference(channels, inputs["random_ref"])
    positive, negative = (
        DiTInputs(context=inputs[name], image_context=inputs.get("clip_feature"), channel_concat=channels)
        for name in ("context_pos", "context_neg")
    )
    posed = replace(positive, add_condition=condition)
    solver = make_solver("euler", call["steps"], flow_shift=call["sigma_shift"])
    seen: list[Tensor] = []
    denoiser = Denoiser(model, posed, negative, call["cfg_scale"])

    def watched(noisy: Tensor, timestep: Tensor) -> Tensor:
        seen.append(noisy)
        return denoiser(noisy, timestep)

    sampled = sample(watched, solver, latents)
    return {
        "out.flow_pose": model(latents, inputs["t"], posed),
        "out.flow_no_pose": model(latents, inputs["t"], positive),
        "out.sampled": sampled,
        "out.trajectory": torch.stack([*seen[1:], sampled]),
        "out.timesteps": solver.timesteps,
        "out.sigmas": solver.timesteps / 1000,
    }


@handles("ua_lora_merge")
def check_merge(case: GoldenCase) -> Mapping[str, Tensor]:
    base = MemorySource(case.named("in.base."))
    pairs = case.named("in.lora_unianimate.")
    kohya = {_kohya(name): tensor for name, tensor in pairs.items()}
    for name in [*kohya]:
        kohya[f"{name.partition('.')[0]}.alpha"] = torch.tensor(case.call["kohya_alpha"])
    spellings = {
        "merged": pairs,
        "peft": {_respelt(name, ".lora_A", ".lora_B"): tensor for name, tensor in pairs.items()},
        "dotted": {_respelt(name, ".lora_down", ".lora_up"): tensor for name, tensor in pairs.items()},
        "merged_kohya": kohya,
    }
    merged = {name: _merged(base, tensors, case.call["alpha"]) for name, tensors in spellings.items()}
    for other in ("peft", "dotted"):
        assert all(torch.equal(tensor, merged["merged"][name]) for name, tensor in merged[other].items())
    return {
        name: merged[kind][name.removeprefix(f"out.{kind}.")] for name in case.expected for kind in [name.split(".")[1]]
    }


def _merged(base: TensorSource, tensors: Mapping[str, Tensor], strength: float) -> dict[str, Tensor]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        merged = with_loras(base, [LoRA(path, strength)])
        return {name: merged.read(name) for name in merged}


def _respelt(name: str, down: str, up: str) -> str:
    name = name.replace("pipe.dit.", "diffusion_model.").replace(".default", "")
    return name.replace(".lora_A", down).replace(".lora_B", up)


def _kohya(name: str) -> str:
    layer, _, end = name.removeprefix("pipe.dit.").partition(".lora_")
    return f"lora_unet_{layer.replace('.', '_')}.lora_{'down' if end.startswith('A') else 'up'}.weight"
