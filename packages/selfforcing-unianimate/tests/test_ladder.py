"""The testing ladder's levels that need a folder of weights: a tiny one in the real layout, or ``--weights DIR``.

Level 0 is in test_doctor.py, 1 and 1.6 in test_causal_dit.py, 1.5 in test_pose_encoder.py, 1.8, 2 and 4.5 in
test_motion.py (1.8 of the teacher in test_teacher.py).

Level 5 also holds the bundled student and teacher to a pose metric. A real network that follows poses is held to one by
'sfu evaluate VIDEO --pose POSE --json', ``summary.pck_0.1.mean``.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from selfforcing_unianimate.cli.infer import infer
from selfforcing_unianimate.cli.teacher import teacher
from selfforcing_unianimate.metrics import Keypoints, evaluate_clip
from selfforcing_unianimate.metrics.keypoints import body_keypoints
from selfforcing_unianimate.pose_file import read_pose_file
from selfforcing_unianimate.presets import SFU_1_3B
from tools.make_checkpoint import make_checkpoint
from tools.tiny.person_detect import JOINTS
from tools.tiny.person_evaluation import ColourDetector
from wan_core import CheckpointError
from wan_core.checkpoints import read_weights
from wan_core.loading import load_pipeline
from wan_core.media import load_image, read_video
from wan_core.pipeline import Pipeline

POSE = Path(__file__).parents[3] / "tests/data/person.npz"
SHORT = ["--size", "32*32", "--frame-num", "17", "--base-seed", "3"]


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of Wan2.1-T2V-1.3B."""
    given = request.config.getoption("--weights")
    return Path(given) if given else make_checkpoint("t2v-1.3B", tmp_path_factory.mktemp("t2v-1.3B"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return load_pipeline(SFU_1_3B, folder)


def test_level_3_load_the_network_has_the_files_tensors_and_the_pose_projection(
    pipeline: Pipeline, folder: Path
) -> None:
    stored = set(read_weights(folder))
    dit = pipeline.components.dit.module()
    assert set(dit.state_dict()) - stored == {"pose_proj.weight", "pose_proj.bias"}
    assert stored < set(dit.state_dict())
    assert not dit.pose_proj.weight.any()
    context = torch.zeros(1, 1, dit.config.text_dim, device=dit.device)
    inputs = dit.inputs_type(context=context)
    with torch.no_grad():
        velocity = dit(torch.randn(1, 16, 3, 4, 4, device=dit.device), torch.tensor([[900.0, 900.0, 900.0]]), inputs)
    assert velocity.shape == (1, 16, 3, 4, 4)
    assert velocity.isfinite().all()


def test_level_4_weights_every_part_works_and_a_missing_one_is_named(
    pipeline: Pipeline, folder: Path, tmp_path: Path
) -> None:
    components = pipeline.components
    with components.part("text_encoder").active() as encode:
        states = encode(["a person is dancing"])[0]
    assert states.shape[1] == components.configs["dit"].text_dim
    assert states.isfinite().all()
    with components.vae.active() as vae, torch.no_grad():
        latents = vae.encode(torch.zeros(1, 3, 5, 32, 32, device=components.device))
        assert latents.shape == (1, 16, 2, 4, 4)
        assert vae.decode(latents).shape == (1, 3, 5, 32, 32)
    for path in folder.iterdir():
        if path.name != "Wan2.1_VAE.pth":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(CheckpointError, match=r"Wan2\.1_VAE\.pth"):
        load_pipeline(SFU_1_3B, tmp_path)


def test_level_5_interactive_a_video_of_the_asked_length_is_made(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "video.mp4"
    words = ["--ckpt-dir", str(folder), "--prompt", "a person is dancing", *SHORT, "--output", str(out)]
    result = CliRunner().invoke(infer, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    video = read_video(out)
    assert video.frames.shape == (17, 3, 32, 32)
    assert video.fps == SFU_1_3B.sampling.fps
    assert video.frames.float().std() > 0


def test_level_5_interactive_the_bundled_student_moves_a_person_as_the_poses_say(tmp_path: Path) -> None:
    out, prompt = tmp_path / "frames" / "%04d.png", "a green person moves on a black background"
    words = ["--prompt", prompt, "--pose", str(POSE), "--frame-num", "17", "--base-seed", "3", "--output", str(out)]
    result = CliRunner().invoke(infer, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert how_true(out.parent) > 0.75


def test_level_5_interactive_so_does_the_bundled_teacher(tmp_path: Path) -> None:
    out, prompt = tmp_path / "frames" / "%04d.png", "a green person moves on a black background"
    words = ["--prompt", prompt, "--pose", str(POSE), "--frame-num", "17", "--base-seed", "3", "--output", str(out)]
    result = CliRunner().invoke(teacher, [*words, "--sample-steps", "12"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert how_true(out.parent) > 0.75


def how_true(folder: Path) -> float:
    """PCK@0.1 of the pictures in a folder, which should follow POSE, by the detector of the persons' world."""
    frames = np.stack([np.array(load_image(path)) for path in sorted(folder.iterdir())])
    driving = read_pose_file(POSE).driving[: len(frames)]
    wanted = body_keypoints(driving, 64, 64)
    judged = np.isin(np.arange(wanted.scores.shape[1]), JOINTS)
    target = Keypoints(wanted.points, np.where(judged, wanted.scores, 0.0))
    share = evaluate_clip(frames, target, ColourDetector().keypoints(frames))["pck_0.1"]
    assert share is not None
    return share
