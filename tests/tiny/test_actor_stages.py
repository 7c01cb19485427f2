"""The stages of the tiny Wan-Animate, and that what is bundled is what was measured."""

import json
from pathlib import Path

import numpy as np
import torch

from tools.tiny.actor_judge import BARS
from tools.tiny.actor_stages import PRESET, ActStage, Lesson, actor_optimizers, error_weights, new_actor
from tools.tiny.actors import FACE_SIZE, FPS, draw_drive
from tools.tiny.family import load_bundled
from wan_core.checkpoints import read_weights
from wan_core.models import AnimateInputs, DiTInputs

FOLDER = Path(PRESET.part("dit").file)


def example() -> dict[str, torch.Tensor]:
    return {
        "latents": torch.randn(24, 3, 2, 2),
        "channels": torch.randn(28, 3, 2, 2),
        "poses": torch.randn(24, 2, 2, 2),
        "image": torch.randn(17, 48),
        "faces": torch.randint(0, 256, (5, 3, FACE_SIZE, FACE_SIZE), dtype=torch.uint8),
        "weight": torch.ones(3, 2, 2),
    }


def test_faces_and_rates_are_those_of_the_preset() -> None:
    assert PRESET.dit.face_size == FACE_SIZE  # type: ignore[attr-defined]
    assert PRESET.sampling.fps == FPS


def test_lessons_are_of_every_kind_and_end_within_their_video() -> None:
    lessons = [Lesson(number) for number in range(20)]
    assert sum(lesson.replaced for lesson in lessons) == 8
    assert {(each.replaced, each.index, each.overlap) for each in lessons if each.index} == {
        (replaced, 1, overlap) for replaced in (False, True) for overlap in (1, 5)
    }
    assert all(each.begin + PRESET.sampling.num_frames <= each.frames for each in lessons)


def test_errors_count_most_at_the_head_and_least_where_nobody_is() -> None:
    drive = draw_drive(np.random.default_rng(2), 5)
    weights = error_weights(drive.body)
    assert weights.shape == (3, 8, 8)
    x, y = (drive.body[0, 0] / 8).astype(int)
    assert weights[1, y, x] == weights.max() == 4
    assert weights[1, 0, 0] == weights[0].max() == 1


@torch.no_grad()
def test_an_untrained_actor_sees_no_face_and_no_clip_and_draws_what_it_drew() -> None:
    dit, base = new_actor().eval(), load_bundled("dit").eval()
    torch.manual_seed(1)
    latents, context, times = torch.randn(1, 24, 3, 8, 8), torch.randn(1, 24, 96), torch.tensor([500.0])
    given = AnimateInputs(
        context=context,
        image_context=torch.randn(1, 17, 48),
        channel_concat=torch.zeros(1, 28, 3, 8, 8),
        pose_latents=torch.zeros(1, 24, 2, 8, 8),
        face_tokens=dit.encode_face(torch.randn(1, 3, 5, FACE_SIZE, FACE_SIZE)),
    )
    assert torch.allclose(dit(latents, times, given), base(latents, times, DiTInputs(context=context)), atol=1e-5)


def test_the_loss_reaches_every_way_in() -> None:
    torch.manual_seed(0)
    dit = new_actor()
    optimizers = actor_optimizers(dit)
    for block in dit.face_adapter.fuser_blocks:  # zero at first: nothing behind it learns yet
        torch.nn.init.ones_(block.linear2.weight)
    for block in dit.blocks:
        torch.nn.init.ones_(block.cross_attn.v_img.weight)
    stage = ActStage(dit, [example()], torch.randn(2, 24, 96), batch=1)  # type: ignore[arg-type]  # reads as a cache
    stage.loss(0, 0).backward()
    moved = [name for name, weight in dit.named_parameters() if weight.grad is not None and weight.grad.any()]
    reached = {name.split(".")[0] for name in moved}
    assert reached >= {"motion_encoder", "face_encoder", "face_adapter", "pose_patch_embedding", "img_emb", "blocks"}
    trained = {id(weight) for each in optimizers for group in each.param_groups for weight in group["params"]}
    assert trained == {id(weight) for weight in dit.parameters()}


def test_what_is_bundled_was_measured_and_is_small() -> None:
    path = FOLDER / "model.safetensors"
    scores = json.loads(read_weights(path).metadata["scores"])
    assert set(BARS) <= set(scores["tiny-animate"])
    assert scores["drawn"]["colours"] == 100
    assert path.stat().st_size < 3_000_000
