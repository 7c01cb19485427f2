"""Train the tiny Pi3 on rendered rooms: ``python -m tools.tiny.pi3_train WORK_DIR``.

Restartable: the state is saved every minute and when it is interrupted, and a later call goes on from there. A round
renders new scenes (from their own seeds, never the held-back ones) and trains on random subsets of their views.
``--export FILE`` writes the weights as float16 with their scores on the held-back scenes; ``--evaluate`` prints the
scores only.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pi3.camera import rigid_transform
from pi3.config import DinoConfig, Pi3Config
from pi3.evaluation import depth_errors, pose_errors
from pi3.heads import points_of_slopes
from pi3.model import Pi3
from tools.tiny.rooms import EVALUATION_SEEDS, ROOMS_VERSION, room_views
from tools.tiny.train import Reporter
from wan_core.checkpoints import MemorySource, write_file
from wan_core.training import CheckpointFolder, LoopSettings, Stage, TrainingState, run_identity, train

HEIGHT, WIDTH = 84, 112
ROUNDS, SCENES_PER_ROUND, STEPS_PER_ROUND = 9, 320, 320
VIEWS, BATCH = 6, 6
STEPS, WARMUP_STEPS = ROUNDS * STEPS_PER_ROUND, 100
PEAK_LR, WEIGHT_DECAY = 1.5e-3, 0.03
SETTINGS = LoopSettings(
    steps=STEPS, warmup_steps=WARMUP_STEPS, schedule="cosine", decay_share=1 - WARMUP_STEPS / STEPS, final_rate=0.01
)
DECODER_SCALE = 0.3  # the published start of 0.01 suits long training

CONFIG = Pi3Config(
    encoder=DinoConfig(image_size=112, dim=96, num_layers=4, num_heads=3, mlp_ratio=3.0, num_registers=1),
    decoder_layers=6,
    decoder_heads=3,
    num_registers=2,
    head_dim=96,
    head_heads=3,
    head_layers=1,
    camera_dim=64,
    pixel_limit=HEIGHT * WIDTH,
    mlp_ratio=3.0,
)


@dataclass
class Scenes:
    """S scenes of V views: images uint8 [S, V, 3, H, W], local points [S, V, H, W, 3] and poses [S, V, 4, 4]."""

    images: Tensor
    points: Tensor
    poses: Tensor


def render_scenes(seeds: range, *, smooth: int | None = None) -> Scenes:
    """Render scenes; two of three with one ray per pixel unless ``smooth`` says otherwise."""
    images, points, poses = [], [], []
    for seed in seeds:
        views = room_views(seed, count=VIEWS, height=HEIGHT, width=WIDTH, smooth=smooth or (2 if seed % 3 == 0 else 1))
        images.append(views.images.transpose(0, 3, 1, 2))
        points.append(views.local_points().astype(np.float16))
        poses.append(views.poses)
    return Scenes(*(torch.from_numpy(np.stack(arrays)) for arrays in (images, points, poses)))


@lru_cache(maxsize=1)
def scenes_of_round(index: int) -> Scenes:
    """What the steps of one round draw from."""
    return render_scenes(training_seeds(index))


def training_seeds(index: int) -> range:
    """The scenes of round ``index``."""
    seeds = range(index * SCENES_PER_ROUND, (index + 1) * SCENES_PER_ROUND)
    if seeds.stop > EVALUATION_SEEDS.start:
        raise ValueError(f"round {index} would reach the held-back scenes")
    return seeds


def new_model() -> Pi3:
    """The untrained model."""
    torch.manual_seed(0)
    model = Pi3(CONFIG)
    for name, parameter in model.named_parameters():
        if name.startswith("decoder.") and name.endswith("gamma"):
            torch.nn.init.constant_(parameter, DECODER_SCALE)
        elif name.endswith("_head.proj.weight") or name in ("camera_head.fc_t.weight", "camera_head.fc_rot.weight"):
            torch.nn.init.trunc_normal_(parameter, std=0.02)
    torch.nn.init.zeros_(model.point_head.proj.bias)
    return model


def scene_loss(model: Pi3, images: Tensor, points: Tensor, poses: Tensor) -> Tensor:
    """The loss of a batch, after the Pi3 paper: scale-aligned points weighted by 1 / z, relative poses of
    all pairs, confidence against the point error. Rotations enter as the nine numbers with rows of unit length, whose
    gradient is well behaved; the projection to a rotation comes with inference."""
    batch, count = images.shape[:2]
    scale = points[..., 2].mean(dim=(1, 2, 3))
    truth = points / scale[:, None, None, None, None]
    latents = model.encode(images)
    first = latents.num_registers
    raw = model.point_head(latents.point_tokens[:, first:], *latents.grid)
    local = points_of_slopes(raw[..., :2], raw[..., 2:].clamp(-4, 4)).reshape(truth.shape)
    weight = 1 / truth[..., 2:]
    numerator, denominator = ((weight * one * local).sum(dim=(1, 2, 3, 4)) for one in (truth, local))
    factor = (numerator / denominator)[:, None, None]
    error = (factor[..., None, None] * local - truth) * weight
    point_loss = error.abs().mean()
    logits = model.conf_head(latents.conf_tokens[:, first:], *latents.grid).reshape(truth.shape[:-1])
    is_good = (error.detach().norm(dim=-1) < 0.04).to(logits.dtype)
    conf_loss = functional.binary_cross_entropy_with_logits(logits, is_good)
    translation, numbers = model.camera_head.raw(latents.camera_tokens[:, first:])
    matrices = functional.normalize(numbers.reshape(batch, count, 3, 3), dim=-1)
    predicted = relative_poses(rigid_transform(matrices, factor * translation.reshape(batch, count, 3)))
    true_poses = poses.clone()
    true_poses[..., :3, 3] /= scale[:, None, None]
    true_relative = relative_poses(true_poses)
    shift_loss = functional.huber_loss(predicted[..., 3], true_relative[..., 3], delta=0.1)
    turn_loss = functional.mse_loss(predicted[..., :3], true_relative[..., :3])
    return point_loss + 12.0 * shift_loss + 2.0 * turn_loss + 0.05 * conf_loss


def relative_poses(poses: Tensor) -> Tensor:
    """[B, N, N, 3, 4]: rotation and translation of each camera seen from each other one."""
    rotation, centre = poses[..., :3, :3], poses[..., :3, 3]
    turn = rotation.mT[:, :, None] @ rotation[:, None]
    shift = rotation.mT[:, :, None] @ (centre[:, None] - centre[:, :, None])[..., None]
    return torch.cat([turn, shift], dim=-1)


def make_optimizer(model: Pi3) -> torch.optim.Optimizer:
    """AdamW; vectors and biases do not decay."""
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim > 1) == decays], "weight_decay": WEIGHT_DECAY * decays}
        for decays in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95))


def step_loss(model: Pi3, step: int, _: int) -> Tensor:
    """The loss of a step: two to five views of each of six of its round's scenes, drawn by the step's number."""
    scenes = scenes_of_round(step // STEPS_PER_ROUND)
    generator = np.random.default_rng([13, step])
    chosen = torch.from_numpy(generator.choice(SCENES_PER_ROUND, BATCH, replace=False))
    views = torch.from_numpy(generator.permutation(VIEWS)[: generator.integers(2, VIEWS)])
    images = scenes.images[chosen][:, views].float() / 255
    return scene_loss(model, images, scenes.points[chosen][:, views].float(), scenes.poses[chosen][:, views])


@torch.no_grad()
def evaluate(model: Pi3, seeds: range = EVALUATION_SEEDS) -> dict[str, float]:
    """Mean errors over held-back scenes, of the model and of constant depth with identity poses."""
    model.eval()
    sums: dict[str, float] = {}
    for seed in seeds:
        scene = render_scenes(range(seed, seed + 1), smooth=2)
        output = model(scene.images.float() / 255)
        depth, poses = scene.points[0, ..., 2].float(), scene.poses[0]
        standing = torch.eye(4).expand_as(poses)
        scores = {
            "abs_rel": depth_errors(output.depth[0], depth).abs_rel,
            "delta": depth_errors(output.depth[0], depth).delta,
            "ate": pose_errors(output.camera_poses[0], poses).ate,
            "rpe_rotation": pose_errors(output.camera_poses[0], poses).rpe_rotation,
            "constant_abs_rel": depth_errors(torch.ones_like(depth), depth).abs_rel,
            "constant_delta": depth_errors(torch.ones_like(depth), depth).delta,
            "identity_ate": pose_errors(standing, poses).ate,
            "identity_rpe_rotation": pose_errors(standing, poses).rpe_rotation,
        }
        for name, value in scores.items():
            sums[name] = sums.get(name, 0.0) + value / len(seeds)
    return {name: round(value, 4) for name, value in sums.items()}


def export(model: Pi3, path: Path, steps: int) -> None:
    """Write float16 weights with config, scores and provenance in the metadata."""
    scores = evaluate(model)
    metadata = {
        "config": json.dumps(CONFIG.to_dict()),
        "scores": json.dumps(scores),
        "recipe": f"tools/tiny/pi3_train.py, rooms {ROOMS_VERSION}, {steps} steps",
    }
    write_file(MemorySource(model.half().state_dict(), metadata=metadata), path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {json.dumps(scores)}")


def main() -> None:
    """Train, or evaluate or export what was trained when asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--evaluate", action="store_true", help="print the scores, train nothing")
    parser.add_argument("--export", type=Path, help="write the weights of the last saved state, train nothing")
    arguments = parser.parse_args()
    model, folder = new_model(), CheckpointFolder(arguments.work_dir)
    optimizers = [make_optimizer(model)]
    if not (arguments.export or arguments.evaluate):
        loss = partial(step_loss, model.train())
        train(Stage.of(model, optimizers, loss), SETTINGS, checkpoints=folder, report=Reporter())
        return
    steps = folder.restore(TrainingState(model, optimizers, None, run_identity(SETTINGS, {})))
    print(json.dumps(evaluate(model))) if arguments.evaluate else export(model, arguments.export, steps)


if __name__ == "__main__":
    main()
