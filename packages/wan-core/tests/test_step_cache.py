"""TeaCache: which steps are skipped, what a skipped step gives, and who may not skip any."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from wan_core.errors import ConfigError, RequestError
from wan_core.loading import load_pipeline
from wan_core.models import WanDiT
from wan_core.pipeline import SamplingOptions
from wan_core.presets import get_preset
from wan_core.run_options import check_tea_cache
from wan_core.runtime import prepare_model, step_cached
from wan_core.sampling import Anchors, StepCache, StepCacheRule, StepCaches, make_solver
from wan_core.tasks import GenerationRequest

from .dit_networks import CONFIG, conditions, latents, network
from .tiny_model import Model, small

ALWAYS = StepCacheRule((0.0,), 1e-6)
"""Skips every step that may be skipped: nothing is ever estimated to change."""


def decisions(rule: StepCacheRule, embeddings: list[float], num_steps: int | None = None) -> list[bool]:
    cache = StepCache(rule, num_steps or len(embeddings))
    return [cache.skips(torch.full((1, 1, 6, 4), float(value))) for value in embeddings]


def test_steps_are_skipped_while_the_summed_estimate_stays_below_the_threshold() -> None:
    # Changes relative to the step before: 1/8, 1/9, 1/10, 1/11, 1/12.
    found = decisions(StepCacheRule((1.0, 0.0), 0.25), [8, 9, 10, 11, 12, 13])
    assert found == [False, True, True, False, True, False]


def test_the_polynomial_has_its_highest_power_first() -> None:
    assert StepCacheRule((2.0, -3.0, 0.5), 1.0).estimate(4.0) == 2 * 16 - 3 * 4 + 0.5


def test_first_and_last_step_are_computed_whatever_the_threshold() -> None:
    assert decisions(ALWAYS, [1.0] * 5) == [False, True, True, True, False]
    assert decisions(ALWAYS, [1.0] * 6, num_steps=3) == [False, True, False] * 2  # two runs in a row
    assert decisions(ALWAYS, [1.0]) == [False]


def test_an_embedding_of_zeros_is_computed() -> None:
    assert decisions(StepCacheRule((1.0, 0.0), 10.0), [0.0, 0.0, 0.0]) == [False, False, False]


def test_the_counts_that_the_docs_tell() -> None:
    pipeline = load_pipeline("tiny-t2v")
    embed = pipeline.components.dit.module().time_rows  # type: ignore[union-attr]
    rows = [embed(t.reshape(1, 1), (1,)).blocks for t in make_solver("unipc", 20, flow_shift=3.0).timesteps]
    counts = {}
    for threshold in (0.05, 0.1, 0.2, 0.3):
        cache = StepCache(StepCacheRule(pipeline.preset.tea_cache, threshold), 20)
        counts[threshold] = 2 * sum(cache.skips(row) for row in rows)
    assert counts == {0.05: 8, 0.1: 20, 0.2: 26, 0.3: 30}


@pytest.mark.parametrize("threshold", [0.0, -1.0, math.nan, math.inf])
def test_impossible_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="positive"):
        StepCacheRule((1.0,), threshold)
    with pytest.raises(ConfigError, match="coefficients"):
        StepCacheRule((), 0.1)


def cached_network(inference: bool = True) -> WanDiT:
    model = network()
    if inference:
        prepare_model(model, inference=True, step_cache=True)
    return model


def forward(model: WanDiT, cache: StepCache, noisy: Tensor, timestep: float = 500.0, batch: int = 1) -> Tensor:
    with step_cached(model, cache):
        return model(noisy, torch.full((batch,), timestep), conditions(batch=batch))


def test_a_skipped_step_adds_the_change_of_the_last_computed_one() -> None:
    model, plain = cached_network(), network()
    cache = StepCache(ALWAYS, 9)
    computed = forward(model, cache, latents())
    assert torch.allclose(computed, plain(latents(), torch.tensor([500.0]), conditions()), atol=1e-5)
    assert torch.allclose(forward(model, cache, latents()), computed, atol=1e-5)
    assert (cache.computed, cache.skipped) == (1, 1)
    # Other latents: the embedded tokens are theirs, only what the blocks add is old.
    sequence = plain.embed_latents(2 * latents(), conditions())
    first = plain.embed_latents(latents(), conditions())
    time = plain.embed_timesteps(torch.tensor([500.0]), first, conditions())
    change = plain.run_blocks(first, time, conditions()) - plain.embed_latents(latents(), conditions()).tokens
    wanted = plain.project_out(sequence.tokens + change, sequence, time)
    assert torch.allclose(forward(model, cache, 2 * latents()), wanted, atol=1e-4)


def test_no_block_runs_in_a_skipped_step_and_all_run_without_a_cache() -> None:
    model, ran = cached_network(), []
    for block in model.blocks:
        block.register_forward_hook(lambda *_: ran.append(1))
    cache = StepCache(ALWAYS, 9)
    forward(model, cache, latents())
    forward(model, cache, latents())
    assert len(ran) == CONFIG.num_layers
    model(latents(), torch.tensor([500.0]), conditions())
    assert len(ran) == 2 * CONFIG.num_layers
    assert [*model.state_dict()] == [*network().state_dict()]


def test_a_batch_of_both_branches_is_one_cache() -> None:
    model, cache = cached_network(), StepCache(ALWAYS, 9)
    both = torch.cat([latents(), latents() * 2])
    first = forward(model, cache, both, batch=2)
    assert torch.allclose(forward(model, cache, both, batch=2), first, atol=1e-5)


def test_conditions_have_caches_of_their_own() -> None:
    caches, positive, negative = StepCaches(ALWAYS, 9), conditions(), conditions()
    assert caches.of(positive) is caches.of(positive)
    assert caches.of(positive) is not caches.of(negative)


def test_networks_that_cannot_skip_are_refused() -> None:
    class Busy(WanDiT):
        def after_block(self, index: int, tokens: Tensor, sequence: object, inputs: object) -> Tensor:
            return tokens

    with pytest.raises(ConfigError, match="Busy works between"):
        prepare_model(Busy(CONFIG), inference=True, step_cache=True)
    with pytest.raises(ConfigError, match="without a step cache"):
        forward(cached_network(inference=False), StepCache(ALWAYS, 2), latents())
    with pytest.raises(ConfigError, match="trained"):
        prepare_model(network(), inference=False, step_cache=True)
    blocks = cached_network().blocks
    blocks.cache = StepCache(ALWAYS, 2)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="remembers"):
        next(iter(blocks))(latents(), latents(), None, None, None, memory=SimpleNamespace())


def cached_model(name: str) -> Model:
    model = Model(name)
    model.pipeline.preset = replace(model.preset, tea_cache=(0.0,))
    model.pipeline.options = SamplingOptions(tea_cache=0.1)
    placed = model.pipeline.components.dit
    for each in (placed.high, placed.low) if model.preset.has_experts else (placed,):  # type: ignore[union-attr]
        prepare_model(each.module(), inference=True, step_cache=True)
    return model


def test_each_branch_skips_and_the_counts_are_told() -> None:
    model, told = cached_model("tiny-t2v"), list[str]()
    inputs = model.pipeline.plan(GenerationRequest(**small(num_inference_steps=5, negative_prompt="n")))
    list(model.pipeline.stream(inputs, log=told.append))
    assert told == ["tea-cache: 6 of 10 network evaluations left out their blocks"]


def test_two_experts_and_given_frames_are_refused() -> None:
    model = cached_model("tiny-moe")
    with pytest.raises(ConfigError, match="one network only"):
        model.pipeline.generate(GenerationRequest(**small()))
    model = cached_model("tiny-t2v")
    condition = model.preset.task.condition

    def anchored(*arguments: object) -> object:
        made = condition(*arguments)  # type: ignore[arg-type]
        shape = made.latent_shape
        return replace(made, anchors=Anchors.leading(torch.zeros(*shape[:2], 1, *shape[3:]), shape[2]))

    with pytest.raises(ConfigError, match="given frames"):
        model.pipeline.denoise(
            anchored(model.pipeline.plan(GenerationRequest(**small())), model.pipeline.components, None),  # type: ignore[arg-type]
            model.pipeline.plan(GenerationRequest(**small())).settings,
            0,
        )


def test_models_without_coefficients_are_refused_and_told_of_those_with_them() -> None:
    with pytest.raises(RequestError, match=r"ti2v-5B does not have; leave it out, or take .*i2v-14B-480P"):
        check_tea_cache(get_preset("ti2v-5B"), 0.3)
    with pytest.raises(RequestError, match="above 0"):
        check_tea_cache(get_preset("t2v-1.3B"), 0.0)
    check_tea_cache(get_preset("t2v-1.3B"), 0.3)
    check_tea_cache(get_preset("ti2v-5B"), None)
    assert not get_preset("flf2v-14B").tea_cache  # made from i2v, whose numbers are not its own
