"""Families pi3_*, pi3x and dinov2: Pi3, its parts, its files, and the image encoder."""

import io
import re

import torch
from PIL import Image
from torch import Tensor

from pi3.blocks import Block
from pi3.camera import CameraHead, invert_rigid, nearest_rotation
from pi3.conditions import Conditions
from pi3.config import DinoConfig, Pi3Config, Pi3XConfig
from pi3.dinov2.vit import VisionTransformer
from pi3.edges import depth_edges, keep_mask, normal_edges, normals_of_points, surface_edges
from pi3.geometry import intrinsics_of_rays, pixel_centres
from pi3.heads import LinearHead
from pi3.images import input_size, pictures_to_tensor
from pi3.model import Pi3
from pi3.pi3x import Pi3X
from pi3.ply import write_ply_to
from pi3.rope2d import rope_table, rotate
from tests.goldens.harness import Computed, GoldenCase, handles


def count_blocks(weights: dict[str, Tensor], prefix: str) -> int:
    """How many numbered modules stand under a prefix such as ``decoder.``."""
    numbers = {int(m[1]) for name in weights if (m := re.match(re.escape(prefix) + r"(\d+)\.", name))}
    return len(numbers)


def encoder_config(weights: dict[str, Tensor], image_size: int, heads: int) -> DinoConfig:
    """The image encoder of a case, from its weights."""
    weight = weights["encoder.patch_embed.proj.weight"]
    registers = weights.get("encoder.register_tokens")
    return DinoConfig(
        image_size=image_size,
        patch_size=weight.shape[-1],
        dim=weight.shape[0],
        num_layers=count_blocks(weights, "encoder.blocks."),
        num_heads=heads,
        mlp_ratio=weights["encoder.blocks.0.mlp.fc1.weight"].shape[0] / weight.shape[0],
        num_registers=0 if registers is None else registers.shape[1],
        layer_scale="encoder.blocks.0.ls1.gamma" in weights,
    )


def build_pi3(case: GoldenCase, config: dict[str, int], weights: dict[str, Tensor]) -> Pi3:
    """The Pi3 of a case's config, also of families that contain one."""
    model = Pi3(
        Pi3Config(
            encoder=encoder_config(weights, config["img_size"], config["enc_heads"]),
            decoder_layers=config["dec_depth"],
            decoder_heads=config["dec_heads"],
            num_registers=weights["register_token"].shape[2],
            head_dim=config["head_dim"],
            head_heads=config["head_heads"],
            head_layers=config["head_depth"],
            camera_dim=config["cam_dim"],
        )
    )
    model.load_state_dict(weights)
    return model.eval()


@torch.no_grad()
def check_pi3(case: GoldenCase) -> dict[str, Tensor]:
    model = build_pi3(case, case.config, case.weights)
    states: dict[str, Tensor] = {}
    for name in case.expected:
        if match := re.fullmatch(r"mid\.decoder_block(\d+)", name):
            model.decoder[int(match[1])].register_forward_hook(
                lambda module, args, out, name=name: states.__setitem__(name, out)
            )
    images = case.inputs["imgs"]
    latents = model.encode(images)
    output = model.decode(latents)
    return {
        **states,
        "mid.encoder_patchtokens": model.encode_views(images),
        "mid.point_tokens": latents.point_tokens,
        "mid.conf_tokens": latents.conf_tokens,
        "mid.camera_tokens": latents.camera_tokens,
        "out.points": output.points,
        "out.local_points": output.local_points,
        "out.conf": output.conf,
        "out.camera_poses": output.camera_poses,
    }


handles("pi3_full")(check_pi3)


