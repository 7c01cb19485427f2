"""Pictures become fixed latent frames: which, where, encoded how, and what the sampler leaves of them."""

from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch

from wan_core import RequestError
from wan_core.presets import get_preset
from wan_core.tasks import TI2VRequest
from wan_mi2v import MI2V_5B

from .mi2v_model import Model, colours, request


def test_each_image_is_encoded_on_its_own_in_one_call() -> None:
    model = Model()
    inputs = model.plan(pictures=colours(3))
    anchors = model.pipeline.preset.task.anchors(inputs, model.pipeline.components)
    assert model.vae.encoded == [(3, 3, 1, 32, 32)]
    for index in range(3):
        alone = model.vae.vae.encode(inputs.images[index : index + 1].unsqueeze(2))
        torch.testing.assert_close(anchors.latents[:, :, index : index + 1], alone, atol=1e-5, rtol=0)
    assert anchors.mask.tolist() == [[True, True, True, False]]


def test_many_large_images_are_encoded_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_core.tasks.ti2v._PIXELS_PER_CALL", 2 * 32 * 32)
    model = Model()
    inputs = model.plan(pictures=colours(3))
    grouped = model.pipeline.preset.task.anchors(inputs, model.pipeline.components)
    assert [shape[0] for shape in model.vae.encoded] == [2, 1]
    monkeypatch.undo()
    whole = model.pipeline.preset.task.anchors(inputs, model.pipeline.components)
    torch.testing.assert_close(grouped.latents, whole.latents, atol=1e-5, rtol=0)


def test_consecutive_images_are_encoded_as_one_clip() -> None:
    model = Model()
    inputs = model.plan(pictures=colours(9), joint=True)
    anchors = model.pipeline.preset.task.anchors(inputs, model.pipeline.components)
    assert model.vae.encoded == [(1, 3, 9, 32, 32)]
    assert anchors.mask.tolist() == [[True, True, True, False]]
    assert inputs.positions == (0, 1, 2)


def test_images_can_be_put_at_any_latent_frame() -> None:
    model = Model()
    inputs = model.plan(pictures=colours(2), at=(3, 1))
    anchors = model.pipeline.preset.task.anchors(inputs, model.pipeline.components)
    assert anchors.mask.tolist() == [[False, True, False, True]]
    leading = model.plan(pictures=colours(2))
    ordered = model.pipeline.preset.task.anchors(leading, model.pipeline.components).latents
    assert torch.equal(anchors.latents[:, :, 3], ordered[:, :, 0])
    assert torch.equal(anchors.latents[:, :, 1], ordered[:, :, 1])


@pytest.mark.parametrize("values", [{}, {"at": (2, 0)}, {"solver": "dpm++"}])
def test_the_sampler_returns_the_images_unchanged(values: dict[str, object]) -> None:
    model = Model()
    inputs = model.plan(pictures=colours(2), **values)
    latents = model.latents(inputs)
    anchors = model.pipeline.preset.task.anchors(inputs, model.pipeline.components)
    fixed = anchors.mask[0]
    assert torch.equal(latents[:, :, fixed], anchors.latents[:, :, fixed])
    assert not torch.equal(latents[:, :, ~fixed], anchors.latents[:, :, ~fixed])


def test_one_image_is_image_to_video(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    colours(1, (64, 48))[0].save(path)
    model = Model()
    several = model.latents(model.plan(images=(path,)))
    model.pipeline.preset = get_preset("tiny-ti2v")
    known = {name: getattr(request(), name) for name in ("prompt", "num_frames", "width", "height", "seed")}
    single = model.pipeline.plan(TI2VRequest(**known, num_inference_steps=2, image=path))
    assert torch.equal(several, model.latents(single))  # type: ignore[arg-type]


def test_a_video_of_images_only_loads_neither_text_encoder_nor_network() -> None:
    model = Model()
    inputs = model.plan(pictures=colours(4))
    frames = torch.cat(list(model.pipeline.stream(inputs)), dim=1)
    assert frames.shape[1] == 13
    assert model.log == []
    assert model.text.asked == []
    assert "nothing is generated" in inputs.notes[0]


def test_the_first_image_sets_the_size_within_the_area() -> None:
    spec = MI2V_5B.latent_spec
    wide, tall = colours(1, (400, 200))[0], colours(1, (200, 400))[0]
    asked = replace(request(width=1280, height=704, num_frames=121), guidance_scale=1.0)
    for pictures, size in (((wide, tall), (1312, 672)), ((tall, wide), (672, 1312))):
        inputs = MI2V_5B.plan(replace(asked, pictures=pictures), spec)
        assert (inputs.geometry.width, inputs.geometry.height) == size
        assert inputs.geometry.width * inputs.geometry.height <= 1280 * 704
        assert "another shape than the first" in inputs.notes[0]


def test_images_of_one_shape_give_no_note() -> None:
    assert Model().plan(pictures=(*colours(1, (40, 40)), *colours(1, (80, 84)))).notes == ()


def test_how_a_clip_is_read_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    inputs = Model().plan(clip=path, frames="0:1")
    assert inputs.notes[0].startswith(f"{path} does not say its colour matrix; BT.601 is taken")


@pytest.mark.parametrize(
    ("count", "frames", "fits"), [(1, 1, True), (4, 13, True), (5, 13, False), (2, 1, False), (5, 17, True)]
)
def test_there_are_at_most_as_many_images_as_latent_frames(count: int, frames: int, fits: bool) -> None:
    if fits:
        assert len(Model().plan(pictures=colours(count), num_frames=frames).positions) == count
        return
    with pytest.raises(RequestError, match=f"--frame-num {4 * count - 3}"):
        Model().plan(pictures=colours(count), num_frames=frames)


def test_the_plan_names_the_anchored_latent_frames() -> None:
    model = Model()
    plan = model.pipeline.preset.task.describe(model.plan(pictures=colours(9), joint=True))
    assert plan["pictures"] == 9
    assert plan["anchored_latent_frames"] == [0, 1, 2]


def test_another_tasks_request_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="MI2VRequest"):
        MI2V_5B.plan(TI2VRequest(prompt="p"))


def test_the_presets_differ_from_their_models_by_the_task_only() -> None:
    for name, base in (("mi2v-5B", "ti2v-5B"), ("tiny-mi2v", "tiny-ti2v")):
        ours, theirs = get_preset(name), get_preset(base)
        assert ours == replace(theirs, name=ours.name, summary=ours.summary, task=ours.task)
        assert ours.name == name
