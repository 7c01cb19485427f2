"""The pose encoder: shapes and order, its parts, and its weights in files of every kind."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from selfforcing_unianimate.pose_config import PoseConfig
from selfforcing_unianimate.pose_encoder import PoseEncoder, pose_tokens
from selfforcing_unianimate.pose_weights import POSE_ENCODER, STACKS
from wan_core import CheckpointError, ConfigError, RequestError
from wan_core.checkpoints import find_weights, inspect_weights, load_model, native_weights, read_weights
from wan_core.models import WanDiT, WanDiTConfig

TINY = PoseConfig(hidden=2, token_dim=8, reference_channels=20)
LORA = {
    f"pipe.dit.blocks.0.self_attn.q.lora_{half}.default.weight": torch.zeros(shape)
    for half, shape in {"A": (2, 8), "B": (8, 2)}.items()
}


def tiny(seed: int = 0) -> PoseEncoder:
    torch.manual_seed(seed)
    return PoseEncoder(TINY).eval()


def skeletons(frames: int, batch: int = 1, height: int = 32, width: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, 256, (batch, 3, frames, height, width), generator=generator, dtype=torch.uint8)


def saved(path: Path, *, lora: bool = True, without: str = "-") -> Path:
    weights = {name: tensor for name, tensor in tiny().state_dict().items() if not name.startswith(without)}
    tensors = {**(LORA if lora else {}), **weights}
    torch.save(tensors, path) if path.suffix != ".safetensors" else save_file(tensors, path)
    return path


@torch.no_grad()
def test_level_1_5_alignment_81_frames_are_21_latent_frames_in_the_order_of_patches() -> None:
    motion = tiny().embed_motion(skeletons(81, height=64))
    assert motion.shape == (1, 8, 21, 4, 3)
    tokens = pose_tokens(motion)
    assert tokens.shape == (1, 21, 12, 8)
    assert torch.equal(tokens[0, 5, 1 * 3 + 2], motion[0, :, 5, 1, 2])
    # The network's patches of latents of this size stand in the same order: a marked one meets its token.
    dit = WanDiT(WanDiTConfig(in_dim=4, out_dim=4, dim=8, ffn_dim=8, num_heads=1, num_layers=1, text_dim=4, freq_dim=8))
    latents = torch.zeros(1, 4, 21, 8, 6)
    latents[0, :, 5, 2:4, 4:6] = 1
    patches = dit.patch_embedding(latents).flatten(2).transpose(1, 2)[0]
    marked = (patches != patches[0]).any(dim=1).nonzero().flatten().tolist()
    assert marked == [5 * 12 + 1 * 3 + 2]


@torch.no_grad()
@pytest.mark.parametrize("latent_frames", [1, 2, 3, 9])
def test_the_parts_of_a_motion_are_the_whole(latent_frames: int) -> None:
    encoder, frames = tiny(), skeletons(33)
    whole = encoder.embed_motion(frames)
    parts = list(encoder.motion_parts(frames, latent_frames))
    assert [part.shape[2] for part in parts] == [min(latent_frames, 9 - start) for start in range(0, 9, latent_frames)]
    assert torch.allclose(torch.cat(parts, dim=2), whole, atol=1e-6)


@torch.no_grad()
def test_an_embedding_reaches_one_latent_frame_ahead() -> None:
    encoder, frames = tiny(), skeletons(33)
    prefix, whole = encoder.embed_motion(frames[:, :, :21]), encoder.embed_motion(frames)
    assert torch.allclose(prefix[:, :, :5], whole[:, :, :5], atol=1e-6)
    assert not torch.allclose(prefix[:, :, 5], whole[:, :, 5], atol=1e-6)


@torch.no_grad()
def test_a_batch_is_its_samples_and_every_weight_counts() -> None:
    encoder = tiny()
    both, reference = skeletons(5, batch=2), torch.randint(0, 256, (2, 32, 48, 3), dtype=torch.uint8)
    motion, still = encoder(both, reference)
    assert torch.allclose(motion[1:], encoder.embed_motion(both[1:]), atol=1e-6)
    assert still.shape == (2, 20, 1, 4, 6)
    assert torch.allclose(still[1:], encoder.embed_reference(reference[1:]), atol=1e-6)
    for name, weight in encoder.named_parameters():
        old = weight.clone()
        weight.add_(0.5)
        changed, other = encoder(both, reference)
        assert not (torch.allclose(changed, motion) and torch.allclose(other, still)), name
        weight.copy_(old)


@pytest.mark.parametrize("name", ["ua.ckpt", "ua.pt", "ua.safetensors"])
def test_the_weights_are_found_beside_a_lora(tmp_path: Path, name: str) -> None:
    encoder = loaded(saved(tmp_path / name))
    assert encoder.config == TINY
    assert all(torch.equal(tensor, tiny().state_dict()[key]) for key, tensor in encoder.state_dict().items())
    found = {weights.family: inspect_weights(weights) for weights in find_weights(tmp_path / name).weights}
    assert set(found) == {"unianimate-pose", "lora"}
    assert found["unianimate-pose"].config == TINY
    assert found["unianimate-pose"].num_parameters == sum(weight.numel() for weight in encoder.parameters())
    assert found["lora"].lora is not None


def test_16_bit_weights_become_float32(tmp_path: Path) -> None:
    halved = {f"pipe.{name}": tensor.bfloat16() for name, tensor in tiny().state_dict().items()}
    save_file(halved, tmp_path / "half.safetensors")
    encoder = loaded(tmp_path / "half.safetensors")
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}


def loaded(path: Path) -> PoseEncoder:
    native = native_weights(read_weights(path), POSE_ENCODER)
    return load_model(POSE_ENCODER.read_config(path, native), native, family=POSE_ENCODER, dtype=torch.float32)


def test_without_the_pictures_stack_it_adds_nothing_and_without_the_motions_it_is_refused(tmp_path: Path) -> None:
    encoder = loaded(saved(tmp_path / "motion.ckpt", without=STACKS[1]))
    assert not any(tensor.any() for name, tensor in encoder.state_dict().items() if name.startswith(STACKS[1]))
    with pytest.raises(CheckpointError, match=rf"missing: {STACKS[0]}\.0\.weight"):
        loaded(saved(tmp_path / "picture.ckpt", without=STACKS[0]))
    with pytest.raises(CheckpointError, match=r"missing: randomref_embedding_pose\.2\.bias"):
        loaded(saved(tmp_path / "part.ckpt", without="randomref_embedding_pose.2.bias"))


def test_weights_that_do_not_fit_are_told(tmp_path: Path) -> None:
    torch.save(LORA, tmp_path / "lora.pt")
    torch.save({"dwpose_embedding.0.weight": torch.zeros(16, 3)}, tmp_path / "flat.pt")
    partial = saved(tmp_path / "partial.pt", without="dwpose_embedding.4.bias")
    with pytest.raises(CheckpointError, match="holds nothing of UniAnimate's pose encoder: none of its 2 tensors"):
        loaded(tmp_path / "lora.pt")
    with pytest.raises(CheckpointError, match=r"1 missing: dwpose_embedding\.4\.bias"):
        loaded(partial)
    with pytest.raises(CheckpointError, match="must have 5 dimensions"):
        loaded(tmp_path / "flat.pt")


def test_pictures_that_do_not_fit_are_told() -> None:
    encoder = tiny()
    for wrong, message in (
        (skeletons(8), "must be 4k.1 frames, got 8"),
        (skeletons(5, height=24), "multiples of 16 pixels, got 48x24"),
        (skeletons(5)[0], r"are \[B, 3, T, H, W\]"),
    ):
        with pytest.raises(RequestError, match=message):
            encoder.embed_motion(wrong)
    with pytest.raises(RequestError, match=r"reference skeleton is \[B, H, W, 3\]"):
        encoder.embed_reference(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ConfigError, match="must be positive"):
        replace(TINY, hidden=0)


def test_the_family_is_known_to_the_core() -> None:
    from wan_core.checkpoints import families

    assert POSE_ENCODER in families()