def build_pi3x(case: GoldenCase) -> Pi3X:
    config, weights = case.config, case.weights
    model = Pi3X(
        Pi3XConfig(
            encoder=encoder_config(weights, config["img_size"], config["heads"]),
            decoder_layers=config["depth"],
            decoder_heads=config["heads"],
            num_registers=weights["register_token"].shape[2],
            head_dim=weights["point_decoder.projects.weight"].shape[0],
            head_heads=config["heads"],
            head_layers=count_blocks(weights, "point_decoder.blocks."),
            camera_dim=config["cam"],
            upsample_dims=tuple(config["up"]),
            metric_dim=config["met"],
            metric_heads=config["mheads"],
            metric_layers=count_blocks(weights, "metric_decoder.blocks."),
            inject_after=tuple(config["inject"]),
            multimodal="depth_emb" in weights,
        )
    )
    model.load_state_dict(weights)
    return model.eval()


@handles("pi3x")
@torch.no_grad()
def check_pi3x(case: GoldenCase) -> dict[str, Tensor]:
    inputs = case.inputs
    masks = {f"{kind}_mask": inputs.get(f"mask_add_{kind}") for kind in ("depth", "ray", "pose")}
    if case.call.get("with_prior") is False:
        nowhere = torch.zeros(inputs["imgs"].shape[:2], dtype=torch.bool)
        masks = {name: nowhere if mask is None else mask for name, mask in masks.items()}
    known = {name: inputs[name] for name in ("depths", "intrinsics", "rays", "poses") if name in inputs}
    given = {name: value for name, value in {**known, **masks}.items() if value is not None}
    output = build_pi3x(case)(inputs["imgs"], Conditions(**given) if given else None)
    return {f"out.{name}": value for name, value in vars(output).items() if f"out.{name}" in case.expected}


