"""The stick-person world, its detector, and the stages of the path from a teacher to a student of four steps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from selfforcing_unianimate.frame_blocks import FrameBlocks
from selfforcing_unianimate.pose_encoder import PoseEncoder
from tools.tiny import family
from tools.tiny.dit_stage import PlainAttention
from tools.tiny.people import (
    EVALUATION_SEEDS,
    STYLES,
    Look,
    caption_of,
    evaluation_people,
    looks,
    render,
    training_person,
)
from tools.tiny.person_data import OFFSET, PoseTrunk, computed_trunk, skeleton_frames
from tools.tiny.person_detect import JOINTS, detect_joints
from tools.tiny.person_evaluation import score_clip
from tools.tiny.person_export import write_wanted
from tools.tiny.person_stages import PosedDiT, pose_encoder, widened_dit
from tools.tiny.person_students import Matching, Regression, Shown, new_student
from wan_core.models import InnerAttention


@pytest.fixture(scope="module")
def trunk() -> PoseTrunk:
    return computed_trunk(clips=4)


def test_a_number_is_always_the_same_person_and_looks_are_split() -> None:
    first, again = training_person(5), training_person(5)
    assert np.array_equal(first.video, again.video)
    assert not np.array_equal(first.video, training_person(6).video)
    held, trained = set(looks(held_back=True)), set(looks(held_back=False))
    assert held
    assert not held & trained
    assert {person.look for person in evaluation_people()} == held
    assert len(EVALUATION_SEEDS) == 60


def test_the_detector_finds_every_joint_of_drawn_persons_and_nobody_in_plain_colour() -> None:
    for style in STYLES:
        person = training_person(11, style=style)
        scores = score_clip(person.video, person)
        assert scores["pck_0.1"] == 1.0
        assert scores["look"] == 1.0
    _, seen = detect_joints(np.full((2, 64, 64, 3), 15, np.uint8))
    assert not seen.any()


def test_left_and_right_are_told_apart() -> None:
    person = training_person(3)
    mirrored = np.ascontiguousarray(person.video[:, :, ::-1])
    points, seen = detect_joints(mirrored)
    assert seen[:, list(JOINTS)].any()
    error = np.abs(points[:, 4] - person.body[:, 4]).mean()
    assert error > 10


def test_the_dress_is_seen_and_motions_stay_in_the_picture() -> None:
    suit, dress = (render(Look("white", "black", style), training_person(2).body) for style in STYLES)
    assert (suit != dress).any()
    for person in evaluation_people():
        assert person.body.min() > 0
        assert person.body.max() < 63
    assert caption_of(Look("white", "black")) == "a white person moves on a black background"


def test_the_computed_layers_are_those_of_the_pose_encoder(trunk: PoseTrunk) -> None:
    skeletons = skeleton_frames(training_person(1).poses)
    features = trunk.features(skeletons)
    padded = torch.cat([skeletons[:, :, :1].expand(-1, -1, 3, -1, -1), skeletons], dim=2).float() / 255
    with torch.no_grad():
        torch.testing.assert_close(trunk.encoder.dwpose_embedding[:12](padded) - OFFSET, features, atol=1e-3, rtol=0)
    model = PosedDiT(widened_dit())
    encoder: PoseEncoder = pose_encoder(trunk, model.last)
    with torch.no_grad():
        tokens = encoder.embed_motion(skeletons).flatten(3).permute(0, 2, 3, 1)
        torch.testing.assert_close(tokens, model.tokens(features), atol=1e-3, rtol=0)


def test_a_widened_network_is_the_bundled_one_at_first() -> None:
    plain, wide = family.load_bundled("dit"), widened_dit()
    latents, context = torch.randn(1, 24, 5, 8, 8), torch.randn(1, 24, 96)
    inputs = plain.inputs_type(context=context)
    channels = plain.inputs_type(context=context, channel_concat=torch.randn(1, 28, 5, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(
            wide(latents, torch.tensor([500.0]), channels), plain(latents, torch.tensor([500.0]), inputs)
        )


def test_losses_of_the_student_are_finite_and_reach_its_weights() -> None:
    teacher = widened_dit()
    student, critic = new_student(teacher), widened_dit()
    teacher.requires_grad_(False)
    shown = Shown(torch.randn(3, 24, 96), torch.randn(3, 28, 5, 8, 8), torch.randn(3, 5, 64, 128))
    states, clean = torch.randn(3, 4, 24, 5, 8, 8), torch.randn(3, 24, 5, 8, 8)
    regression = Regression(student=student, shown=shown, states=states, clean=clean, batch=2)
    matching = Matching(
        student=student, critic=critic, teacher=teacher, shown=shown, empty=torch.zeros(24, 96), batch=1
    )
    for loss in (regression.loss(0, 0), matching.student_loss(0, 0)):
        student.zero_grad()
        loss.backward()
        assert loss.isfinite()
        assert student.blocks[0].self_attn.q.weight.grad.abs().sum() > 0
    matching.critic_loss(0, 0).backward()
    assert critic.head.head.weight.grad.abs().sum() > 0
    assert teacher.head.head.weight.grad is None


def test_a_list_of_targets_has_pictures_and_poses(tmp_path: Path) -> None:
    from selfforcing_unianimate.distillation.wanted import read_wanted

    write_wanted(tmp_path / "wanted.jsonl", tmp_path / "wanted", 2)
    rows = read_wanted(tmp_path / "wanted.jsonl", first_seed=0, has_poses=True)
    assert [row.seed for row in rows] == [0, 1]
    assert all(row.image.is_file() and row.pose is not None and row.pose.is_file() for row in rows)


def test_plain_attention_keeps_to_ranges_of_keys() -> None:
    query, key, value = torch.randn(3, 2, 16, 3, 8).unbind(0)
    ranges = FrameBlocks(size=1, window=5).teacher_forcing_mask(4, 2)
    expected = InnerAttention()(query, key, value, mask=ranges)
    torch.testing.assert_close(PlainAttention()(query, key, value, mask=ranges), expected)
