"""The network that follows a driving video: poses, the face, and what it refuses."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh

from wan_core.errors import ConfigError, RequestError
from wan_core.models import AnimateDiT, AnimateDiTConfig, AnimateInputs, WanDiT
from wan_core.models.dit.motion_encoder import blur_kernel
from wan_core.runtime import is_sharded, shard_model

from .dit_networks import BOTH, Half, network, noise, prepared

CONFIG = AnimateDiTConfig(
    in_dim=9, out_dim=3, dim=24, ffn_dim=20, num_heads=2, num_layers=4, freq_dim=8, text_dim=6, text_len=5,
    image_dim=7, image_tokens=4, pose_dim=2, motion_encoder_channels=(3, 4, 5), motion_style_dim=6, motion_dim=3,
    motion_encoder_dim=8, face_encoder_hidden_dim=5, face_encoder_num_heads=2, inject_face_latents_blocks=2,
)  # fmt: skip
NOISY = (3, 4, 4, 6)  # the reference and three latent frames


def faces(batch: int = 1, images: int = 9) -> Tensor:
    return noise(batch, 3, images, 16, 16).clamp(-1, 1)


def animator(make: Callable[..., WanDiT] = network, config: AnimateDiTConfig = CONFIG) -> AnimateDiT:
    model = make(config, AnimateDiT)
    assert isinstance(model, AnimateDiT)
    return model


def inputs(model: AnimateDiT, batch: int = 1, **more: Any) -> AnimateInputs:
    config = model.animate
    values: dict[str, Any] = {
        "context": noise(batch, 4, config.text_dim),
        "image_context": noise(batch, config.image_tokens, config.image_dim or 0),
        "channel_concat": noise(batch, 6, *NOISY[1:]),
        "pose_latents": noise(batch, config.pose_dim, 3, 4, 6),
        "face_tokens": model.encode_face(faces(batch)) if "face_tokens" not in more else None,
    }
    return AnimateInputs(**{**values, **more})


def velocity(model: AnimateDiT, given: AnimateInputs) -> Tensor:
    batch = given.context.shape[0]
    with torch.no_grad():
        out: Tensor = model(noise(batch, *NOISY), torch.full((batch,), 700.0), given)
    return out


@BOTH
def test_a_batch_of_two_is_twice_a_batch_of_one(built: Callable[..., WanDiT]) -> None:
    model = animator(built)
    both, pixels = inputs(model, batch=2), faces(2)
    noisy = noise(2, *NOISY)
    with torch.no_grad():
        out = model(noisy, torch.tensor([900.0, 14.0]), both)
        for index, timestep in enumerate((900.0, 14.0)):
            rows = slice(index, index + 1)
            tensors = {name: value[rows] for name, value in vars(both).items() if isinstance(value, Tensor)}
            tensors["face_tokens"] = model.encode_face(pixels[rows])
            one = model(noisy[rows], torch.tensor([timestep]), replace(both, **tensors))
            torch.testing.assert_close(out[rows], one, atol=2e-5, rtol=1e-5)


def test_every_weight_influences_the_velocity() -> None:
    model = animator()
    model.requires_grad_(True)
    model(noise(1, *NOISY), torch.tensor([300.0]), inputs(model)).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


def test_prepared_for_inference_it_computes_the_same() -> None:
    plain, fast = animator(), animator(prepared)
    torch.testing.assert_close(velocity(plain, inputs(plain)), velocity(fast, inputs(fast)), atol=2e-5, rtol=1e-5)


@BOTH
def test_a_cache_of_the_text_changes_nothing(built: Callable[..., WanDiT]) -> None:
    model = animator(built)
    given = inputs(model).with_cache()
    first, second = velocity(model, given), velocity(model, given)
    assert given.context_cache is not None
    assert given.context_cache.is_filled
    assert torch.equal(first, second)
    torch.testing.assert_close(first, velocity(model, inputs(model)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cut", [1, 5, 6, 9, 20, 23])
def test_processes_that_divide_the_tokens_see_what_one_sees(cut: int) -> None:
    model = animator()
    given = inputs(model)
    sequence = model.embed_latents(noise(1, *NOISY), given)
    tokens = noise(1, sequence.length, CONFIG.dim)
    whole = model.after_block(2, tokens.clone(), sequence, given)
    parts = []
    for start, stop in ((0, cut), (cut, sequence.length)):
        model.layout = Half(start, stop)
        parts.append(model.after_block(2, tokens[:, start:stop].clone(), sequence, given))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_every_second_block_is_followed_by_the_face() -> None:
    model = animator()
    given = inputs(model)
    sequence = model.embed_latents(noise(1, *NOISY), given)
    tokens = noise(1, sequence.length, CONFIG.dim)
    changed = [index for index in range(4) if model.after_block(index, tokens, sequence, given) is not tokens]
    assert changed == [0, 2]


def test_the_reference_has_no_pose_and_no_face() -> None:
    model = animator()
    given = inputs(model)
    assert not given.face_tokens[:, 0].any()
    other = replace(given, pose_latents=given.pose_latents + 1)
    before, after = (model.embed_latents(noise(1, *NOISY), each).tokens for each in (given, other))
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:12], after[:, 6:12])


def test_a_latent_frame_sees_its_own_images_and_earlier_ones() -> None:
    model, late = animator(), faces()
    late[:, :, 5:] *= -1  # of the last latent frame
    before, after = model.encode_face(faces()), model.encode_face(late)
    assert before.shape == (1, 4, 3, CONFIG.dim)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3, 0], after[:, 3, 0])


def test_how_many_images_are_encoded_at_once_changes_nothing() -> None:
    encoder, images = animator().motion_encoder, faces(images=9)[0].transpose(0, 1)
    torch.testing.assert_close(encoder(images, at_once=9), encoder(images, at_once=2), atol=1e-5, rtol=1e-5)


def test_directions_are_at_right_angles() -> None:
    directions = animator().motion_encoder.dec.direction
    basis = directions(torch.eye(3))
    torch.testing.assert_close(basis @ basis.mT, torch.eye(3), atol=1e-5, rtol=0)


def test_the_blur_keeps_brightness_and_fits_in_16_bits() -> None:
    kernel = blur_kernel()
    assert kernel.sum() == 1
    assert torch.equal(kernel, kernel.bfloat16().float())


def test_two_branches_become_one_batch() -> None:
    model = animator()
    one = inputs(model)
    joined = AnimateInputs.batch([one, replace(one, face_tokens=model.encode_face(-torch.ones_like(faces())))])
    torch.testing.assert_close(velocity(model, joined)[:1], velocity(model, AnimateInputs.batch([one, one]))[:1])


def test_a_clip_is_not_cut_into_frames() -> None:
    with pytest.raises(TypeError, match="not cut"):
        inputs(animator()).frames(0, 2)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"pose_latents": noise(1, 2, 4, 4, 6)}, r"pose_latents must be \[1, 2, 3, 4, 6\]"),
        ({"pose_latents": noise(1, 3, 3, 4, 6)}, "pose_latents must be"),
        ({"face_tokens": noise(1, 3, 3, 24)}, r"face_tokens must be \[1, 4, 3, 24\]"),
        ({"face_tokens": noise(2, 4, 3, 24)}, "face_tokens must be"),
        ({"channel_concat": noise(1, 6, 3, 4, 6)}, "channel_concat must"),
        ({"image_context": None}, "image_context must be given"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(more: dict[str, Any], words: str) -> None:
    model = animator()
    with pytest.raises(RequestError, match=words):
        velocity(model, inputs(model, **more))


@pytest.mark.parametrize("shape", [(1, 3, 8, 16, 16), (1, 3, 9, 16, 8), (1, 1, 9, 16, 16), (3, 9, 16, 16)])
def test_faces_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"faces must be \[B, 3, 4k \+ 1, 16, 16\]"):
        animator().encode_face(noise(*shape))


def test_a_reference_alone_is_no_clip() -> None:
    model = animator()
    given = inputs(model, pose_latents=noise(1, 2, 1, 4, 6), channel_concat=noise(1, 6, 1, 4, 6))
    with pytest.raises(RequestError, match="at least one latent frame"):
        model(noise(1, 3, 1, 4, 6), torch.tensor([1.0]), given)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"inject_face_latents_blocks": 3}, "multiple of inject_face_latents_blocks"),
        ({"motion_dim": 9}, "right angles"),
        ({"motion_encoder_channels": ()}, "1 to 10 widths"),
        ({"motion_encoder_channels": (3, 0)}, "motion_encoder_channels"),
        ({"patch_size": (2, 2, 2)}, "one frame deep"),
        ({"face_encoder_num_heads": 0}, "face_encoder_num_heads"),
    ],
)
def test_dims_that_cannot_work_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(CONFIG, **wrong)


@pytest.mark.slow  # the imports of sharding
def test_a_network_whose_weights_are_divided_still_encodes_faces() -> None:
    model = animator()
    whole = model.encode_face(faces())
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        shard_model(model, init_device_mesh("cpu", (1,)))
        assert is_sharded(model)
        torch.testing.assert_close(model.encode_face(faces()), whole)
    finally:
        distributed.destroy_process_group()
