"""Families poze_*: the adapter, Pi3's latents and guidance, extra context in the network, and guided loops."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from poze import Pi3FeatureAdapter, guidance_tokens
from poze.guidance import look
from poze.objectives import rollout
from tests.goldens.handlers.dit import build_dit, frame_timesteps
from tests.goldens.handlers.pi3 import build_pi3
from tests.goldens.harness import GoldenCase, handles
from wan_core.models import DiTInputs, WanDiT
from wan_core.sampling import Anchors, Denoiser, make_solver


def build_adapter(weights: Mapping[str, Tensor], target_tokens: int) -> Pi3FeatureAdapter:
    """The adapter with a case's weights."""
    out_dim, in_dim = weights["proj.1.weight"].shape
    adapter = Pi3FeatureAdapter(in_dim, out_dim, target_tokens)
    adapter.load_state_dict(weights)
    return adapter.eval()


@handles("poze_adapter")
def check_adapter(case: GoldenCase) -> Mapping[str, Tensor]:
    adapter = build_adapter(case.weights, case.config["target_tokens"])
    assert adapter.pooled == tuple(case.config["target_hw"])
    rows, columns = case.call["patch_hw"]
    return {"out.context": adapter(case.inputs["tokens"], (rows, columns))}


@handles("poze_pi3_latents_guidance")
def check_guidance(case: GoldenCase) -> Mapping[str, Tensor]:
    model = build_pi3(case, case.config["pi3"], case.named("weights.pi3."))
    adapter = build_adapter(case.named("weights.adapter."), case.config["adapter_target_tokens"])
    latents, output = look(model, case.inputs["imgs"])
    return {
        "mid.decoder_hidden": latents.hidden,
        "mid.pos": latents.positions,
        "mid.point_tokens": latents.point_tokens,
        "mid.conf_tokens": latents.conf_tokens,
        "mid.camera_tokens": latents.camera_tokens,
        "out.guidance": guidance_tokens(adapter, latents),
        "out.points": output.points,
        "out.local_points": output.local_points,
        "out.conf": output.conf,
        "out.camera_poses": output.camera_poses,
    }


@handles("poze_ti2v_extra_context")
def check_extra_context(case: GoldenCase) -> Mapping[str, Tensor]:
    model, inputs = build_dit(case, case.weights), case.inputs
    computed = {}
    for index in range(case.call["B"]):
        latents = inputs[f"x{index}"][None]
        frames, rows, columns = (n // p for n, p in zip(latents.shape[2:], model.config.patch_size, strict=True))
        timesteps = frame_timesteps(inputs["t"], index, rows * columns, frames, model.config.patch_size[0])
        extra = inputs["extra_context"][index : index + 1]
        for name, tokens in ((f"out.y{index}", extra), (f"out.y_no_extra{index}", None)):
            conditions = DiTInputs(context=inputs[f"context{index}"][None], extra_context=tokens)
            computed[name] = model(latents, timesteps, conditions)[0]
    return computed


@handles("poze_i2v_loop")
def check_loop(case: GoldenCase) -> Mapping[str, Tensor]:
    model = build_dit(case, case.weights, is_trained="target" in case.inputs)
    tokens = case.inputs["extra_context"]
    if "target" not in case.inputs:
        return {"out.latents": loop(case, model, tokens), "out.latents_no_extra": loop(case, model, None)}
    with torch.enable_grad():
        tokens = tokens.clone().requires_grad_(True)
        latents = loop(case, model, tokens)
        loss = functional.mse_loss(latents, case.inputs["target"])
        loss.backward()
    gradients = {f"out.grad.{name}": parameter.grad for name, parameter in model.named_parameters()}
    wanted = {name: value for name, value in gradients.items() if name in case.tensors and value is not None}
    assert tokens.grad is not None
    return wanted | {
        "out.latents": latents.detach(),
        "out.latents_no_extra": loop(case, model, None),
        "out.loss": loss.detach().reshape(1),
        "out.grad_extra_context": tokens.grad,
    }


def loop(case: GoldenCase, model: WanDiT, tokens: Tensor | None) -> Tensor:
    """Final latents [C, T, h, w] of the anchored loop, through the chain that finetuning differentiates."""
    inputs, call = case.inputs, case.call
    noise = inputs["noise"][None]
    anchors = Anchors.leading(inputs["anchor"][None], noise.shape[2])
    positive, negative = (
        DiTInputs(context=inputs[name][None], extra_context=tokens) for name in ("context", "context_null")
    )
    denoiser = Denoiser(model, positive, negative, call["guide_scale"], anchors=anchors)
    solver = make_solver(call["solver"], call["steps"], flow_shift=call["shift"])
    return rollout(denoiser, solver, noise, anchors=anchors)[0]
