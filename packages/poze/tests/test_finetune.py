"""The rollout objective learns, both go on bit for bit, and the weights that are claimed to be trained are reached."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pi3 import Pi3
from poze.adapter import Pi3FeatureAdapter, load_adapter, save_adapter
from poze.finetune import FinetuneOptions, known_seed, parse_trained, plan_finetuning
from poze.objectives import RolloutLoss, Supervision, check_point_size, point_loss
from poze.presets import TINY_POZE
from poze.task import GuidedImageToVideo
from wan_core import ConfigError, RequestError
from wan_core.media import write_image, write_video
from wan_core.models import DiTInputs, VideoVAE
from wan_core.sampling import Anchors
from wan_core.tasks import Conditioning, TI2VRequest
from wan_core.training import (
    CheckpointFolder,
    Listeners,
    LoopSettings,
    RunResult,
    Stage,
    TrainedNetworks,
    TrainSettings,
    build_optimizers,
    carry_out,
    train,
)

SILENT = Listeners(log=lambda text: None, encoded=lambda count: None, step=lambda line: None)


@pytest.fixture
def rollout_loss(vae: VideoVAE, pi3: Pi3, networks: TrainedNetworks) -> Callable[..., RolloutLoss]:
    """One image, nine frames of 32x32, three steps, guided twice."""

    def make(supervision: Supervision | None = None) -> RolloutLoss:
        generator = torch.Generator().manual_seed(6)
        video = (torch.rand(3, 9, 32, 32, generator=generator) - 0.5) * 0.2
        return RolloutLoss(
            networks=networks,
            task=GuidedImageToVideo(),
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
            batch={"tokens": torch.randn(1, 4, 48, generator=generator), "grid": torch.tensor([[2, 2]])},
        )

    return make


def loss_at(loss: RolloutLoss, seeds: range) -> float:
    """The mean loss over some seeds."""
    values = []
    for seed in seeds:
        torch.manual_seed(seed)
        values.append(loss(0, 0)["loss"].item())
    return sum(values) / len(values)


def test_the_whole_chain_overfits(rollout_loss: Callable[..., RolloutLoss], tmp_path: Path) -> None:
    loss = rollout_loss()
    before, model = loss_at(loss, range(2)), loss.networks.model
    stage = Stage.of(model, build_optimizers(model, "adamw", 1e-2), loss)
    train(stage, LoopSettings(steps=6, warmup_steps=0), checkpoints=CheckpointFolder(tmp_path))
    assert loss_at(loss, range(2)) < 0.9 * before


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A square image, a wanted video of it, and a folder of two examples."""
    folder = tmp_path_factory.mktemp("videos")
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(3, 5, 32, 32, generator=generator) * 2 - 1
    torch.save(video, folder / "video.pt")
    write_image(video[:, 0], folder / "ref.png")
    (folder / "data").mkdir()
    for name in ("one", "two"):
        write_video(iter([video]), folder / f"data/{name}.mp4", fps=8)
        (folder / f"data/{name}.txt").write_text(f"a walk, {name}")
    return folder


def finetune(videos: Path, output: Path, objective: str, steps: int, trained: str = "wan,adapter") -> RunResult:
    """A run of the tiny model, or what goes on with it."""
    given: Mapping[str, Any] = {"prompt": "a walk", "image": videos / "ref.png", "gt_video": videos / "video.pt"}
    if objective == "flow":
        given = {"dataset_root": videos / "data", "sampling": {"num_frames": 5, "width": 32, "height": 32}}
    else:
        given = {**given, "sampling": {"num_inference_steps": 2}}
    is_lora = "lora" in trained
    settings = TrainSettings(
        rate=1e-3, ema=0.9, seed=7, held_out=0, clean_frames=1, clean_share=1.0, lora_rank=2 if is_lora else None
    )
    loop = LoopSettings(steps=steps, warmup_steps=0, schedule="constant", seed=7, log_steps=1, validate_steps=1)
    options = FinetuneOptions(
        objective=objective, trained=parse_trained(trained), save_dir=output, device="cpu", **given
    )
    return carry_out(plan_finetuning(options, settings, loop), SILENT)


def weights_of(folder: Path, step: int) -> dict[str, Tensor]:
    dit = load_file(next((folder / f"wan_finetune_step{step}").rglob("diffusion_pytorch_model.safetensors")))
    return dit | load_file(folder / f"adapter_step{step}.safetensors")


