"""Cameras, rays, edges and metrics against values known in closed form."""

import math

import pytest
import torch
from torch import Tensor

from pi3 import keep_mask
from pi3.camera import apply_transform, invert_rigid, nearest_rotation, rigid_transform
from pi3.dinov2.layers import resize_positions
from pi3.edges import depth_edges, normal_edges, normals_of_points, surface_edges
from pi3.evaluation import align_points, cloud_errors, depth_errors, pose_errors, rotation_degrees
from pi3.geometry import intrinsics_of_rays, pixel_centres, project, slopes_of_intrinsics
from pi3.images import input_size
from pi3.rope2d import grid_positions, rope_table, rotate
from wan_core import RequestError


def turn(axis: int, degrees: float) -> Tensor:
    """A rotation [3, 3] about one axis, float64."""
    angle = math.radians(degrees)
    matrix = torch.eye(3, dtype=torch.float64)
    one, other = [index for index in range(3) if index != axis]
    matrix[one, one] = matrix[other, other] = math.cos(angle)
    matrix[one, other], matrix[other, one] = -math.sin(angle), math.sin(angle)
    return matrix


def random_poses(count: int) -> Tensor:
    torch.manual_seed(3)
    return rigid_transform(nearest_rotation(torch.randn(count, 9)), torch.randn(count, 3))


def test_scaled_rotation_projects_to_itself() -> None:
    rotation = (turn(0, 30) @ turn(2, 50)).float()
    scaled = rotation * torch.tensor([[2.0], [0.1], [7.0]])
    torch.testing.assert_close(nearest_rotation(scaled.flatten()), rotation)


def test_mirror_becomes_a_rotation() -> None:
    result = nearest_rotation(torch.diag(torch.tensor([1.0, 1.0, -1.0])).flatten())
    torch.testing.assert_close(torch.linalg.det(result), torch.tensor(1.0))


def test_inverse_undoes_a_transform() -> None:
    poses, points = random_poses(4), torch.randn(4, 3)
    torch.testing.assert_close(apply_transform(invert_rigid(poses), apply_transform(poses, points)), points)


def test_rotary_scores_depend_on_the_distance_only() -> None:
    positions = grid_positions(4, 4, 1)
    table = rope_table(positions, 16)
    q, k = torch.randn(1, 1, 1, 16).expand(1, 1, 17, 16), torch.randn(1, 1, 1, 16).expand(1, 1, 17, 16)
    scores = (rotate(q, table) @ rotate(k, table).mT)[0, 0]
    torch.testing.assert_close(scores[1, 6], scores[6, 11])  # one row and one column apart
    assert torch.equal(rotate(q, table)[0, 0, 0], q[0, 0, 0])  # a register at (0, 0) is not turned


def test_position_embedding_of_the_native_grid_is_used_as_it_is() -> None:
    embedding = torch.randn(1, 17, 8)
    assert resize_positions(embedding, 4, 4) is embedding
    assert resize_positions(embedding, 2, 8).shape == (1, 17, 8)
    assert resize_positions(embedding, 3, 5, antialias=False, offset=0.1).shape == (1, 16, 8)


def test_intrinsics_come_back_from_their_rays() -> None:
    intrinsics = torch.tensor([[[60.0, 0, 21.0], [0, 55.0, 13.0], [0, 0, 1]]])
    slopes = slopes_of_intrinsics(intrinsics, 28, 42)
    rays = torch.cat([slopes, torch.ones(1, 28, 42, 1)], dim=-1) * torch.rand(1, 28, 42, 1).add(0.5)
    fitted = intrinsics_of_rays(rays)
    expected = intrinsics - torch.tensor([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])  # pixels are numbered from 0
    torch.testing.assert_close(fitted, expected)


def test_intrinsics_with_a_centred_principal_point() -> None:
    intrinsics = torch.tensor([[[60.0, 0, 21.0], [0, 55.0, 14.0], [0, 0, 1]]])
    rays = torch.cat([slopes_of_intrinsics(intrinsics, 28, 42), torch.ones(1, 28, 42, 1)], dim=-1)
    centred = intrinsics_of_rays(rays, centred=True)[0]
    torch.testing.assert_close(centred[:2, 2], torch.tensor([20.5, 13.5]))
    torch.testing.assert_close(centred.diagonal()[:2], torch.tensor([60.0, 55.0]))


def test_a_single_pixel_has_no_intrinsics() -> None:
    with pytest.raises(RequestError, match="2x2"):
        intrinsics_of_rays(torch.ones(1, 1, 5, 3))


def test_projection_inverts_the_slopes() -> None:
    intrinsics = torch.tensor([[60.0, 0, 21.0], [0, 55.0, 13.0], [0, 0, 1]])
    points = torch.cat([slopes_of_intrinsics(intrinsics, 6, 8), torch.ones(6, 8, 1)], dim=-1) * 3
    pixels, depth = project(points, intrinsics)
    torch.testing.assert_close(pixels, pixel_centres(6, 8)[..., :2])
    torch.testing.assert_close(depth, torch.full((6, 8), 3.0))


def step_of_depth() -> Tensor:
    depth = torch.ones(1, 6, 8)
    depth[..., 4:] = 2.0
    return depth


def test_a_step_of_depth_is_an_edge_on_both_sides() -> None:
    edge = depth_edges(step_of_depth(), atol=0.5)
    assert edge.nonzero()[:, 2].unique().tolist() == [3, 4]


