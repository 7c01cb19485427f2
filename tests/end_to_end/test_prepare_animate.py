"""``wan prepare-animate`` on tiny networks in the layout of process_checkpoint: files, restarts, edits, bad input."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from tests.animate_models import (
    HEIGHT,
    WIDTH,
    person,
    tiny_sam2,
    write_frames,
    write_models,
    write_sam2,
)
from wan_core.animate import persons, prepare
from wan_core.animate.detect import DETECTOR_FILE
from wan_core.animate.pose import POSE_FILE
from wan_core.animate.sam2 import MaskTracker
from wan_core.media import load_image, probe_video, read_provenance, read_video

Run = Callable[..., Result]
FRAMES = 6
SCENES = [person(22 + 3 * k, 38 + k) for k in range(FRAMES)]
AREA = ["--resolution_area", WIDTH, HEIGHT, "--fps", -1]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("animate") / "process_checkpoint")


@pytest.fixture(scope="session")
def all_models(models: Path) -> Path:
    """With SAM 2, which takes a second to make."""
    write_sam2(models, tiny_sam2())
    return models


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("driving") / "video.mp4", SCENES)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "image.png"
    Image.fromarray(person(36, 34, width=80, height=88)).save(path)
    return path


@pytest.fixture
def ready(run: Run, models: Path, video: Path, reference: Path) -> Run:
    """Run the command on the video and the reference, into ``out``; later words win."""

    def invoke(*more: object) -> Result:
        words = ["--ckpt_path", models, "--video_path", video, "--refer_path", reference, "--save_path", "out"]
        return run("prepare-animate", *words, *AREA, *more)

    return invoke


def names(folder: str = "out") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_motion_is_brought_to_the_proportions_of_the_reference(ready: Run, reference: Path) -> None:
    result = ready("--retarget_flag", "--preview", "strip.png", "--quiet")
    assert result.exit_code == 0, result.output
    assert names() == ["src_face.mp4", "src_pose.mp4", "src_ref.png"]
    info = probe_video("out/src_pose.mp4")
    assert (info.width, info.height, info.num_frames, info.fps) == (64, 80, FRAMES, 10)  # 64x96 pixels like 80x88
    poses = read_video("out/src_pose.mp4").frames
    assert ((poses > 100).any(dim=1).sum(dim=(1, 2)) > 100).all()
    columns = [(frame > 100).any(dim=0).any(dim=0).nonzero().float().mean() for frame in poses]
    assert columns == sorted(columns)  # the person goes to the right
    faces = read_video("out/src_face.mp4").frames
    assert faces.shape == (FRAMES, 3, 512, 512)
    assert np.array_equal(load_image("out/src_ref.png"), load_image(reference))
    record = read_provenance("out/src_pose.mp4")
    assert record.preset == "wan prepare-animate"
    assert record.settings["retarget_flag"] is True
    assert set(record.record["weights"]) == {"detector", "poses"}
    assert Image.open("strip.png").width > FRAMES * 240


@pytest.mark.slow
def test_the_seeds_replacement_masks_the_person_and_keeps_the_scene(
    run: Run, all_models: Path, video: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boxed(self: MaskTracker, frames: Any, length: int, prompts: Any) -> Any:
        assert list(prompts) == [0, 4, 8, 12, 16]
        for index, frame in enumerate(frames):
            points = prompts[index // 4 * 4].points
            mask = np.zeros(frame.shape[:2], dtype=np.uint8)
            mask[points[:, 1].min() : points[:, 1].max(), points[:, 0].min() : points[:, 0].max()] = 1
            yield mask

    monkeypatch.setattr(MaskTracker, "masks", boxed)
    result = run(
        "prepare-animate", "--ckpt_path", all_models, "--video_path", video, "--refer_path", reference, "--save_path",
        "out", "--resolution_area", WIDTH, HEIGHT, "--iterations", 3, "--k", 7, "--w_len", 1, "--h_len", 1,
        "--replace_flag",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert names() == ["src_bg.mp4", "src_face.mp4", "src_mask.mp4", "src_pose.mp4", "src_ref.png"]
    masks, scenes = read_video("out/src_mask.mp4"), read_video("out/src_bg.mp4").frames
    assert masks.fps == 30  # the default: each of the ten frames a second is there three times
    assert masks.frames.shape == (18, 3, HEIGHT, WIDTH)
    assert set(masks.frames.unique().tolist()) == {0, 255}
    given = torch.from_numpy(np.stack(SCENES)).permute(0, 3, 1, 2).repeat_interleave(3, dim=0)
    is_outside = masks.frames == 0
    assert 0.2 < is_outside.float().mean() < 0.9
    assert (scenes.int() - given.int()).abs()[is_outside].float().mean() < 6
    assert scenes[~is_outside].float().mean() < 6


@pytest.mark.slow
def test_sam_2_makes_the_masks_and_its_finished_chunks_are_kept(
    ready: Run, all_models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(prepare, "augment_mask", _interrupt)
    stopped = ready("--replace_flag")
    assert stopped.exit_code == 130, stopped.output
    assert [path.suffix for path in Path("out").iterdir() if path.name.startswith(".masks")] == [".parts"]
    assert "src_pose.mp4" in names()
    assert "src_bg.mp4" not in names()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MaskTracker, "masks", _interrupt)
    grown: list[Any] = []
    monkeypatch.setattr(prepare, "augment_mask", lambda mask, *growth: grown.append(growth) or mask)
    again = ready("--replace_flag", "--iterations", 0)
    assert again.exit_code == 0, again.output
    assert len(grown) == FRAMES  # once for both videos
    assert "src_pose.mp4 is there, made of the same things" in again.output
    assert not any(name.startswith(".") for name in names())


def _interrupt(*given: object, **named: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["crop_face", "draw_pose", "write_image"])
def test_a_stopped_run_goes_on_where_it_was(
    ready: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: str
) -> None:
    assert ready("--save_path", "whole").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(prepare, stage, _interrupt)
        stopped = ready()
    assert stopped.exit_code == 130, stopped.output
    assert "nothing half-written" in stopped.output
    again = ready()
    assert again.exit_code == 0, again.output
    assert names() == names("whole")
    for name in names():
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()


@pytest.mark.slow
def test_points_of_a_run_that_was_killed_are_not_looked_for_again(ready: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persons, "PART", 2)
    look, looked = persons.PersonFinder.look, []

    def counted(self: persons.PersonFinder, *arguments: Any) -> Any:
        looked.append(arguments)
        if len(looked) == 5:
            raise KeyboardInterrupt
        return look(self, *arguments)

    monkeypatch.setattr(persons.PersonFinder, "look", counted)
    assert ready().exit_code == 130
    assert ready().exit_code == 0
    assert len(looked) == 5 + FRAMES - 4  # two parts of two were whole
    done = len(looked)
    assert ready().exit_code == 0  # all is there
    assert len(looked) == done


@pytest.mark.slow
def test_files_of_other_settings_are_replaced_when_asked(ready: Run) -> None:
    assert ready().exit_code == 0
    face = Path("out/src_face.mp4").read_bytes()
    refused = ready("--retarget_flag")
    assert refused.exit_code == 2
    assert "out/src_pose.mp4 is there, made otherwise (retarget_flag)" in refused.output
    made = ready("--retarget_flag", "--overwrite")
    assert made.exit_code == 0, made.output
    assert read_provenance("out/src_pose.mp4").settings["retarget_flag"] is True
    assert Path("out/src_face.mp4").read_bytes() == face


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--ckpt_path", "nowhere"], 3, "nowhere lacks det/yolov10m.onnx, pose2d/vitpose_h_wholebody.onnx; fetch it"),
        (["--ckpt_path", "text.mp4"], 3, "text.mp4 lacks det/yolov10m.onnx"),
        (["--use_flux"], 2, "--use_flux edits the pictures that --retarget_flag measures"),
        (["--use_flux", "--retarget_flag"], 3, "lacks FLUX.1-Kontext-dev; fetch it with 'wan download"),
        (["--retarget_flag", "--replace_flag"], 2, "--retarget_flag is for animation"),
        (["--resolution_area", 0, 720], 2, "--resolution_area is a width and a height from 1 to 4096, got 0 720"),
        (["--resolution_area", 9000, 9000], 2, "got 9000 9000"),
        (["--resolution_area", 4, 4], 2, "has no size of 16 pixels in multiples of 16"),
        (["--resolution_area", "wide", "high"], 2, "'wide' is not a valid integer"),
        (["--resolution_area", 1280], 2, "requires 2 arguments"),
        (["--fps", 0], 2, "--fps is above 0 and at most 1000, or -1 for that of the video; got 0"),
        (["--fps", "nan"], 2, "'nan' is no finite number"),
        (["--iterations", -1], 2, "--iterations must be 0 or more, got -1"),
        (["--k", 0], 2, "--k must be at least 1, got 0"),
        (["--w_len", 0], 2, "--w_len must be at least 1, got 0"),
        (["--h_len", -2], 2, "--h_len must be at least 1, got -2"),
        (["--seed", -1], 2, "--seed must be from 0"),
        (["--video_path", "none.mp4"], 2, "video none.mp4 does not exist"),
        (["--video_path", "text.mp4"], 4, "text.mp4 is"),
        (["--refer_path", "none.png"], 2, "image none.png does not exist"),
        (["--refer_path", "text.mp4"], 4, "text.mp4 is no picture that can be read here"),
        (["--save_path", "text.mp4"], 4, "cannot write into text.mp4: it is a file"),
        (["--save_path", ""], 2, "it is empty"),
        (["--preview", "strip.jpg"], 2, "strip.jpg ends in .jpg"),
        (["--preview", "out/src_ref.png"], 2, "would take the place of another output"),
        (["--device", "tpu"], 2, "device must be cpu, cuda"),
        (["--dtype", "int8"], 2, "dtype must be one of"),
    ],
)
def test_a_bad_request_is_told_before_any_work(ready: Run, words: list[object], code: int, said: str) -> None:
    Path("text.mp4").write_text("no video at all, but a text")
    result = ready(*words)
    assert result.exit_code == code, result.output
    assert said in " ".join(result.output.split())
    assert not Path("out").exists()


def _changed(models: Path, change: Callable[[Path], object]) -> Path:
    folder = Path("changed")
    shutil.copytree(models, folder)
    change(folder)
    return folder


def _without_sam2(folder: Path) -> None:
    shutil.rmtree(folder / "sam2", ignore_errors=True)


def _damaged_sam2(folder: Path) -> None:
    (folder / "sam2").mkdir(exist_ok=True)
    (folder / "sam2/sam2_hiera_large.pt").write_bytes(b"PK\3\4 and nothing more")


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        (_without_sam2, ["--replace_flag"], "lacks sam2/sam2_hiera_large.pt; fetch it"),
        (_damaged_sam2, ["--replace_flag"], "sam2_hiera_large.pt"),
        (lambda folder: (folder / DETECTOR_FILE).write_text("x"), [], "yolov10m.onnx is no ONNX network"),
        (lambda folder: shutil.copy(folder / DETECTOR_FILE, folder / POSE_FILE), [], "is another network"),
        (lambda folder: write_models(folder, boxes=7), [], "its outputs are [[1, 300, 7]]"),
        (lambda folder: write_models(folder, maps=17), [], "its outputs are [(1, 17, 64, 48)]"),
    ],
)
def test_networks_of_another_kind_are_refused(
    ready: Run, models: Path, change: Callable[[Path], object], words: list[object], said: str
) -> None:
    result = ready("--ckpt_path", _changed(models, change), *words)
    assert result.exit_code == 3, result.output
    assert said in " ".join(result.output.split())


def test_an_editor_of_another_kind_is_refused(ready: Run, models: Path) -> None:
    def write(text: str) -> Callable[[Path], object]:
        def change(folder: Path) -> None:
            (folder / "FLUX.1-Kontext-dev").mkdir()
            (folder / "FLUX.1-Kontext-dev/model_index.json").write_text(text)

        return change

    folder = _changed(models, write('{"_class_name": "FluxPipeline"}'))
    result = ready("--ckpt_path", folder, "--retarget_flag", "--use_flux")
    assert result.exit_code == 3
    assert "is a FluxPipeline, not a FluxKontextPipeline" in " ".join(result.output.split())


EMPTY = np.full((HEIGHT, WIDTH, 3), 60, dtype=np.uint8)


@pytest.mark.parametrize(
    ("frames", "words", "said"),
    [
        ([EMPTY] * 2, [], "no person was found in the first frame"),
        ([SCENES[0]], ["--retarget_flag", "--refer_path", "empty.png"], "no person was found on the reference"),
    ],
)
def test_persons_that_are_missing_or_too_many_are_told(
    ready: Run, frames: list[np.ndarray], words: list[object], said: str
) -> None:
    Image.fromarray(EMPTY).save("empty.png")
    result = ready("--video_path", write_frames(Path("other.mp4"), frames), *words)
    assert result.exit_code == 4, result.output
    assert said in " ".join(result.output.split())
    assert "src_face.mp4" not in names()


@pytest.mark.slow
def test_two_persons_cannot_be_replaced(ready: Run, all_models: Path) -> None:
    two = write_frames(Path("two.mp4"), [person(30, 40, blue=True)] * 2)
    result = ready("--video_path", two, "--replace_flag")
    assert result.exit_code == 4, result.output
    assert "2 of 2 frames show more than one person, the first at 0; --replace_flag replaces the one" in result.output
    assert ready("--video_path", two).exit_code == 0  # the larger one moves the character


@pytest.mark.slow
def test_a_mask_of_nobody_is_told(ready: Run, all_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        MaskTracker, "masks", lambda self, frames, length, prompts: (np.zeros_like(each[..., 0]) for each in frames)
    )
    result = ready("--replace_flag")
    assert result.exit_code == 4, result.output
    assert "SAM 2 finds nobody in any frame" in result.output


@pytest.mark.slow
def test_one_frame_is_a_video_too(ready: Run, all_models: Path) -> None:
    result = ready("--video_path", write_frames(Path("one.mp4"), SCENES[:1]), "--replace_flag")
    assert result.exit_code in (0, 4), result.output  # random weights may see nobody
    assert probe_video("out/src_pose.mp4").num_frames == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", [["--retarget_flag"], ["--replace_flag"]])
def test_what_is_prepared_moves_the_character(
    mode: list[str], ready: Run, run: Run, checkpoint: Callable[[str], Path], all_models: Path
) -> None:
    prepared = ready(*mode, "--iterations", 0)
    assert prepared.exit_code == 0, prepared.output
    made = run(
        "generate", "--task", "animate-14B", "--ckpt_dir", checkpoint("animate-14B"), "--src_root_path", "out",
        "--refert_num", 1, "--frame_num", 5, "--sample_steps", 1, *(word for word in mode if word == "--replace_flag"),
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "note: src_" not in made.output  # nothing in what is written for it has to be explained
    (output,) = Path().glob("*.mp4")
    video, poses = probe_video(output), probe_video("out/src_pose.mp4")
    assert video.fps == poses.fps == 10
    assert (video.width, video.height, video.num_frames) == (poses.width, poses.height, FRAMES)
    assert set(read_provenance(output).record["inputs"]) == set(names())


@pytest.mark.slow
def test_a_folder_of_transformers_makes_the_masks_of_the_original(ready: Run, all_models: Path) -> None:
    folder = _changed(all_models, _without_sam2)
    tiny_sam2().save_pretrained(folder / "sam2")
    masks = []
    for place in (all_models, folder):
        result = ready("--ckpt_path", place, "--save_path", place.name, "--replace_flag", "--iterations", 0, "--quiet")
        assert result.exit_code == 0, result.output
        assert "Loading" not in result.output  # transformers' own bar
        masks.append(read_video(Path(place.name, "src_mask.mp4")).frames)
    assert torch.equal(*masks)
    weights = folder / "sam2/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    cut = ready("--ckpt_path", folder, "--replace_flag")
    assert cut.exit_code == 3
    assert "sam2/model.safetensors" in cut.output
    assert not Path("out").exists()
