"""``wan generate animate-14B`` on a tiny checkpoint in the real layout: the seed's commands, segments, bad input."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import save_file

import wan_core.loading
from wan_core.files import hash_file
from wan_core.media import load_audio, read_provenance, read_video, video_decoding, video_reader, write_video
from wan_core.media.video_decoding import TimedFrame
from wan_core.models import VideoVAE
from wan_core.presets import get_preset
from wan_core.tasks import AnimateRequest, base
from wan_core.tasks.animate import PROMPT

Run = Callable[..., Result]
Change = Callable[[Path], object]
FRAMES, WIDTH, HEIGHT, FPS = 12, 48, 32, 25
FAST = ["--sample_steps", 2, "--base_seed", 3, "--frame_num", 9]


def moving_square(frames: int, width: int, height: int, colour: tuple[float, float, float]) -> torch.Tensor:
    """A square that goes right: [3, T, H, W] in [-1, 1]."""
    video = torch.full((3, frames, height, width), -1.0)
    for index in range(frames):
        left = index * (width - 8) // frames
        video[:, index, height // 4 : height // 4 + 8, left : left + 8] = torch.tensor(colour)[:, None, None]
    return video


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``wan prepare-animate --replace_flag`` writes it: 12 frames of 48x32 at 25 a second."""
    folder = tmp_path_factory.mktemp("prepared") / "process_results"
    folder.mkdir()
    mask = torch.full((3, FRAMES, HEIGHT, WIDTH), -1.0)
    mask[..., 16:32] = 1.0
    videos = {
        "src_pose.mp4": moving_square(FRAMES, WIDTH, HEIGHT, (1.0, -1.0, 0.0)),
        "src_face.mp4": moving_square(FRAMES, 64, 64, (0.5, 0.0, 0.0)),
        "src_bg.mp4": torch.linspace(-1, 1, WIDTH).expand(3, FRAMES, HEIGHT, WIDTH),
        "src_mask.mp4": mask,
    }
    for name, frames in videos.items():
        write_video(iter([frames]), folder / name, fps=FPS, crf=10)
    image = Image.new("RGB", (60, 90), (40, 75, 215))
    image.paste((225, 35, 40), (10, 20, 40, 50))
    image.save(folder / "src_ref.png", format="JPEG")  # whatever it was
    return folder


@pytest.fixture
def animate(run: Run, checkpoint: Callable[[str], Path], prepared: Path) -> Run:
    """Run the task on the prepared folder, or another, quickly."""

    def invoke(*more: object, folder: Path = prepared) -> Result:
        words = ["--task", "animate-14B", "--ckpt_dir", checkpoint("animate-14B"), "--src_root_path", folder]
        return run("generate", *words, *FAST, *more)

    return invoke