@handles("dinov2")
@torch.no_grad()
def check_dinov2(case: GoldenCase) -> dict[str, Tensor]:
    options, weights = case.config, case.weights
    weight = weights["patch_embed.proj.weight"]
    model: VisionTransformer = VisionTransformer(
        DinoConfig(
            image_size=options["img_size"],
            patch_size=weight.shape[-1],
            in_channels=weight.shape[1],
            dim=options["embed_dim"],
            num_layers=options["depth"],
            num_heads=options["heads"],
            mlp_ratio=options["mlp_ratio"],
            num_registers=options["registers"],
            layer_scale=bool(options["init_values"]),
            interpolate_antialias=options["interpolate_antialias"],
            interpolate_offset=options["interpolate_offset"],
        )
    )
    model.load_state_dict({name: value for name, value in weights.items() if name != "mask_token"})
    computed = {}
    for name, images in case.inputs.items():
        index = name.removeprefix("x")
        features = model.eval()(images)
        height, width = (side // model.config.patch_size for side in images.shape[-2:])
        computed |= {
            f"mid.pos_embed{index}": model.position_embedding(height, width),
            f"mid.tokens{index}": model.embed(images),
            f"out.x_norm_clstoken{index}": features.class_token,
            f"out.x_norm_regtokens{index}": features.registers,
            f"out.x_norm_patchtokens{index}": features.patches,
            f"out.x_prenorm{index}": features.prenorm,
        }
    return computed


@handles("pi3_rope_block")
@torch.no_grad()
def check_block(case: GoldenCase) -> dict[str, Tensor]:
    config, call, inputs = case.config, case.call, case.inputs
    head_dim = config["dim"] // config["num_heads"]
    scale = 1.0 if config["layerscale"] else None
    block = Block(config["dim"], config["num_heads"], config["mlp_ratio"], qk_norm=config["qk_norm"], layer_scale=scale)
    block.load_state_dict(case.weights)
    table = rope_table(inputs["pos"], head_dim, config["rope_freq"])
    joined_table = rope_table(inputs["pos"].reshape(call["B"], -1, 2), head_dim, config["rope_freq"])
    x = inputs["x"]
    return {
        "mid.attn_frame": block.attn(block.norm1(x), table),
        "out.frame": block(x, table),
        "out.global": block(x.reshape(call["B"], -1, x.shape[-1]), joined_table),
        "out.rope_q": rotate(
            inputs["rope_q"], rope_table(inputs["pos"], inputs["rope_q"].shape[-1], config["rope_freq"])
        ),
    }


@handles("pi3_camera_head")
@torch.no_grad()
def check_camera_head(case: GoldenCase) -> dict[str, Tensor]:
    head = CameraHead(case.config["dim"])
    head.load_state_dict(case.weights)
    return {"out.pose": head(case.inputs["feat"]), "out.rot": nearest_rotation(case.inputs["raw9"])}


@handles("pi3_linear_head")
@torch.no_grad()
def check_linear_head(case: GoldenCase) -> dict[str, Tensor]:
    config, patch = case.config, case.config["patch_size"]
    head = LinearHead(config["dec_embed_dim"], config["output_dim"], patch)
    head.load_state_dict(case.weights)
    return {"out.map": head(case.inputs["tokens"], case.call["H"] // patch, case.call["W"] // patch)}


@handles("pi3_geometry_utils")
def check_geometry(case: GoldenCase) -> dict[str, Tensor]:
    rays = case.inputs["rays"]
    fitted = {
        name: intrinsics_of_rays(rays, centred="center" in name, ndc="ndc" in name)
        for name in case.expected
        if name.startswith("out.K")
    }
    pixels = pixel_centres(case.call["H"], case.call["W"]).flatten(0, 1).T
    return {**fitted, "out.T_inv": invert_rigid(case.inputs["T"]), "out.pixels": pixels}


@handles("pi3_edges_filter")
def check_edges(case: GoldenCase) -> Computed:
    call, inputs = case.call, case.inputs
    depth, points, conf, mask = inputs["depth"], inputs["points"], inputs["conf"], inputs["mask"].bool()
    rtol, degrees, threshold = call["rtol"], call["normal_tol_deg"], call["conf_threshold"]
    normals, has_normal = normals_of_points(points, mask)
    confident = conf.sigmoid() > threshold
    combined = {name: depth_edges(depth, **options) for name, options in call.items() if isinstance(options, dict)}
    masks = {
        "depth_edge_atol": depth_edges(depth, atol=call["atol"]),
        "depth_edge_rtol": depth_edges(depth, rtol=rtol),
        **{f"depth_edge_{name}": edges for name, edges in combined.items()},
        "depth_edge_mask": depth_edges(depth, rtol=rtol, mask=mask),
        "depth_normal_edge": surface_edges(points, rtol=rtol, degrees=degrees, mask=mask),
        "depth_normal_edge_nomask": surface_edges(points, rtol=rtol, degrees=degrees),
        "normal_edge": normal_edges(normals, degrees=degrees, mask=has_normal),
        "normal_mask": has_normal,
        "keep_simple": confident & ~depth_edges(points[..., 2], rtol=rtol),
        "keep_new": keep_mask(points, conf, confidence=threshold, rtol=rtol),
    }
    computed = {f"out.{name}": value.to(torch.uint8) for name, value in masks.items()}
    reason = "values closest to a threshold may flip with another order of summation"
    return Computed({**computed, "out.normals": normals}, mismatches={name: (1e-3, reason) for name in computed})


@handles("pi3_input_size_table")
def check_sizes(case: GoldenCase) -> dict[str, Tensor]:
    rows = [input_size(w, h, pixel_limit=limit) for w, h, limit in case.inputs["w_h_limit"].tolist()]
    return {"out.w_h": torch.tensor(rows)}


@handles("pi3_load_images")
def check_images(case: GoldenCase) -> dict[str, Tensor]:
    names = sorted(case.inputs, key=lambda name: int(name.removeprefix("image")))
    pictures = [Image.fromarray(case.inputs[name].numpy()) for name in names]
    return {"out.imgs": pictures_to_tensor(pictures, pixel_limit=case.call["PIXEL_LIMIT"])}


@handles("pi3_ply")
def check_ply(case: GoldenCase) -> dict[str, Tensor]:
    computed = {}
    for name in case.expected:
        kind = name.removeprefix("out.ply_")
        colours = case.inputs[kind].numpy() if kind in case.inputs else None
        stream = io.BytesIO()
        write_ply_to(stream, case.inputs["xyz"].numpy(), colours)
        computed[name] = torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)
    return computed