def test_masked_pixels_make_no_edge() -> None:
    depth = step_of_depth()
    assert not depth_edges(depth, rtol=0.1, mask=depth < 1.5)[..., :4].any()


def plane(tilt: float) -> Tensor:
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    return torch.stack([x, y, 5 + tilt * x], dim=-1)[None]


def test_normals_of_a_plane() -> None:
    normals, there = normals_of_points(plane(1.0))
    expected = torch.tensor([1.0, 0.0, -1.0]) / math.sqrt(2)
    assert there.all()
    torch.testing.assert_close(normals.abs(), expected.abs().expand_as(normals))


def test_a_plane_has_no_creases_and_a_fold_has() -> None:
    flat, folded = plane(1.0), plane(0.0)
    folded[..., 4:, 2] += 2 * torch.arange(4.0)
    assert not normal_edges(normals_of_points(flat)[0]).any()
    assert normal_edges(normals_of_points(folded)[0]).any()


def test_a_steep_plane_is_kept_although_its_depth_jumps() -> None:
    steep = plane(3.0)
    assert depth_edges(steep[..., 2], rtol=0.03).all()
    assert not surface_edges(steep).any()
    assert keep_mask(steep, torch.zeros(1, 6, 8, 1)).all()


def test_uncertain_pixels_go() -> None:
    logits = torch.full((1, 6, 8), -5.0)
    logits[..., 0] = 5.0
    assert keep_mask(plane(0.0), logits, rtol=None).sum() == 6


@pytest.mark.parametrize(
    ("size", "expected"), [((640, 480), (574, 434)), ((1, 1), (504, 504)), ((100000, 10), (50498, 14))]
)
def test_sizes_are_whole_patches(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert all(side % 14 == 0 for side in expected)
    assert input_size(*size) == expected or size == (640, 480)


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(RequestError, match="0x5"):
        input_size(0, 5)


def test_depth_errors_forget_the_scale() -> None:
    truth = torch.rand(2, 5, 5) + 1
    errors = depth_errors(truth * 7, truth)
    assert errors.abs_rel == pytest.approx(0, abs=1e-7)
    assert errors.delta == 1.0


def test_depth_errors_in_closed_form() -> None:
    # d = (1, 1), g = (1, 3): a = 4 / 2 = 2, errors 1 / 1 and 1 / 3; ratios 2 and 1.5.
    errors = depth_errors(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 3.0]))
    assert errors.abs_rel == pytest.approx((1 + 1 / 3) / 2)
    assert errors.delta == 0.0


def test_depth_errors_forget_a_shift_when_asked() -> None:
    truth = torch.rand(20) + 1
    assert depth_errors(3 * truth - 1, truth, shift=True).abs_rel == pytest.approx(0, abs=1e-6)
    assert depth_errors(3 * truth - 1, truth).abs_rel > 0.01


def test_depth_without_valid_pixels_is_refused() -> None:
    with pytest.raises(RequestError, match="no pixel"):
        depth_errors(torch.ones(3), torch.zeros(3))


def test_pose_errors_forget_a_similarity() -> None:
    truth = random_poses(6).double()
    moved = truth.clone()
    moved[:, :3, :3] = turn(1, 40) @ truth[:, :3, :3]
    moved[:, :3, 3] = 2.5 * truth[:, :3, 3] @ turn(1, 40).T + torch.tensor([1.0, -2.0, 3.0])
    errors = pose_errors(moved, truth)
    assert max(errors.ate, errors.rpe_translation, errors.rpe_rotation) == pytest.approx(0, abs=1e-4)


def test_ate_of_a_still_camera_is_the_spread_of_the_true_ones() -> None:
    truth = torch.eye(4).repeat(2, 1, 1)
    truth[1, 0, 3] = 4.0
    errors = pose_errors(torch.eye(4).repeat(2, 1, 1), truth)
    assert errors.ate == pytest.approx(2.0)
    assert errors.rpe_translation == pytest.approx(4.0)


def test_rpe_of_a_turned_camera_is_its_angle() -> None:
    truth = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    truth[:, 0, 3] = torch.arange(3)
    turned = truth.clone()
    turned[1:, :3, :3] = turn(2, 10)
    assert pose_errors(turned, truth).rpe_rotation == pytest.approx(10 / math.sqrt(2))


@pytest.mark.parametrize("degrees", [0.001, 10.0, 179.0])
def test_angle_of_a_rotation(degrees: float) -> None:
    assert rotation_degrees(turn(0, degrees)).item() == pytest.approx(degrees, rel=1e-5)


def test_alignment_never_mirrors() -> None:
    points = torch.randn(10, 3)
    found = align_points(points, points * torch.tensor([1.0, 1.0, -1.0]))
    assert torch.linalg.det(found.rotation).item() == pytest.approx(1.0)


def test_cloud_errors_in_closed_form() -> None:
    truth = torch.tensor([[0.0, 0, 0], [10.0, 0, 0]])
    errors = cloud_errors(torch.tensor([[1.0, 0, 0]]), truth)
    assert (errors.accuracy, errors.completeness) == (1.0, 5.0)


def test_an_empty_cloud_has_no_errors() -> None:
    with pytest.raises(RequestError, match="no points"):
        cloud_errors(torch.zeros(0, 3), torch.zeros(1, 3))
