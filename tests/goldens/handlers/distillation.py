"""Families sf_losses_distill, sf_losses_train and sf_rollout; latents of the files are [B, T, C, H, W]."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from selfforcing_unianimate.causal_dit import CausalDiT, CausalInputs
from selfforcing_unianimate.distillation.forcing import (
    History,
    forcing_loss,
    path_latents,
    regression_loss,
    shared_by_block,
)
from selfforcing_unianimate.distillation.matching import (
    Predict,
    ScoreTimes,
    critic_loss,
    dmd_gradient,
    dmd_loss,
    guided,
    sid_loss,
)
from selfforcing_unianimate.distillation.rollout import SelfForcing
from tests.goldens.handlers.self_forcing import blocks_of, build_causal, pose_tokens
from tests.goldens.harness import GoldenCase, handles
from wan_core.sampling import FlowTable


def turned(latents: Tensor) -> Tensor:
    """Frames before channels, or the other way round."""
    return latents.transpose(-4, -3)


def given_prediction(case: GoldenCase, name: str) -> Predict:
    return lambda noisy, timesteps: turned(case.inputs[name])


def linear_prediction(case: GoldenCase, name: str) -> Predict:
    """A score that is a line in the noisy latents."""
    slope, offset = case.inputs[f"sid.{name}.a"], turned(case.inputs[f"sid.{name}.b"])
    return lambda noisy, timesteps: slope * noisy + offset


@handles("sf_losses_distill")
def losses_distill(case: GoldenCase) -> Mapping[str, Tensor]:
    call, noise = case.call, turned(case.inputs["noise"])
    latents = turned(case.inputs["x"]).clone().requires_grad_()
    times = ScoreTimes(flow_shift=call["timestep_shift"], low=call["min_step"], high=call["max_step"])
    table = FlowTable(call["timestep_shift"])
    timesteps = times.shifted(case.inputs["timestep_raw"][:, 0])
    noisy = table.add_noise(latents.detach(), noise, timesteps)
    mask = case.inputs.get("gradient_mask")
    mask = None if mask is None else turned(mask).bool()
    given = {name: given_prediction(case, name) for name in ("real_cond", "real_uncond", "fake_cond", "fake_uncond")}
    real = guided(given["real_cond"], given["real_uncond"], call["real_guidance_scale"])(noisy, timesteps)
    fake = guided(given["fake_cond"], given["fake_uncond"], call["fake_guidance_scale"])(noisy, timesteps)
    gradient = dmd_gradient(latents, real, fake)
    velocity = table.velocity(given["fake_cond"](noisy, timesteps), noisy, timesteps)
    shown = timesteps[:, None].expand(-1, latents.shape[2])
    with torch.enable_grad():
        loss = dmd_loss(latents, gradient, mask)
        mixed = table.add_noise(latents, noise, timesteps)
        lines = {name: linear_prediction(case, name) for name in ("real_cond", "real_uncond", "fake")}
        wanted = guided(lines["real_cond"], lines["real_uncond"], call["real_guidance_scale"])(mixed, timesteps)
        sid = sid_loss(latents, wanted, lines["fake"](mixed, timesteps), alpha=call["sid_alpha"])
        grads = [torch.autograd.grad(value, latents)[0] for value in (loss, sid)]
    return {
        "out.timestep": shown,
        "out.critic_timestep": shown,
        "out.noisy": turned(noisy),
        "out.kl_grad": turned(gradient),
        "out.gradient_norm": gradient.abs().mean()[None],
        "out.loss": loss[None],
        "out.grad_x": turned(grads[0]),
        "out.critic_loss_flow": critic_loss(velocity, latents, noise)[None],
        "out.sid_loss": sid[None],
        "out.sid_grad_x": turned(grads[1]),
    }


def forced(case: GoldenCase) -> tuple[CausalDiT, CausalInputs, FlowTable]:
    network = build_causal(case, case.weights, is_trained=True)
    inputs = CausalInputs(context=case.inputs["context"], blocks=blocks_of(case))
    return network, inputs, FlowTable(case.call["timestep_shift"])


@handles("sf_losses_train")
def losses_train(case: GoldenCase) -> Mapping[str, Tensor]:
    network, inputs, table = forced(case)
    call, clean, noise = case.call, turned(case.inputs["clean"]), turned(case.inputs["noise"])
    inputs = replace(inputs, add_condition=pose_tokens(case, clean))
    augmented: dict[str, Any] = {}
    if call.get("noise_augmentation_max_timestep", 0) > 0:
        augmented = {"entries": case.inputs["aug_index_raw"], "noise": noise, "from_noisiest": True}
    history = History(**augmented) if call["teacher_forcing"] else None
    judged = forcing_loss(network, clean, noise, case.inputs["index_raw"], inputs, table, history=history)
    path, entries, steps = turned(case.inputs["ode_latent"]), case.inputs["ode_index_raw"], call["denoising_steps"]
    states, end = path[:, : len(steps)], path[:, -1]
    regressed = regression_loss(network, states, end, entries, steps, inputs, table)
    shared = shared_by_block(entries, inputs.blocks)
    return {
        "out.loss": judged.loss[None],
        "out.x0_pred": turned(judged.clean),
        "out.ode_input": turned(path_latents(states, shared)),
        "out.ode_timestep_mean": torch.tensor(steps)[shared].mean()[None],
        "out.ode_pred": turned(regressed.clean),
        "out.ode_loss": regressed.loss[None],
    }


@handles("sf_rollout")
def rollout(case: GoldenCase) -> Mapping[str, Tensor]:
    network, inputs, table = forced(case)
    call, draws = case.call, iter(range(len(case.named("in.draw."))))

    def draw(latents: Tensor) -> Tensor:
        return rearrange(case.inputs[f"draw.{next(draws)}"], "(b t) c h w -> b c t h w", b=latents.shape[0])

    forcing = SelfForcing(
        table=table, timesteps=call["denoising_steps_warped"], context_noise=float(call["context_noise"])
    )
    noise, given = turned(case.inputs["noise"]), case.inputs.get("initial_latent")
    exits = case.inputs["exit_flags"].tolist()
    exits = exits[:1] * len(exits) if call["same_step_across_blocks"] else exits
    weight = turned(case.inputs["loss_weight"])
    inputs = replace(inputs, add_condition=pose_tokens(case, weight))
    names = {name.removeprefix("out.grad."): name for name in case.expected if name.startswith("out.grad.")}
    with torch.enable_grad():
        rolled = forcing.roll(network, noise, inputs, exits, given=None if given is None else turned(given), draw=draw)
        grads = torch.autograd.grad((rolled.latents * weight).sum(), [network.get_parameter(name) for name in names])
    found = (rolled.entered, rolled.left)
    if found != (call["denoised_timestep_from"], call["denoised_timestep_to"]):
        raise ValueError(f"the last step is {found}, the reference has another")
    return {"out.output": turned(rolled.latents), **dict(zip(names.values(), grads, strict=True))}