def test_the_seeds_animation_command_makes_a_video_as_long_and_fast_as_the_driving_one(
    run: Run, checkpoint: Callable[[str], Path], prepared: Path
) -> None:
    result = run(
        "generate", "--task", "animate-14B", "--ckpt_dir", f"{checkpoint('animate-14B')}/",
        "--src_root_path", f"{prepared}/", "--refert_num", 1, "--sample_steps", 1, "--frame_num", 13,
        "--save_file", "v.mp4",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "was prepared for replacement" in result.output
    video = read_video("v.mp4")
    assert video.fps == FPS
    assert video.frames.shape == (FRAMES, 3, HEIGHT, WIDTH)
    record = read_provenance("v.mp4")
    assert record.settings["prompt"] == PROMPT
    assert (record.settings["refert_num"], record.settings["replace_flag"]) == (1, False)
    assert record.settings["src_root_path"] == "process_results"
    assert "fps" not in record.settings
    assert set(record.record["inputs"]) == {"src_pose.mp4", "src_face.mp4", "src_ref.png"}
    assert record.record["noise_device"] == "cpu"


@pytest.mark.slow
def test_the_seeds_replacement_command_keeps_the_scene_and_merges_the_relighting_lora(
    run: Run, checkpoint: Callable[[str], Path], prepared: Path
) -> None:
    words = [
        "generate", "--task", "animate-14B", "--ckpt_dir", f"{checkpoint('animate-14B')}/",
        "--src_root_path", f"{prepared}/", "--refert_num", 1, "--replace_flag", *FAST,
    ]  # fmt: skip
    lit = run(*words, "--use_relighting_lora", "--save_file", "lit.mp4")
    assert lit.exit_code == 0, lit.output
    assert run(*words, "--save_file", "plain.mp4").exit_code == 0
    record = read_provenance("lit.mp4")
    assert record.record["lora"] == ["relighting_lora.ckpt"]
    assert {"src_bg.mp4", "src_mask.mp4"} < set(record.record["inputs"])
    assert not torch.equal(read_video("lit.mp4").frames, read_video("plain.mp4").frames)


def test_a_plan_tells_segments_and_reads_no_weights(animate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wan_core.loading, "load_model", None)
    result = animate("--dry-run", "--json", "--quiet", "--use_relighting_lora", "--replace_flag", "--prompt", "a wave")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)[0]
    assert (plan["clips"], plan["num_frames"], plan["seconds"], plan["width"]) == (2, FRAMES, 0.48, WIDTH)
    assert plan["latent_shape"] == [1, 16, 4, HEIGHT // 8, WIDTH // 8]
    assert plan["tokens"] == 4 * 2 * 3
    assert (plan["segment_frames"], plan["fps"]) == (9, FPS)
    assert (plan["prompt"], plan["guidance_scale"], plan["flow_shift"]) == ("a wave", 1.0, 5.0)
    assert plan["lora"][0].endswith("relighting_lora.ckpt")


@pytest.mark.slow
def test_what_drives_the_video_changes_it(animate: Run, prepared: Path, tmp_path: Path) -> None:
    """Poses, the face, the reference, the scene and the mask each have a say; so have guidance and the prompt."""
    folder = shutil.copytree(prepared, tmp_path / "other")
    one = ["--frame_num", 13, "--sample_steps", 1, "--replace_flag"]

    def made(*more: object) -> torch.Tensor:
        result = animate(*one, *more, "--save_file", tmp_path / "v.mp4", folder=folder)
        assert result.exit_code == 0, result.output
        return read_video(tmp_path / "v.mp4").frames

    usual = made()
    assert torch.equal(made(), usual)
    for more in (["--sample_guide_scale", 2], ["--prompt", "another"], ["--refert_num", 5, "--base_seed", 4]):
        assert not torch.equal(made(*more), usual)
    for name in ("src_pose.mp4", "src_face.mp4", "src_bg.mp4", "src_mask.mp4"):
        frames = read_video(folder / name, as_float=True).frames.transpose(0, 1)
        write_video(iter([-frames]), folder / name, fps=FPS)
        assert not torch.equal(made(), usual), name
        shutil.copyfile(prepared / name, folder / name)
    Image.new("RGB", (48, 32), "green").save(folder / "src_ref.png")
    assert not torch.equal(made(), usual)


@pytest.mark.parametrize("overlap", [1, 5])
def test_segments_read_the_driving_videos_on(prepared: Path, overlap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning decodes a frame of each video, and all segments together each frame once."""
    preset, decoded = get_preset("animate-14B"), list[str]()
    decode = video_decoding.stream_frames

    def counted(container: Any, stream: Any, file: Path) -> Iterator[TimedFrame]:
        for frame in decode(container, stream, file):
            decoded.append(file.name)
            yield frame

    for module in (video_decoding, video_reader):
        monkeypatch.setattr(module, "stream_frames", counted)
    frames = 5 if overlap == 1 else 13
    request = AnimateRequest(src_root_path=prepared, replace_flag=True, num_frames=frames, refert_num=overlap)
    inputs = preset.plan(request, preset.latent_spec)
    videos = inputs.driving.open(overlap)
    assert sorted(decoded) == sorted(name for name in inputs.files if name.endswith(".mp4"))
    decoded.clear()
    pose = read_video(prepared / "src_pose.mp4").frames
    decoded.clear()
    for index in range(preset.task.num_clips(inputs)):
        assert torch.equal(videos.frames("src_pose.mp4", inputs.places(index)), pose[inputs.places(index)])
    assert len(decoded) == FRAMES


@pytest.mark.slow
@pytest.mark.parametrize(("overlap", "frames", "segments"), [(1, 9, 2), (5, 13, 1), (1, 5, 3)])
@pytest.mark.parametrize("mode", [[], ["--replace_flag"]])
def test_segments_make_the_whole_video(
    overlap: int, frames: int, segments: int, mode: list[str], animate: Run, tmp_path: Path
) -> None:
    more = [*mode, "--refert_num", overlap, "--frame_num", frames, "--save_file", "v.mp4"]
    plan = animate(*more, "--dry-run", "--json", "--quiet")
    assert json.loads(plan.stdout)[0]["clips"] == segments
    assert animate(*more).exit_code == 0
    assert len(read_video("v.mp4").frames) == FRAMES


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_after_its_finished_segments(
    animate: Run, clips: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = VideoVAE.encode

    def counted(self: VideoVAE, video: torch.Tensor) -> torch.Tensor:
        encoded.append(video.shape[2])
        return encode(self, video)

    monkeypatch.setattr(VideoVAE, "encode", counted)
    stopped = animate("--save_file", "v.mp4")
    assert stopped.exit_code == 130, stopped.output
    (folder,) = tmp_path.iterdir()
    assert [path.name for path in folder.iterdir()] == ["0000.safetensors"]
    encoded.clear()
    hashed: list[str] = []
    monkeypatch.setattr(base, "hash_file", lambda path: hashed.append(path.name) or hash_file(path))
    again = animate("--save_file", "v.mp4")
    assert again.exit_code == 0, again.output
    assert "1 of 2 clips are there" in again.output
    assert len(clips) == 3
    assert sorted(hashed) == ["src_face.mp4", "src_pose.mp4", "src_ref.png"]  # once, to find the clips and to record
    assert encoded == [1, 9, 9]  # the reference, and of the second segment what it begins with and its poses
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
    assert animate("--save_file", "whole.mp4").exit_code == 0
    assert torch.equal(read_video("v.mp4").frames, read_video("whole.mp4").frames)


@pytest.mark.slow
def test_the_sound_of_the_driving_video_is_copied_and_as_long_as_the_frames(animate: Run, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "s.wav", 0.4 * np.sin(np.arange(3000)), 10_000)  # 0.3 s
    result = animate("--frame_num", 13, "--sample_steps", 1, "--audio", "s.wav", "--save_file", "v.mp4")
    assert result.exit_code == 0, result.output
    assert "lasts 0.30 s, the video 0.48 s" in result.output
    assert len(read_video("v.mp4").frames) == FRAMES
    track = load_audio("v.mp4")
    assert track.seconds == pytest.approx(FRAMES / FPS, abs=0.05)
    assert float(track.samples[:, : track.sample_rate // 4].abs().mean()) > 0.1


@pytest.mark.slow
def test_another_rate_is_written_and_said(animate: Run) -> None:
    result = animate("--frame_num", 13, "--sample_steps", 1, "--fps", 50, "--save_file", "v.mp4")
    assert result.exit_code == 0, result.output
    assert "2.00 times as fast" in result.output
    assert read_video("v.mp4").fps == 50
    assert read_provenance("v.mp4").settings["fps"] == 50


def without(pattern: str) -> Change:
    def change(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.unlink()

    return change


def video(name: str, frames: int, width: int = WIDTH, height: int = HEIGHT) -> Change:
    return lambda folder: write_video(iter([torch.zeros(3, frames, height, width)]), folder / name, fps=FPS)


def text(name: str) -> Change:
    return lambda folder: (folder / name).write_text("no media\n" * 50)


def cut(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:700])


def empty(name: str) -> Change:
    return lambda folder: (folder / name).write_bytes(b"")


def long_image(folder: Path) -> None:
    Image.new("RGB", (20_000, 2)).save(folder / "src_ref.png")


def lora(path: Path, width: int) -> None:
    """A LoRA of the first query of a network so wide."""
    halves = {"A": torch.ones(2, width), "B": torch.ones(width, 2)}
    save_file({f"blocks.0.self_attn.q.lora_{half}.weight": each for half, each in halves.items()}, path)


# name: (how the folder is changed, more arguments, exit code, words that the message must have). {tmp} has odd files.
BAD: dict[str, tuple[Change | None, list[object], int, tuple[str, ...]]] = {
    "no such folder": (shutil.rmtree, [], 2, ("is not there", "prepare-animate")),
    "a file for a folder": (None, ["--src_root_path", "{tmp}/text.txt"], 2, ("text.txt is no folder",)),
    "no poses": (without("src_pose.mp4"), [], 2, ("has no src_pose.mp4", "prepare-animate")),
    "no face": (without("src_face.mp4"), [], 2, ("has no src_face.mp4",)),
    "no reference": (without("src_ref.png"), [], 2, ("has no src_ref.png",)),
    "an empty folder": (without("*"), [], 2, ("src_pose.mp4, src_face.mp4, src_ref.png",)),
    "no scene": (without("src_bg.mp4"), ["--replace_flag"], 2, ("src_bg.mp4", "leave --replace-flag out")),
    "no mask": (without("src_mask.mp4"), ["--replace_flag"], 2, ("src_mask.mp4", "leave --replace-flag out")),
    "three frames of overlap": (None, ["--refert_num", 3], 2, ("refert_num must be 1 or 5, got 3",)),
    "the original's overlap": (None, ["--refert_num", 77], 2, ("1 or 5", "77")),
    "frames not 4n+1": (None, ["--frame_num", 80], 2, ("4n+1", "80", "77 and 81")),
    "no frames": (None, ["--frame_num", 0], 2, ("at least 1", "0")),
    "a segment of one frame": (None, ["--frame_num", 1], 2, ("at least 5 with refert_num 1, got 1",)),
    "a segment of its overlap": (None, ["--frame_num", 5, "--refert_num", 5], 2, ("at least 13", "got 5")),
    "overlaps that meet": (None, ["--frame_num", 9, "--refert_num", 5], 2, ("at least 13", "got 9")),
    "mask too short": (video("src_mask.mp4", 11), ["--replace_flag"], 2, ("src_mask.mp4 has 11 frames", "has 12")),
    "scene too long": (video("src_bg.mp4", 13), ["--replace_flag"], 2, ("src_bg.mp4 has 13 frames", "has 12")),
    "face too short": (video("src_face.mp4", 5, 64, 64), [], 2, ("src_face.mp4 has 5 frames",)),
    "face not square": (video("src_face.mp4", 12, 64, 48), [], 2, ("must be square, got 64x48",)),
    "mask of another size": (video("src_mask.mp4", 12, 64, 32), ["--replace_flag"], 2, ("64x32", "48x32")),
    "scene of another size": (video("src_bg.mp4", 12, 48, 48), ["--replace_flag"], 2, ("48x48", "48x32")),
    "poses of an odd size": (video("src_pose.mp4", 12, 40, 32), [], 2, ("width must be a multiple of 16", "40")),
    "another size": (None, ["--size", "1280*720"], 2, ("48*32", "1280*720", "leave --size out")),
    "poses that are none": (text("src_pose.mp4"), [], 4, ("src_pose.mp4",)),
    "a face that is cut off": (cut("src_face.mp4"), [], 4, ("src_face.mp4",)),
    "a mask of no bytes": (empty("src_mask.mp4"), ["--replace_flag"], 4, ("src_mask.mp4 is empty",)),
    "a reference that is none": (text("src_ref.png"), [], 4, ("src_ref.png",)),
    "an endless reference": (long_image, [], 2, ("20000x2", "crop")),
    "missing sound": (None, ["--audio", "{tmp}/none.wav"], 2, ("none.wav",)),
    "a silent film": (None, ["--audio", "{tmp}/silent.mp4"], 4, ("silent.mp4 has no sound",)),
    "an empty prompt": (None, ["--prompt", ""], 2, ("prompt is empty",)),
    "a prompt to extend": (None, ["--use_prompt_extend"], 2, ("prompt",)),
    "two experts": (None, ["--lora", "high={tmp}/wan2.2_style.safetensors"], 2, ("one network",)),
    "a LoRA of Wan2.2": (None, ["--lora", "{tmp}/wan2.2_style.safetensors"], 3, ("made for Wan2.2", "--force-lora")),
    "a LoRA of who knows what": (None, ["--lora", "{tmp}/style.safetensors"], 3, ("does not say", "--force-lora")),
    "a LoRA of another width": (None, ["--lora", "{tmp}/animate_wide.safetensors"], 3, ("another model",)),
    "the output over a source": (None, ["--save_file", "{folder}/src_pose.mp4"], 2, ("src_pose.mp4", "an input")),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_sentence(
    name: str, animate: Run, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, more, exit_code, words = BAD[name]
    folder = shutil.copytree(prepared, tmp_path / "process_results")
    (tmp_path / "text.txt").write_text("no media\n" * 50)
    shutil.copyfile(prepared / "src_bg.mp4", tmp_path / "silent.mp4")
    for file, width in (("wan2.2_style", 64), ("style", 64), ("animate_wide", 48)):
        lora(tmp_path / f"{file}.safetensors", width)
    if change is not None:
        change(folder)
    monkeypatch.setattr(wan_core.loading, "load_model", None)
    before = sorted(tmp_path.rglob("*"))
    result = animate(*(str(word).format(tmp=tmp_path, folder=folder) for word in more), folder=folder)
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    for word in words:
        assert word in " ".join(result.output.split()), result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_the_folder_is_needed(run: Run, checkpoint: Callable[[str], Path]) -> None:
    result = run("generate", "animate-14B", "--ckpt-dir", checkpoint("animate-14B"))
    assert result.exit_code == 2
    assert "--src-root-path" in result.output


@pytest.mark.parametrize("damage", ["missing", "cut off", "of another model"])
def test_a_relighting_lora_that_cannot_be_merged_is_named(
    damage: str, run: Run, checkpoint: Callable[[str], Path], prepared: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(checkpoint("animate-14B"), tmp_path / "model")
    file = model / "relighting_lora.ckpt"
    if damage == "missing":
        file.unlink()
    elif damage == "cut off":
        file.write_bytes(file.read_bytes()[:5000])
    else:
        torch.save({"state_dict": {f"blocks.0.ffn.0.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}}, file)
    words = ["generate", "animate-14B", "--ckpt-dir", model, "--src-root-path", prepared, "--replace-flag"]
    result = run(*words, "--use-relighting-lora", "--frame-num", 13)
    assert result.exit_code == 3, result.output
    assert "relighting_lora.ckpt" in result.output
    assert "Traceback" not in result.output


def test_weights_of_animate_are_no_image_to_video(run: Run, checkpoint: Callable[[str], Path], picture: Path) -> None:
    result = run(
        "generate", "i2v-14B-720P", "--ckpt-dir", checkpoint("animate-14B"), "--prompt", "p", "--image", picture
    )
    assert result.exit_code == 3, result.output
    assert "Wan-Animate" in result.output
