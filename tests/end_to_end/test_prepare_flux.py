"""``wan prepare-animate --use_flux``: pictures edited by FLUX.1 Kontext, in the real layout, and what they are for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.animate_models import HEIGHT, WIDTH, person, small_flux, write_flux, write_frames, write_models
from wan_core.animate import flux, prepare
from wan_core.media import load_image, read_provenance

Run = Callable[..., Result]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return write_models(tmp_path / "process_checkpoint")


@pytest.fixture
def ready(run: Run, models: Path) -> Run:
    """Bring the motion of a person on six frames to a reference, into ``out``; later words win."""
    write_frames(Path("video.mp4"), [person(22 + 3 * k, 38 + k) for k in range(6)])
    Image.fromarray(person(36, 34, width=80, height=88)).save("image.png")

    def invoke(*more: object) -> Result:
        words = ["--ckpt_path", models, "--video_path", "video.mp4", "--refer_path", "image.png", "--save_path", "out"]
        return run("prepare-animate", *words, "--resolution_area", WIDTH, HEIGHT, "--fps", -1, "--retarget_flag", *more)

    return invoke


def names() -> list[str]:
    return sorted(path.name for path in Path("out").iterdir())


@pytest.fixture
def pipeline(models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The released pipeline's parts, drawing one colour, at a thousandth of the usual area."""
    kind = pytest.importorskip("diffusers").FluxKontextPipeline
    monkeypatch.setattr(flux, "NUM_STEPS", 1)
    monkeypatch.setattr(kind, "__call__", small_flux(kind.__call__))
    folder = write_flux(models / "FLUX.1-Kontext-dev")
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_out.weight"].zero_()
    tensors["decoder.conv_out.bias"].copy_(torch.tensor([1.0, -1.0, -1.0]))  # red, where somebody is found
    save_file(tensors, weights, {"format": "pt"})
    return folder


@pytest.mark.slow
def test_pictures_are_edited_by_a_pipeline_in_the_real_layout(ready: Run, pipeline: Path) -> None:
    words = ["--retarget_flag", "--use_flux", "--seed", 7]
    result = ready(*words)
    assert result.exit_code == 0, result.output
    assert {"refer_edit.png", "tpl_edit.png", "src_pose.mp4"} < set(names())
    edited = np.asarray(load_image("out/tpl_edit.png"))
    assert edited.shape == (HEIGHT, WIDTH, 3)
    assert (edited[HEIGHT // 2, WIDTH // 2] == (255, 0, 0)).all()
    record = read_provenance("out/tpl_edit.png")
    assert "flux" in record.record["weights"]
    assert record.settings["seed"] == 7
    before = [Path("out", name).read_bytes() for name in names()]
    assert ready(*words).exit_code == 0
    assert [Path("out", name).read_bytes() for name in names()] == before


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["nobody is drawn", "a part is cut off"])
def test_a_pipeline_that_draws_nobody_or_is_damaged_is_told(ready: Run, pipeline: Path, damage: str) -> None:
    weights = pipeline / "vae/diffusion_pytorch_model.safetensors"
    if damage == "nobody is drawn":
        tensors = load_file(weights)
        tensors["decoder.conv_out.bias"].zero_()
        save_file(tensors, weights, {"format": "pt"})
    else:
        weights.write_bytes(weights.read_bytes()[:500])
    result = ready("--retarget_flag", "--use_flux")
    said = {
        "nobody is drawn": (4, "no person was found on the edited picture out/tpl_edit.png"),
        "a part is cut off": (3, "FLUX.1-Kontext-dev cannot be read"),
    }
    assert result.exit_code == said[damage][0], result.output
    assert said[damage][1] in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert "src_pose.mp4" not in names()


@pytest.mark.slow
def test_edited_pictures_say_the_proportions(ready: Run, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    folder = models / "FLUX.1-Kontext-dev"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "FluxKontextPipeline"}')
    edits: list[tuple[tuple[int, int], str, int]] = []

    class Editor:
        def __init__(self, *given: object) -> None:
            pass

        def edit(self, image: Image.Image, prompt: str, seed: int) -> Image.Image:
            edits.append((image.size, prompt, seed))
            return Image.fromarray(person(50, 50, width=100, height=130))

    monkeypatch.setattr(prepare, "PoseEditor", Editor)
    result = ready("--retarget_flag", "--use_flux", "--seed", 7)
    assert result.exit_code == 0, result.output
    assert {"refer_edit.png", "tpl_edit.png"} < set(names())
    assert [(size, seed) for size, _, seed in edits] == [((64, 80), 7), ((WIDTH, HEIGHT), 7)]
    assert all("arms hanging straight down" in prompt and "both feet" in prompt for _, prompt, _ in edits)
    assert load_image("out/refer_edit.png").size == (64, 80)
    assert ready("--retarget_flag", "--use_flux", "--seed", 7).exit_code == 0
    assert len(edits) == 2
