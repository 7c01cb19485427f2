"""Both objectives learn, go on bit for bit, and reach the weights that they claim to train."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pi3 import Pi3
from poze.adapter import Pi3FeatureAdapter, load_adapter
from poze.finetune import FinetuneSettings, FlowStage, RolloutStage, Stage, known_seed, run_finetuning
from poze.network import GuidedNetwork, parse_trained
from poze.objectives import Supervision, check_point_size, point_loss
from poze.presets import TINY_POZE
from wan_core import ConfigError, RequestError
from wan_core.models import DiTInputs, VideoVAE, WanDiT
from wan_core.sampling import Anchors
from wan_core.tasks import Conditioning, TI2VRequest
from wan_core.training import LoRASettings, ShuffledBatches, trained_tensors

MakeStage = Callable[[GuidedNetwork], Stage]


def quiet(text: str) -> None:
    """Hear nothing."""


def flow_stage(network: GuidedNetwork, settings: FinetuneSettings | None = None) -> FlowStage:
    """Two examples of one bucket."""
    generator = torch.Generator().manual_seed(5)
    rows = [
        {
            "latents": torch.randn(4, 3, 4, 4, generator=generator),
            "context": torch.randn(3 + number, 8, generator=generator),
            "empty": torch.zeros(1, 8),
            "tokens": torch.randn(4, 48, generator=generator),
            "grid": torch.tensor([2, 2]),
        }
        for number in range(2)
    ]
    settings = settings or FinetuneSettings(objective="flow", amp=False, batch_size=2)
    return FlowStage(network, rows, ShuffledBatches([0, 0], settings.batch_size, 0), settings)


@pytest.fixture
def rollout_stage(vae: VideoVAE, pi3: Pi3) -> Callable[..., RolloutStage]:
    """One picture, nine frames of 32x32, three steps, guided twice."""

    def make(network: GuidedNetwork, supervision: Supervision | None = None) -> RolloutStage:
        generator = torch.Generator().manual_seed(6)
        video = (torch.rand(3, 9, 32, 32, generator=generator) - 0.5) * 0.2
        return RolloutStage(
            network=network,
            vae=vae,
            pi3=pi3,
            conditioning=Conditioning(
                positive=DiTInputs(context=torch.randn(1, 3, 8, generator=generator)),
                negative=DiTInputs(context=torch.zeros(1, 2, 8)),
                latent_shape=(1, 4, 3, 4, 4),
                anchors=Anchors.leading(torch.randn(1, 4, 1, 4, 4, generator=generator), 3),
            ),
            sampling=TI2VRequest(prompt="p", num_inference_steps=3, flow_shift=3.0, guidance_scale=2.0).sampling(
                TINY_POZE.sampling
            ),
            supervision=supervision or Supervision(video=video),
            tokens=torch.randn(1, 4, 48, generator=generator),
            grid=(2, 2),
            amp=False,
        )

    return make


def loss_at(stage: Stage, seeds: range) -> float:
    """The mean loss over some seeds."""
    values = []
    for seed in seeds:
        torch.manual_seed(seed)
        values.append(stage.loss(0, 0).item())
    return sum(values) / len(values)


def test_flow_matching_overfits(network: GuidedNetwork, tmp_path: Path) -> None:
    stage = flow_stage(network)
    before = loss_at(stage, range(8))
    run_finetuning(network, stage, replace(stage.settings, steps=25, lr=1e-2), tmp_path, say=quiet)
    assert loss_at(stage, range(8)) < 0.7 * before


def test_the_whole_chain_overfits(
    network: GuidedNetwork, rollout_stage: Callable[..., RolloutStage], tmp_path: Path
) -> None:
    stage = rollout_stage(network)
    before = loss_at(stage, range(2))
    run_finetuning(network, stage, FinetuneSettings(amp=False, steps=6, lr=1e-2), tmp_path, say=quiet)
    assert loss_at(stage, range(2)) < 0.9 * before


@pytest.mark.parametrize("objective", ["flow", "rollout"])
def test_a_run_goes_on_bit_for_bit(
    objective: str,
    dit: WanDiT,
    adapter: Pi3FeatureAdapter,
    rollout_stage: Callable[..., RolloutStage],
    tmp_path: Path,
) -> None:
    settings = FinetuneSettings(objective=objective, amp=False, lr=1e-3, average=0.9, seed=7, batch_size=1)
    start = {"dit": dit.state_dict(), "adapter": adapter.state_dict()}
    start = {name: {key: value.clone() for key, value in state.items()} for name, state in start.items()}

    def run(folder: Path, *steps: int) -> dict[str, Tensor]:
        for count in steps:  # each in a new process, as far as the run can tell
            network = GuidedNetwork(dit, adapter, {"wan", "adapter"})
            dit.load_state_dict(start["dit"])
            adapter.load_state_dict(start["adapter"])
            stage = flow_stage(network, settings) if objective == "flow" else rollout_stage(network)
            run_finetuning(network, stage, replace(settings, steps=count), folder, say=quiet)
        return {name: value.detach().clone() for name, value in trained_tensors(network).items()}

    whole, halves = run(tmp_path / "whole", 4), run(tmp_path / "halves", 2, 4)
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert known_seed(tmp_path / "whole") == 7


def test_weights_are_written_when_they_are_due(network: GuidedNetwork, tmp_path: Path) -> None:
    stage = flow_stage(network)
    heard: list[str] = []
    run_finetuning(network, stage, replace(stage.settings, steps=5, save_every=2), tmp_path, say=heard.append)
    names = {path.name for path in tmp_path.glob("*_step*")}
    steps = (2, 4, 5)
    assert names == {f"wan_finetune_step{n}" for n in steps} | {f"adapter_step{n}.safetensors" for n in steps}
    saved = load_file(tmp_path / "wan_finetune_step5/diffusion_pytorch_model.safetensors")
    assert saved.keys() == network.dit.state_dict().keys()
    assert torch.equal(
        load_adapter(tmp_path / "adapter_step5.safetensors").proj[3].weight, network.adapter.proj[3].weight
    )
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]


def test_low_rank_updates_leave_the_base_alone(dit: WanDiT, adapter: Pi3FeatureAdapter, tmp_path: Path) -> None:
    base = {name: value.clone() for name, value in dit.state_dict().items()}
    network = GuidedNetwork(dit, adapter, {"lora", "adapter"}, LoRASettings(rank=2))
    stage = flow_stage(network)
    run_finetuning(network, stage, replace(stage.settings, steps=2, lr=1e-2), tmp_path, say=quiet)
    after = {name.replace(".base.", "."): value for name, value in dit.state_dict().items() if "lora_" not in name}
    assert all(torch.equal(after[name], value) for name, value in base.items())
    assert any("lora_A" in name for name in load_file(tmp_path / "lora_step2.safetensors"))


def test_only_the_adapter_is_trained_when_only_it_is_named(dit: WanDiT, adapter: Pi3FeatureAdapter) -> None:
    network = GuidedNetwork(dit, adapter, {"adapter"})
    flow_stage(network).loss(0, 0).backward()
    assert set(trained_tensors(network)) == {f"adapter.{name}" for name, _ in adapter.named_parameters()}
    assert adapter.proj[3].weight.grad is not None
    assert adapter.proj[3].weight.grad.abs().max() > 0


def test_points_of_several_views_reach_the_weights(
    network: GuidedNetwork, rollout_stage: Callable[..., RolloutStage]
) -> None:
    points = torch.randn(1, 3, 28, 28, 3, generator=torch.Generator().manual_seed(8))
    stage = rollout_stage(network, Supervision(points=points))
    stage.loss(0, 0).backward()
    gradient = network.dit.blocks[0].self_attn.q.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0
    assert set(stage.parts) == {"points"}


def test_points_of_one_view_are_refused_alone_and_measured_beside_a_video(
    network: GuidedNetwork, rollout_stage: Callable[..., RolloutStage]
) -> None:
    points = torch.randn(1, 1, 28, 28, 3)
    with pytest.raises(RequestError, match="no trained weight changes"):
        Supervision(points=points)
    both = Supervision(video=torch.zeros(3, 9, 32, 32), points=points)
    assert both.video_counts
    assert not both.points_count
    stage = rollout_stage(network, both)
    stage.loss(0, 0).backward()
    assert set(stage.parts) == {"video", "points"}


def test_alignment_forgives_a_similarity() -> None:
    points = torch.randn(1, 2, 4, 4, 3)
    turned = 2.5 * points[..., [1, 2, 0]] + 3.0
    assert point_loss(points, turned, align=True) < 1e-5 < point_loss(points, turned)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Supervision, "something to learn from"),
        (lambda: Supervision(video=torch.zeros(4, 9, 32, 32)), r"\[3, frames, height, width\]"),
        (lambda: Supervision(video=torch.full((3, 9, 32, 32), 3.0)), "from -1 to 1"),
        (lambda: Supervision(video=torch.zeros(3, 9, 8, 8), video_weight=-1.0), "video-weight"),
        (lambda: Supervision(video=torch.zeros(3, 9, 8, 8), video_weight=0.0), "weight 0"),
        (lambda: Supervision(points=torch.zeros(2, 28, 28, 3)), r"\[1, views, height, width, 3\]"),
        (lambda: check_point_size(torch.zeros(1, 2, 14, 28, 3), 32, 32, 784), "28x14 points"),
        (lambda: parse_trained("wan,lora"), "not both"),
        (lambda: parse_trained("vae"), "--train takes"),
        (lambda: FinetuneSettings(lr=0.0), "--lr"),
        (lambda: FinetuneSettings(steps=0), "--steps"),
        (lambda: FinetuneSettings(max_grad_norm=-1.0), "--max-grad-norm"),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises((RequestError, ConfigError), match=message):
        make()