@pytest.mark.parametrize("objective", ["flow", "rollout"])
def test_a_run_goes_on_bit_for_bit_and_writes_weights_when_they_are_due(
    objective: str, videos: Path, tmp_path: Path
) -> None:
    finetune(videos, tmp_path / "whole", objective, 3)
    for steps in (1, 3):  # each in a new process, as far as the run can tell
        finetune(videos, tmp_path / "parts", objective, steps)
    whole, parts = weights_of(tmp_path / "whole", 3), weights_of(tmp_path / "parts", 3)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert known_seed(tmp_path / "whole") == 7
    names = {path.name for path in (tmp_path / "whole").glob("*_step*")}
    assert names == {
        f"{name}_step{n}{end}" for n in (1, 2, 3) for name, end in (("wan_finetune", ""), ("adapter", ".safetensors"))
    }
    lines = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(("video" in line) == (objective == "rollout") for line in lines)


def test_a_run_does_not_go_on_beside_another_adapter(videos: Path, tmp_path: Path) -> None:
    given = {"objective": "flow", "trained": parse_trained("lora"), "save_dir": tmp_path / "out", "device": "cpu"}
    given |= {"dataset_root": videos / "data", "sampling": {"num_frames": 5, "width": 32, "height": 32}}
    settings = TrainSettings(rate=1e-3, held_out=0, lora_rank=2)
    loop = LoopSettings(steps=1, warmup_steps=0)
    carry_out(plan_finetuning(FinetuneOptions(**given), settings, loop), SILENT)
    other = load_adapter(TINY_POZE.task.adapter)
    torch.nn.init.normal_(other.proj[3].weight)
    save_adapter(other, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="beside"):
        plan_finetuning(FinetuneOptions(**given, adapter=tmp_path / "other.safetensors"), settings, loop)


def test_only_what_is_named_is_trained(videos: Path, tmp_path: Path) -> None:
    before = load_adapter(TINY_POZE.task.adapter).state_dict()
    finetune(videos, tmp_path, "flow", 1, "lora")
    assert any("lora_A" in name for name in load_file(tmp_path / "lora_step1.safetensors"))
    finetune(videos, tmp_path / "second", "flow", 1, "adapter")
    assert {path.name for path in (tmp_path / "second").glob("*_step*")} == {"adapter_step1.safetensors"}
    after = load_adapter(tmp_path / "second/adapter_step1.safetensors").state_dict()
    assert not torch.equal(after["proj.3.weight"], before["proj.3.weight"])


def test_points_of_several_views_reach_the_weights(rollout_loss: Callable[..., RolloutLoss]) -> None:
    points = torch.randn(1, 3, 28, 28, 3, generator=torch.Generator().manual_seed(8))
    loss = rollout_loss(Supervision(points=points))
    found = loss(0, 0)
    found["loss"].backward()
    gradient = loss.networks.dit.blocks[0].self_attn.q.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0
    assert set(found) == {"loss", "points"}


def test_points_of_one_view_are_refused_alone_and_measured_beside_a_video(
    rollout_loss: Callable[..., RolloutLoss],
) -> None:
    points = torch.randn(1, 1, 28, 28, 3)
    with pytest.raises(RequestError, match="no trained weight changes"):
        Supervision(points=points)
    both = Supervision(video=torch.zeros(3, 9, 32, 32), points=points)
    assert both.video_counts
    assert not both.points_count
    found = rollout_loss(both)(0, 0)
    found["loss"].backward()
    assert set(found) == {"loss", "video", "points"}


def test_the_adapter_gets_a_gradient_through_the_task(networks: TrainedNetworks, adapter: Pi3FeatureAdapter) -> None:
    task = GuidedImageToVideo()
    networks.dit.requires_grad_(False)
    batch = {"tokens": torch.randn(2, 4, 48), "grid": torch.tensor([[2, 2], [2, 2]])}
    inputs = task.training_inputs(batch, torch.randn(2, 3, 8), networks.beside)
    networks.dit(torch.randn(2, 4, 3, 4, 4), torch.tensor([500.0, 100.0]), inputs).square().mean().backward()
    assert adapter.proj[3].weight.grad.abs().max() > 0


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
        (lambda: plan_finetuning(FinetuneOptions(), TrainSettings(), LoopSettings(steps=1)), "something to learn from"),
    ],
)
def test_what_cannot_work_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises((RequestError, ConfigError), match=message):
        make()
