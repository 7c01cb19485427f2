"""What the DiT promises: batches, timesteps, caches, gradients, precision, refusals."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wan_core.errors import RequestError
from wan_core.models import ContextCache, DiTInputs, WanDiT, WanDiTConfig
from wan_core.runtime import prepare_model

from .dit_networks import BOTH, CONFIG, IMAGE, conditions, latents, network, noise, prepared

PLAIN = replace(CONFIG, qk_norm=False, cross_attn_norm=False, num_heads=3, patch_size=(3, 1, 2))
UNNORMED = replace(CONFIG, qk_norm=False, cross_attn_norm=False)
CONFIGS = pytest.mark.parametrize("config", [CONFIG, IMAGE], ids=["text", "image"])


def velocity(model: WanDiT, timesteps: Tensor, inputs: DiTInputs, noisy: Tensor | None = None) -> Tensor:
    noisy = latents(inputs.context.shape[0]) if noisy is None else noisy
    with torch.no_grad():
        return model(noisy, timesteps, inputs)


def assert_close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=1e-5)


def sample(inputs: DiTInputs, index: int) -> DiTInputs:
    fields = ("context", "image_context", "extra_context", "channel_concat", "add_condition")
    parts = {name: getattr(inputs, name) for name in fields}
    return DiTInputs(**{name: None if part is None else part[index : index + 1] for name, part in parts.items()})


@BOTH
@CONFIGS
@pytest.mark.parametrize("per_frame", [False, True])
def test_a_batch_of_two_is_twice_a_batch_of_one(
    built: Callable[..., WanDiT], config: WanDiTConfig, per_frame: bool
) -> None:
    model, inputs, noisy = built(config), conditions(config, batch=2), latents(2)
    timesteps = torch.tensor([[0.0, 700.0, 700.0], [250.0, 250.0, 9.0]]) if per_frame else torch.tensor([900.0, 14.0])
    both = velocity(model, timesteps, inputs, noisy)
    for index in range(2):
        one = velocity(model, timesteps[index : index + 1], sample(inputs, index), noisy[index : index + 1])
        assert_close(both[index : index + 1], one)


@BOTH
@pytest.mark.parametrize("timestep", [torch.tensor([417]), torch.tensor([417.0]), torch.tensor([[417.0]])])
def test_one_timestep_is_the_same_timestep_for_every_frame(built: Callable[..., WanDiT], timestep: Tensor) -> None:
    model, inputs = built(), conditions()
    assert_close(velocity(model, timestep, inputs), velocity(model, torch.full((1, 3), 417.0), inputs))


@BOTH
def test_a_frame_patch_takes_the_timestep_of_its_first_frame(built: Callable[..., WanDiT]) -> None:
    model, inputs = built(PLAIN), conditions(PLAIN, frames=6, add_condition=None)
    timesteps = torch.tensor([[0.0, 0.0, 0.0, 80.0, 80.0, 80.0]])
    frames = velocity(model, timesteps, inputs, latents(1, 6))
    assert frames.shape == (1, 3, 6, 4, 6)
    assert not torch.equal(frames, velocity(model, torch.tensor([80.0]), inputs, latents(1, 6)))


@CONFIGS
def test_every_weight_influences_the_velocity(config: WanDiTConfig) -> None:
    model, inputs, noisy = network(config), conditions(config), latents()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model(noisy, torch.tensor([300.0]), inputs).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


@pytest.mark.parametrize("config", [CONFIG, IMAGE, UNNORMED], ids=["text", "image", "unnormed"])
@pytest.mark.parametrize("batch", [1, 2])
def test_prepared_for_inference_the_result_is_the_same(config: WanDiTConfig, batch: int) -> None:
    plain, fast, inputs, noisy = network(config), prepared(config), conditions(config, batch), latents(batch)
    for timesteps in (torch.full((batch,), 300.0), torch.tensor([[0.0, 300.0, 5.0]]).expand(batch, 3)):
        assert_close(plain(noisy, timesteps, inputs), velocity(fast, timesteps, inputs, noisy))


@BOTH
def test_nothing_that_is_handed_in_changes(built: Callable[..., WanDiT]) -> None:
    model, inputs, noisy = built(IMAGE), conditions(IMAGE), latents()
    timesteps = torch.tensor([[0.0, 300.0, 5.0]])
    tensors = [noisy, timesteps, *(v for v in vars(inputs).values() if v is not None), *model.state_dict().values()]
    before = [tensor.clone() for tensor in tensors]
    first = velocity(model, timesteps, inputs, noisy)
    assert all(map(torch.equal, before, tensors))
    assert torch.equal(first, velocity(model, timesteps, inputs, noisy))


def test_gradients_flow_to_latents_and_conditions() -> None:
    model, noisy = network(IMAGE), latents().requires_grad_()
    inputs = conditions(IMAGE)
    tensors = [value.requires_grad_() for value in vars(inputs).values() if isinstance(value, Tensor)]
    model(noisy, torch.tensor([300.0]), inputs).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().max() > 0 for tensor in [noisy, *tensors])


def test_gradients_of_recomputed_blocks_are_the_same() -> None:
    gradients = []
    for recompute in (False, True):
        model = network().requires_grad_(True).train()
        names = list(model.state_dict())
        if recompute:
            prepare_model(model, inference=False, recompute=True)
        assert list(model.state_dict()) == names
        model(latents(), torch.tensor([300.0]), conditions()).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert_close(plain, checkpointed)


# -- the context and its cache -----------------------------------------------------------------------------------------


@BOTH
@CONFIGS
def test_a_cache_changes_nothing(built: Callable[..., WanDiT], config: WanDiTConfig) -> None:
    model, inputs = built(config), conditions(config)
    cached = inputs.with_cache()
    for timestep in (900.0, 300.0, 20.0):
        timesteps = torch.tensor([timestep])
        assert torch.equal(velocity(model, timesteps, inputs), velocity(model, timesteps, cached))
    assert cached.context_cache is not None
    assert cached.context_cache.is_filled


def count_calls(module: torch.nn.Module) -> Callable[[], int]:
    calls: list[None] = []
    module.register_forward_hook(lambda *_: calls.append(None))
    return lambda: len(calls)


@BOTH
def test_a_cache_saves_the_text_of_later_steps(built: Callable[..., WanDiT]) -> None:
    model, inputs = built(), conditions().with_cache()
    texts, keys = count_calls(model.text_embedding), count_calls(model.blocks[1].cross_attn.k)
    for _ in range(3):
        velocity(model, torch.tensor([5.0]), inputs)
    assert (texts(), keys()) == (1, 1)


@BOTH
def test_a_cache_serves_one_network_and_one_text(built: Callable[..., WanDiT]) -> None:
    first, second = built(), built().float()
    second.text_embedding[0].weight.add_(0.5)
    inputs, timesteps = conditions().with_cache(), torch.tensor([5.0])
    for model in (first, second, first):
        fresh = velocity(model, timesteps, replace(inputs, context_cache=None))
        assert torch.equal(velocity(model, timesteps, inputs), fresh)
    other = replace(inputs, context=inputs.context + 1)
    assert torch.equal(velocity(first, timesteps, other), velocity(first, timesteps, other.with_cache()))


@BOTH
def test_a_cache_does_not_keep_its_network_alive(built: Callable[..., WanDiT]) -> None:
    model, inputs = built(), conditions().with_cache()
    velocity(model, torch.tensor([5.0]), inputs)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_a_training_step_leaves_the_cache_alone() -> None:
    model, inputs = network().requires_grad_(True), conditions().with_cache()
    for _ in range(2):
        model(latents(), torch.tensor([5.0]), inputs).sum().backward()
    assert inputs.context_cache is not None
    assert not inputs.context_cache.is_filled


@BOTH
def test_zero_rows_are_what_a_short_text_gets(built: Callable[..., WanDiT]) -> None:
    model, inputs = built(), conditions()
    padded = torch.nn.functional.pad(inputs.context, (0, 0, 0, 2))
    timesteps = torch.tensor([5.0])
    assert torch.equal(velocity(model, timesteps, inputs), velocity(model, timesteps, replace(inputs, context=padded)))


def test_extra_context_joins_behind_the_embedded_text() -> None:
    model, inputs = network(), conditions()
    text, image = model.embed_context(inputs)
    assert image is None
    assert torch.equal(text[:, -2:], inputs.extra_context)
    assert text.shape == (1, CONFIG.text_len + 2, CONFIG.dim)


def test_image_tokens_beyond_the_branch_join_the_text() -> None:
    model, inputs = network(IMAGE), conditions(IMAGE, image_context=noise(1, 6, 7))
    text, image = model.embed_context(inputs)
    assert image is not None
    assert image.shape[1] == IMAGE.image_tokens
    assert text.shape[1] == 2 + IMAGE.text_len + 2


# -- inputs ------------------------------------------------------------------------------------------------------------


def test_frames_cuts_what_has_frames_and_keeps_the_cache() -> None:
    inputs = conditions(IMAGE, frames=4).with_cache()
    part = inputs.frames(1, 3)
    assert torch.equal(part.channel_concat, inputs.channel_concat[:, :, 1:3])
    assert torch.equal(part.add_condition, inputs.add_condition[:, 1:3])
    assert part.context is inputs.context
    assert part.context_cache is inputs.context_cache


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 5)])
def test_frames_that_are_not_there_are_refused(start: int, stop: int) -> None:
    with pytest.raises(RequestError, match="latent frames 0 to 4"):
        conditions(frames=4).frames(start, stop)


@BOTH
def test_batch_joins_and_pads_texts(built: Callable[..., WanDiT]) -> None:
    short, long = conditions(), conditions(context=noise(1, 5, 6)).with_cache()
    joint = DiTInputs.batch([short, long])
    assert joint.context.shape == (2, 5, 6)
    assert not joint.context[0, 3:].any()
    assert joint.add_condition.shape[0] == 2
    assert joint.context_cache is not long.context_cache
    timesteps = torch.tensor([30.0, 30.0])
    both = velocity(built(), timesteps, joint, torch.cat([latents(), latents()]))
    assert_close(both[:1], velocity(built(), timesteps[:1], short))
    assert_close(both[1:], velocity(built(), timesteps[:1], replace(long, context_cache=ContextCache())))


def test_batch_refuses_parts_that_differ_in_kind() -> None:
    with pytest.raises(RequestError, match="extra_context must be given for all"):
        DiTInputs.batch([conditions(), conditions(extra_context=None)])
    with pytest.raises(RequestError, match="add_condition must have one shape"):
        DiTInputs.batch([conditions(), conditions(frames=4)])


# -- precision ---------------------------------------------------------------------------------------------------------


@BOTH
def test_bfloat16_stays_near_float32_and_keeps_its_islands(built: Callable[..., WanDiT]) -> None:
    for config, timesteps in ((CONFIG, torch.tensor([613.0])), (IMAGE, torch.tensor([[0.0, 613.0, 613.0]]))):
        exact, inputs = built(config), conditions(config)
        model = built(config)
        for name, parameter in model.named_parameters():
            if not any(f".{entry}." in f".{name}." for entry in model.float32_modules):
                parameter.data = parameter.data.bfloat16()
        rounded, reference = velocity(model, timesteps, inputs), velocity(exact, timesteps, inputs)
        assert rounded.dtype == torch.float32
        assert (rounded - reference).norm() < 0.02 * reference.norm()


@BOTH
def test_a_network_cast_as_a_whole_still_runs(built: Callable[..., WanDiT]) -> None:
    out = velocity(built(IMAGE).bfloat16(), torch.tensor([613.0]), conditions(IMAGE))
    assert out.dtype == torch.float32
    assert out.isfinite().all()


def test_timesteps_are_embedded_beyond_float32() -> None:
    model = network()
    rows = model.time_rows(torch.tensor([[999], [1000]]), (18,)).head
    assert not torch.equal(rows[0], rows[1])
    assert rows.dtype == torch.float32


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latents": noise(1, 4, 3, 4, 6)}, "takes 3 channels"),
        ({"latents": noise(3, 3, 4, 6)}, "takes 3 channels"),
        ({"latents": noise(1, 3, 3, 5, 6)}, "multiples of"),
        ({"timesteps": torch.tensor([1.0, 2.0])}, r"\[1\] or \[1, 3\]"),
        ({"timesteps": torch.tensor(1.0)}, r"\[1\] or \[1, 3\]"),
        ({"context": noise(1, 6, 6)}, "up to 5, 6"),
        ({"context": noise(1, 3, 5)}, "up to 5, 6"),
        ({"extra_context": noise(1, 2, 6)}, "extra_context must be"),
        ({"add_condition": noise(1, 3, 5, 24)}, "add_condition must be"),
        ({"channel_concat": noise(1, 2, 2, 4, 6)}, "channel_concat must differ"),
        ({"image_context": noise(1, 4, 7)}, "image_context must be given exactly"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Tensor], words: str) -> None:
    noisy, timesteps = change.pop("latents", latents()), change.pop("timesteps", torch.tensor([1.0]))
    with pytest.raises(RequestError, match=words):
        network()(noisy, timesteps, conditions(**change))


def test_an_image_branch_wants_its_image() -> None:
    for image in (None, noise(1, 3, 7), noise(1, 4, 8)):
        with pytest.raises(RequestError, match="image_context"):
            network(IMAGE)(latents(), torch.tensor([1.0]), conditions(IMAGE, image_context=image))


def test_inputs_of_another_network_are_refused() -> None:
    class Narrow(WanDiT):
        inputs_type = type("OwnInputs", (DiTInputs,), {})

    with pytest.raises(TypeError, match="OwnInputs"):
        network(kind=Narrow)(latents(), torch.tensor([1.0]), conditions())


@BOTH
@pytest.mark.parametrize("size", [(1, 2, 2), (1, 6, 2), (2, 2, 10)])
def test_the_smallest_and_uneven_grids_work(built: Callable[..., WanDiT], size: tuple[int, int, int]) -> None:
    noisy = noise(1, 3, *size)
    out = velocity(built(), torch.tensor([5.0]), DiTInputs(context=noise(1, 1, 6)), noisy)
    assert out.shape == noisy.shape
    assert out.isfinite().all()
