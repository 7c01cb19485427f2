"""What is where during a video: networks, what they keep, and rotary tables."""

import weakref
from dataclasses import replace

import pytest
import torch

from wan_core.errors import ConfigError
from wan_core.memory import RunFacts
from wan_core.models import ContextCache
from wan_core.models.dit.rope import _TABLES
from wan_core.runtime import Between
from wan_core.tasks import GenerationRequest

from .tiny_model import Model, small


def test_what_an_expert_keeps_of_the_conditions_leaves_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[ContextCache] = weakref.WeakSet()
    before = ContextCache.__init__

    def noted(cache: ContextCache) -> None:
        before(cache)
        alive.add(cache)

    monkeypatch.setattr(ContextCache, "__init__", noted)
    model, filled = Model("tiny-moe"), list[int]()

    def watch(steps: object, phase: str) -> object:
        for step in steps:  # type: ignore[attr-defined]
            yield step
            filled.append(sum(cache.is_filled for cache in alive))

    model.pipeline.generate(GenerationRequest(**small(num_inference_steps=6, negative_prompt="n")), progress=watch)
    assert filled == [2] * 6
    assert model.log == ["high", "low"]


def test_rotary_tables_leave_with_the_video() -> None:
    model = Model("tiny-t2v")
    frames = model.pipeline.stream(model.pipeline.plan(GenerationRequest(**small())))
    next(frames)
    assert _TABLES._tables
    list(frames)
    assert not _TABLES._tables


def test_where_parts_are_is_decided_by_free_memory_before_any_is_read() -> None:
    model = Model("tiny-moe")
    pipeline = model.pipeline
    pipeline.run = run = RunFacts(preset=model.preset, dtype=torch.float32)
    inputs = pipeline.plan(GenerationRequest(**small()))

    def placed(free: int) -> dict[str, Between]:
        pipeline.place([inputs], free=free)
        return {name: part.between for name, part in pipeline._parts(pipeline.run or run).items()}

    assert set(placed(10**9).values()) == {Between.KEEP}
    few = placed(10**7)
    assert few["dit high"] is few["dit low"] is Between.DROP
    with pytest.raises(ConfigError, match=r"needs .* 1\.0 MB are free; take a smaller --size"):
        placed(10**6)
    pipeline.run = replace(pipeline.run, offload=False)
    with pytest.raises(ConfigError, match=r"with --offload_model False, .*; --offload_model True needs"):
        placed(10**7)
    assert model.log == []


@pytest.mark.parametrize(("offload", "expected"), [(True, ["high", "low"] * 3), (False, ["high", "low"])])
def test_of_several_videos_prompts_come_first_and_each_part_is_loaded_as_rarely_as_may_be(
    offload: bool, expected: list[str]
) -> None:
    model = Model("tiny-moe")
    pipeline = model.pipeline
    pipeline.run = RunFacts(preset=model.preset, dtype=torch.float32, offload=offload, always=frozenset({"vae"}))
    jobs = [pipeline.plan(GenerationRequest(**small(prompt=prompt, negative_prompt="n"))) for prompt in "abc"]
    pipeline.place(jobs)
    pipeline.encode_prompts(jobs)
    assert model.text.asked == ["a", "n", "b", "c"]
    assert model.log == []
    for inputs in jobs:
        list(pipeline.stream(inputs))
    assert model.log == expected
    assert pipeline.components.text_encoder.loads == pipeline.components.vae.loads == 1
    assert len(model.text.asked) == 4
