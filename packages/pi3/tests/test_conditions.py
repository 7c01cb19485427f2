"""What Pi3X makes of known depth, rays and poses."""

import pytest
import torch
from torch import Tensor

from pi3 import Conditions, Pi3, Pi3X, Pi3XConfig
from pi3.camera import nearest_rotation, rigid_transform
from pi3.conditions import PreparedConditions
from pi3.geometry import pixel_centres
from wan_core.errors import RequestError

B, N, H, W = 2, 3, 28, 28
IMAGES = torch.rand(B, N, 3, H, W, generator=torch.Generator().manual_seed(2))


def some_poses() -> Tensor:
    torch.manual_seed(5)
    return rigid_transform(nearest_rotation(torch.randn(B, N, 9)), torch.randn(B, N, 3))


def test_depth_is_divided_by_its_mean_over_the_set() -> None:
    depths = torch.full((B, N, H, W), 3.0)
    depths[:, :, :14] = 0.0
    prepared = PreparedConditions.of(Conditions(depths=depths), IMAGES)
    assert torch.equal(prepared.depths[:, :, :14], torch.zeros(B, N, 14, W))
    torch.testing.assert_close(prepared.depths[:, :, 14:], torch.ones(B, N, 14, W))


def test_translations_share_the_scale_of_depth() -> None:
    poses = torch.eye(4).repeat(B, N, 1, 1)
    poses[:, 1:, 0, 3] = 6.0
    prepared = PreparedConditions.of(Conditions(depths=torch.full((B, N, H, W), 3.0), poses=poses), IMAGES)
    torch.testing.assert_close(prepared.poses[:, 1:, 0, 3], torch.full((B, N - 1), 2.0))


def test_without_depth_the_mean_translation_is_one() -> None:
    prepared = PreparedConditions.of(Conditions(poses=some_poses()), IMAGES)
    distance = prepared.poses[:, 1:, :3, 3].norm(dim=-1).mean(dim=1)
    torch.testing.assert_close(distance, torch.ones(B))
    torch.testing.assert_close(prepared.poses[:, 0], torch.eye(4).expand(B, 4, 4), atol=1e-6, rtol=0)


def test_standing_cameras_are_not_rescaled() -> None:
    poses = torch.eye(4).repeat(B, N, 1, 1)
    poses[:, 1:, 0, 3] = 0.01
    prepared = PreparedConditions.of(Conditions(poses=poses), IMAGES)
    torch.testing.assert_close(prepared.poses[:, 1:, 0, 3], torch.full((B, N - 1), 0.01))


def test_a_lone_pose_is_dropped_and_the_mask_stays_the_callers() -> None:
    mask = torch.tensor([[True, False, False], [True, True, False]])
    before = mask.clone()
    prepared = PreparedConditions.of(Conditions(poses=some_poses(), pose_mask=mask), IMAGES)
    assert prepared.pose_mask.tolist() == [[False] * 3, [True, True, False]]
    assert torch.equal(mask, before)


@torch.no_grad()
def test_intrinsics_and_their_rays_say_the_same(model_x: Pi3X) -> None:
    intrinsics = torch.tensor([[20.0, 0, 14], [0, 22, 14], [0, 0, 1]]).expand(B, N, 3, 3)
    rays = pixel_centres(H, W) @ torch.linalg.inv(intrinsics[0, 0]).T
    by_matrix = model_x(IMAGES, Conditions(intrinsics=intrinsics))
    by_rays = model_x(IMAGES, Conditions(rays=rays.expand(B, N, H, W, 3)))
    torch.testing.assert_close(by_matrix.conf, by_rays.conf, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_masks_of_false_are_no_conditions(model_x: Pi3X) -> None:
    nowhere = torch.zeros(B, N, dtype=torch.bool)
    given = Conditions(
        depths=torch.rand(B, N, H, W),
        poses=some_poses(),
        rays=torch.rand(B, N, H, W, 3),
        depth_mask=nowhere,
        ray_mask=nowhere,
        pose_mask=nowhere,
    )
    plain, masked = model_x(IMAGES), model_x(IMAGES, given)
    assert torch.equal(plain.points, masked.points)


@torch.no_grad()
def test_poses_of_one_set_do_not_touch_the_other(model_x: Pi3X) -> None:
    mask = torch.tensor([[True, True, True], [False, False, False]])
    plain, posed = model_x(IMAGES), model_x(IMAGES, Conditions(poses=some_poses(), pose_mask=mask))
    torch.testing.assert_close(plain.conf[1], posed.conf[1], atol=1e-5, rtol=1e-5)
    assert (plain.conf[0] - posed.conf[0]).abs().max() > 1e-4


@torch.no_grad()
def test_metric_scales_points_and_translations(model_x: Pi3X) -> None:
    output = model_x(IMAGES)
    longer = model_x.metric_head.bias.data.clone()
    model_x.metric_head.bias.data += torch.log(torch.tensor(2.0))
    doubled = model_x(IMAGES)
    model_x.metric_head.bias.data = longer
    torch.testing.assert_close(doubled.local_points, 2 * output.local_points)
    torch.testing.assert_close(doubled.camera_poses[..., :3, 3], 2 * output.camera_poses[..., :3, 3])
    torch.testing.assert_close(output.rays.norm(dim=-1), torch.ones(B, N, H, W))


def test_conditions_of_a_wrong_shape_are_named(model_x: Pi3X) -> None:
    with pytest.raises(RequestError, match=r"poses must be \[2, 3, 4, 4\]"):
        model_x(IMAGES, Conditions(poses=torch.eye(4)))


def test_a_model_without_conditions_refuses_them(tiny_x: Pi3XConfig) -> None:
    values = {**tiny_x.to_dict(), "multimodal": False}
    model = Pi3XConfig.from_dict(values).build()
    assert not any(name.startswith(("depth_", "ray_", "pose_")) for name in model.state_dict())
    with pytest.raises(RequestError, match="multimodal"):
        model(IMAGES, Conditions(depths=torch.rand(B, N, H, W)))


@torch.no_grad()
def test_latents_of_pi3_are_not_those_of_pi3x(model: Pi3, model_x: Pi3X) -> None:
    with pytest.raises(RequestError, match="metric"):
        model_x.decode(model.encode(IMAGES))
