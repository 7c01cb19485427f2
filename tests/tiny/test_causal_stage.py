"""Stage "causal": the recipe of the network that goes on frame by frame."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfforcing_unianimate import CausalDiT
from tools.tiny import causal_stage, family
from tools.tiny.detect import detect
from tools.tiny.dit_stage import PlainAttention, use_plain_attention
from tools.tiny.scores import held_back_clips
from wan_core.loading import load_pipeline
from wan_core.media import to_uint8
from wan_core.models import InnerAttention
from wan_core.training import Cache, NoiseLevels, write_cache

CHANNELS = family.GEOMETRY.spec.channels


def test_plain_attention_keeps_to_ranges_of_keys() -> None:
    query, key, value = torch.randn(3, 2, 16, 3, 8).unbind(0)
    ranges = causal_stage.BLOCKS.teacher_forcing_mask(4, 2)
    expected = InnerAttention()(query, key, value, mask=ranges)
    torch.testing.assert_close(PlainAttention()(query, key, value, mask=ranges), expected)


def test_it_begins_with_the_bundled_weights_and_without_poses() -> None:
    dit, bundled = causal_stage.new_causal_dit(), family.load_bundled("dit").state_dict()
    assert all(torch.equal(value, bundled[name]) for name, value in dit.state_dict().items() if name in bundled)
    assert dit.state_dict().keys() - bundled.keys() == {"pose_proj.weight", "pose_proj.bias"}
    assert not dit.pose_proj.weight.any()


def test_a_step_has_a_finite_loss_and_a_rollout_depends_on_the_caption(tmp_path: Path) -> None:
    _, encoder = family.load_frozen()
    shape = (CHANNELS, 5, 8, 8)
    clips = Cache(write_cache(tmp_path, 20, lambda _: {"latents": torch.randn(shape)}, {}))
    dit = CausalDiT(replace(causal_stage.TINY_SFU.dit, num_layers=1))
    use_plain_attention(dit)
    stage = causal_stage.CausalStage(dit, encoder, clips, NoiseLevels(), torch.ones(CHANNELS), batch=2)
    loss = stage.loss(0, 0)
    loss.backward()
    assert loss.isfinite()
    assert dit.blocks[0].self_attn.q.weight.grad.abs().sum() > 0
    noise, empty = torch.randn(1, CHANNELS, 3, 8, 8), causal_stage.text_states(encoder, [""])
    first, second = (
        causal_stage.rollout(dit.eval(), noise, (causal_stage.text_states(encoder, [text]), empty))
        for text in ("a red circle moves to the right", "a blue square spins")
    )
    assert first.shape == noise.shape
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_the_bundled_network_shows_what_is_asked_for_and_goes_on() -> None:
    pipeline = load_pipeline("tiny-sfu")
    clips, right = held_back_clips(4), 0
    for clip in clips:
        request = pipeline.preset.task.request_type(prompt=clip.caption, seed=1, num_frames=25)
        frames = to_uint8(pipeline.generate(request).frames).permute(0, 2, 3, 1).numpy()
        assert frames.shape == (25, 64, 64, 3)
        right += detect(frames[:17]).agrees(clip.combination)["all"]
        assert detect(frames[8:]).background == clip.combination.background
    assert right >= 3, "87.5 % of the prompts come out right"
