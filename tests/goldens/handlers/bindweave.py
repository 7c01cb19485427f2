"""Families bindweave_*: references, the transformer and its loop, schedules, and the conversion of weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from bindweave import BINDWEAVE, BindWeaveConfig
from bindweave.conversion import Converted, StageLayers, convert_to_hf, convert_to_mm
from bindweave.dit import BindWeaveDiT, BindWeaveInputs, count_tokens
from bindweave.references import Reference, blank_video, clip_input, clip_tokens, letterbox, reference_frames
from tests.goldens.harness import GoldenCase, finished, handles
from wan_core.checkpoints import CLIP, VAE, MemorySource, load_model, native_weights, read_weights
from wan_core.media import LatentSpec, VideoGeometry
from wan_core.models import CLIPConfig, VAEConfig
from wan_core.sampling import Denoiser, make_solver, sample
from wan_core.sampling.flow_table import FlowTable
from wan_core.sampling.solvers.base import MultistepSolver
from wan_core.training import make_flow_batch

GRIDS = {"A": "wan", "B": "diffusers"}
SPEC = LatentSpec(channels=16)


def build(case: GoldenCase, text_len: int) -> BindWeaveDiT:
    """The network of a case, whose weights have the names of MM."""
    config, source = case.config, MemorySource(case.weights)
    native = native_weights(source, BINDWEAVE)
    dims = BindWeaveConfig(
        in_dim=config["in_dim"],
        out_dim=config["out_dim"],
        dim=config["hidden_size"],
        ffn_dim=config["ffn_dim"],
        num_heads=config["num_heads"],
        num_layers=config["num_layers"],
        freq_dim=config["freq_dim"],
        text_dim=config["text_dim"],
        text_len=text_len,
        eps=config["eps"],
        image_dim=config["img_dim"],
        image_tokens=config["clip_token_len"],
        mllm_dim=native.info("text_projector.linear_1.weight").shape[1],
    )
    network: BindWeaveDiT = load_model(dims, native, family=BINDWEAVE)
    return finished(network)


def conditions(inputs: Mapping[str, Tensor], frames: int, text: str, states: str) -> BindWeaveInputs:
    """The conditions of a case; the last ``frames`` of its channels are those of the video."""
    channels = inputs["i2v_vae_feature"]
    count = channels.shape[2] - frames
    masks = inputs.get("hidden_states_mask"), inputs.get("prompt_mask")
    return BindWeaveInputs(
        context=inputs[text],
        hidden_states=inputs[states],
        image_context=inputs["i2v_clip_feature"],
        channel_concat=channels[:, :, count:],
        references=channels[:, :, :count] if count else None,
        num_tokens=None if masks[0] is None or masks[1] is None else count_tokens(masks[0], masks[1]),
    )


@handles("bindweave_dit")
def transformer(case: GoldenCase) -> Mapping[str, Tensor]:
    inputs, latents = case.inputs, case.inputs["x"]
    network = build(case, inputs["prompt"].shape[1])
    given = conditions(inputs, latents.shape[2], "prompt", "hidden_states")
    text, image = network.embed_context(given)
    time = network.time_rows(inputs["timestep"][:, None], (1,))
    return {
        "mid.prompt_concat": network.text_states(given),
        # Tokens of further references come before the text.
        "mid.prompt_emb": text if image is None else torch.cat([image, text], dim=1),
        "mid.time_emb": time.blocks[:, 0],
        "mid.times": time.head[:, 0],
        "out.sample": network(latents, inputs["timestep"], given),
    }


@handles("bindweave_denoise")
def loop(case: GoldenCase) -> Mapping[str, Tensor]:
    inputs, call, noise = case.inputs, case.call, case.inputs["noise"]
    network = build(case, inputs["prompt_embeds"].shape[1])
    positive = conditions(inputs, noise.shape[2], "prompt_embeds", "hidden_states")
    negative = conditions(inputs, noise.shape[2], "negative_prompt_embeds", "hidden_states_negative")
    solver = make_solver(
        "unipc", call["steps"], flow_shift=call["scheduler"]["flow_shift"], grid=GRIDS[case.metadata["schedule"]]
    )
    assert isinstance(solver, MultistepSolver)
    denoiser = Denoiser(network, positive.with_cache(), negative.with_cache(), call["guidance_scale"])
    seen: list[Tensor] = []
    velocities: list[Tensor] = []

    def watched(latents: Tensor, timestep: Tensor) -> Tensor:
        seen.append(latents)
        velocities.append(denoiser(latents, timestep))
        return velocities[-1]

    latents = sample(watched, solver, noise)
    first = solver.timesteps[:1].float()
    return {
        "mid.timesteps": solver.timesteps,
        "mid.sigmas": torch.tensor(solver.sigmas),
        "mid.cond_step0": network(noise, first, positive),
        "mid.uncond_step0": network(noise, first, negative),
        "mid.noise_pred_guided": torch.stack(velocities),
        "mid.latents_per_step": torch.stack([*seen[1:], latents]),
        "out.latents": latents,
    }


def pictures(case: GoldenCase) -> list[Image.Image]:
    inputs = case.inputs
    count = sum(name.startswith("image") for name in inputs)
    return [Image.fromarray(inputs[f"image{index}"].numpy()) for index in range(count)]


def as_bytes(reference: Reference) -> Tensor:
    return (reference.pixels * 255).round().to(torch.uint8)


@handles("bindweave_letterbox")
def letterboxes(case: GoldenCase) -> Mapping[str, Tensor]:
    computed: dict[str, Tensor] = {}
    for index, image in enumerate(pictures(case)):
        reference = letterbox(image, case.config["width"], case.config["height"])
        seen, (left, top, width, height) = clip_input(reference.pixels[None], case.config["clip"])[0], reference.box
        computed |= {
            f"out.ref{index}.content_box_xyxy": torch.tensor([left, top, left + width, top + height]),
            f"out.ref{index}.clip_input_mean": seen.mean((1, 2)),
            f"out.ref{index}.clip_input_stride4": seen[:, ::4, ::4],
            f"out.ref{index}.letterboxed_stride8_u8": as_bytes(reference)[:, ::8, ::8],
            f"out.ref{index}.mask": reference.mask(SPEC).to(torch.uint8),
        }
    return computed


@handles("bindweave_conditioning")
def conditioning(case: GoldenCase) -> Mapping[str, Tensor]:
    call, values = case.call, case.config["vae"]
    clip = load_model(clip_config(case.config["clip"]), MemorySource(case.named("weights.clip.")), family=CLIP)
    config = VAEConfig(
        dim=values["base_dim"],
        z_dim=values["z_dim"],
        dim_mult=values["dim_mult"],
        num_res_blocks=values["num_res_blocks"],
        temporal_downsample=values["temperal_downsample"],
        latents_mean=values["latents_mean"],
        latents_std=values["latents_std"],
    )
    vae = load_model(config, MemorySource(case.named("weights.vae.")), family=VAE)
    images = pictures(case)
    references = [letterbox(image, call["width"], call["height"]) for image in images]
    kept = references[: call["kept"]]
    geometry = VideoGeometry.for_video(SPEC, call["frames"], call["height"], call["width"])
    blank = blank_video(vae, geometry)
    computed = {
        "mid.blank_video_latent": blank[:, 4:],
        "mid.ref0.clip_input": clip_input(references[0].pixels[None], clip.config.image_size),
        "out.i2v_clip_feature": clip_tokens(kept, clip, 4),
        "out.i2v_vae_feature": torch.cat([reference_frames(kept, vae, SPEC, 4), blank], dim=2),
        "out.video": vae.decode(case.inputs["final_latents"]).clamp(-1, 1),
    }
    for index, reference in enumerate(references):
        computed[f"mid.ref{index}.mask_and_latent"] = reference_frames([reference], vae, SPEC, 1)
        computed[f"mid.ref{index}.vae_input_u8"] = as_bytes(reference)
    return computed


def clip_config(values: Mapping[str, Any]) -> CLIPConfig:
    return CLIPConfig(
        image_size=values["image_size"],
        patch_size=values["patch_size"],
        dim=values["hidden_size"],
        ffn_dim=values["intermediate_size"],
        num_heads=values["num_attention_heads"],
        num_layers=values["num_hidden_layers"],
        activation=values["hidden_act"],
    )


@handles("bindweave_unipc")
def unipc(case: GoldenCase) -> Mapping[str, Tensor]:
    computed: dict[str, Tensor] = {}
    for steps in case.call["num_inference_steps"]:
        solver = make_solver(
            "unipc", steps, flow_shift=case.config["flow_shift"], grid=GRIDS[case.metadata["schedule"]]
        )
        assert isinstance(solver, MultistepSolver)
        computed |= {
            f"out.n{steps}.timesteps": solver.timesteps,
            f"out.n{steps}.sigmas": torch.tensor(solver.sigmas),
            f"out.n{steps}.samples": stepped(solver, case.inputs, f"n{steps}"),
        }
    return computed


def stepped(solver: MultistepSolver, inputs: Mapping[str, Tensor], name: str, start: str | None = None) -> Tensor:
    """The sample after each step under recorded velocities."""
    latents, visited = inputs[start or f"{name}.noise"], []
    for index, velocity in enumerate(inputs[f"{name}.model_outputs"]):
        latents = solver.step(velocity, index, latents, None)
        visited.append(latents)
    return torch.stack(visited)


@handles("bindweave_flow_match")
def flow_match(case: GoldenCase) -> Mapping[str, Tensor]:
    table, inputs = FlowTable(case.config["shift"]), case.inputs
    clean, noise = inputs["x0"], inputs["noise"]
    computed = {
        "out.train.sigmas": table.sigmas, "out.train.timesteps": table.timesteps, "out.train.weights": table.weights,
    }  # fmt: skip
    for index in range(len(case.call["indices"])):
        time = inputs[f"{index}.t"]
        shown = make_flow_batch(clean, table.sigmas[table.index(time)], noise)  # as the trainer has it
        computed |= {
            f"out.{index}.weight": table.weight(time),
            f"out.{index}.x_t": table.add_noise(clean, noise, time),
            f"out.{index}.loss": shown.loss(inputs[f"{index}.pred"], level_weights=table.weight(shown.timesteps)).view(
                1
            ),
        }
    runs = [name for name in case.named("out.infer") if name.endswith(".sigmas")]
    for steps in (int(name.partition(".")[0]) for name in runs):
        solver = make_solver("euler", steps, flow_shift=case.config["shift"])
        assert isinstance(solver, MultistepSolver)
        computed[f"out.infer{steps}.sigmas"] = torch.tensor(solver.sigmas[:-1])
        computed[f"out.infer{steps}.timesteps"] = solver.timesteps
        if f"infer{steps}.model_outputs" in inputs:
            computed[f"out.infer{steps}.samples"] = stepped(solver, inputs, f"infer{steps}", "noise")
    return computed


@handles("bindweave_convert")
def conversion(case: GoldenCase) -> Mapping[str, Tensor]:
    computed: dict[str, Tensor] = {}
    layouts = {name: call for name, call in case.call.items() if "pp_vpp_layers" in call}
    with TemporaryDirectory() as folder:
        release = split_release(case.named("in.hf."), Path(folder) / "release", case.call["hf_back"]["files"])
        for name, layout in layouts.items():
            target, layers = Path(folder) / name, layout["pp_vpp_layers"]
            done = convert_to_mm(release, target, StageLayers.parse(json.dumps(layers) if layers else None))
            assert sorted(done.files) == sorted(layout["files"])
            assert (target / done.files[0]).read_text() == layout["latest"]
            for file, keys in layout["top_keys"].items():
                computed |= stage_tensors(target / file, keys, f"out.{name}.{Path(file).parent.name}.")
            same_release(case, convert_to_hf(target, Path(folder) / f"{name}_back", release))
    return computed


def stage_tensors(file: Path, keys: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """The tensors of a stage's file under the golden's names; its keys must be these."""
    content = torch.load(file, weights_only=True)
    assert {name: sorted(value) if isinstance(value, dict) else value for name, value in content.items()} == keys
    levels = {name: value for name, value in content.items() if isinstance(value, dict)}
    return {f"{prefix}{level}.{key}": tensor for level, held in levels.items() for key, tensor in held.items()}


def same_release(case: GoldenCase, back: Converted) -> None:
    """Whether what came back is what was there, without the tensors that no network uses."""
    missing = set(case.call["hf_back"]["missing_keys"])
    assert sorted(back.files) == sorted(case.call["hf_back"]["files"])
    source, wanted = read_weights(back.folder), case.named("in.hf.")
    assert set(source) == set(wanted) - missing
    assert all(torch.equal(source.read(key), wanted[key]) for key in source)


def split_release(tensors: Mapping[str, Tensor], folder: Path, files: list[str]) -> Path:
    """The release in shards of these names, with an index."""
    folder.mkdir()
    shards = [name for name in files if name.endswith(".safetensors")]
    names = sorted(tensors)
    placed = {name: shards[index * len(shards) // len(names)] for index, name in enumerate(names)}
    for shard in shards:
        save_file({name: tensors[name].contiguous() for name in names if placed[name] == shard}, folder / shard)
    index = next(name for name in files if name.endswith(".json"))
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder
